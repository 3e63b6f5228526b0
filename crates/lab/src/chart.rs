//! The description of a chart: figures, panels, axes, series and points, before plotly draws them; and the same in words.

use crate::palette::Style;
use crate::text;

/// One or several panels under one title: what a cell shows.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// What must be known to read it, a line each under the title: caveats of the data, what a point is.
    pub notes: Vec<String>,
    /// The panels, two beside each other.
    pub panels: Vec<Chart>,
}

/// Series over one pair of axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Stands above it where a figure has several panels.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn, the first below the others.
    pub series: Vec<Series>,
    /// Horizontal lines to compare with.
    pub references: Vec<Reference>,
}

/// An axis, which spans all that is drawn along it.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it measures.
    pub label: String,
    /// How values are placed.
    pub scale: Scale,
    /// Marks with their texts, which may have several lines; none: at round values.
    pub ticks: Vec<(f64, String)>,
}

/// How values are placed along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// By value.
    Linear,
    /// By logarithm.
    Log,
    /// Names at 0, 1, 2, and so on.
    Categories,
}

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend, which lists each name once; an empty one is not listed.
    pub name: String,
    /// How its points are drawn.
    pub mark: Mark,
    /// Its color, and the symbol of its points.
    pub style: Style,
    /// The points, in the order of the line.
    pub points: Vec<Point>,
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A line through them.
    Line,
    /// A line with a marker at each.
    LineAndMarkers,
    /// A marker at each.
    Markers,
    /// A bar from 0 to each.
    Bars,
}

/// A point of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical axis.
    pub y: f64,
    /// A standard deviation, drawn as an error bar of this length up and down; 0: none.
    pub deviation: f64,
    /// The area of its marker, as a multiple of the usual.
    pub size: f64,
    /// A text beside it, or above its bar.
    pub label: String,
}

/// A horizontal line to compare with, such as a baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Its name in the legend.
    pub label: String,
    /// Where it is.
    pub y: f64,
    /// From where to where it goes along the horizontal axis; `None`: all along.
    pub span: Option<(f64, f64)>,
}

impl Figure {
    /// A figure without panels yet.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds a panel.
    pub fn panel(mut self, chart: Chart) -> Self {
        self.panels.push(chart);
        self
    }

    /// Adds a line under the title.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The notes, and what could not be drawn: values that are not finite, and on a logarithmic axis those not above 0.
    pub(crate) fn all_notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        let left_out = |chart: &Chart| {
            let all = chart.series.iter().flat_map(|series| &series.points);
            all.filter(|point| !chart.shows(point)).count()
        };
        match self.panels.iter().map(left_out).sum::<usize>() {
            0 => {}
            1 => notes.push("1 value is left out: it is not a number that the axes have a place for".into()),
            count => {
                notes.push(format!("{count} values are left out: they are not numbers that the axes have a place for"))
            }
        }
        if self.panels.iter().all(|chart| chart.series.iter().all(|series| series.points.is_empty())) {
            notes.push("there is nothing to draw yet".into());
        }
        notes
    }

    /// The names that the legend lists: of each series and reference line, once.
    pub(crate) fn legend(&self) -> Vec<&str> {
        let series = self.panels.iter().flat_map(|chart| &chart.series).map(|series| series.name.as_str());
        let references = self.panels.iter().flat_map(|chart| &chart.references).map(|line| line.label.as_str());
        let mut names: Vec<&str> = Vec::new();
        for name in series.chain(references) {
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The figure in words: for a terminal, and for readers who do not see it.
    pub(crate) fn describe(&self) -> String {
        let mut lines = vec![self.title.clone()];
        lines.extend(self.all_notes());
        for chart in &self.panels {
            let title = if chart.title.is_empty() { String::new() } else { format!("{}: ", chart.title) };
            let x = if chart.x.label.is_empty() { String::new() } else { format!(" against {}", chart.x.label) };
            lines.push(format!("{title}{}{x}", chart.y.label));
            lines.extend(chart.series.iter().filter_map(|series| series.describe(chart)));
            lines.extend(chart.references.iter().map(|line| format!("  {}: {}", line.label, text::score(line.y))));
        }
        lines.join("\n")
    }
}

impl Chart {
    /// A chart without series yet.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, series: Vec::new(), references: Vec::new() }
    }

    /// Adds a series.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// Adds a horizontal line to compare with.
    pub fn reference(mut self, label: impl Into<String>, y: f64, span: Option<(f64, f64)>) -> Self {
        self.references.push(Reference { label: label.into(), y, span });
        self
    }

    /// Whether the axes have a place for a point.
    pub(crate) fn shows(&self, point: &Point) -> bool {
        self.x.has_place_for(point.x) && self.y.has_place_for(point.y)
    }
}

impl Axis {
    /// A linear axis.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear, ticks: Vec::new() }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>) -> Self {
        Self { scale: Scale::Log, ..Self::new(label) }
    }

    /// An axis of names: the first at 0, the next at 1, and so on.
    pub fn categories<S: ToString>(label: impl Into<String>, names: impl IntoIterator<Item = S>) -> Self {
        let ticks = names.into_iter().enumerate().map(|(index, name)| (index as f64, name.to_string())).collect();
        Self { scale: Scale::Categories, ticks, ..Self::new(label) }
    }

    /// With marks at these values only.
    pub fn marked_at(mut self, values: impl IntoIterator<Item = f64>) -> Self {
        self.ticks = values.into_iter().map(|value| (value, value.to_string())).collect();
        self
    }

    fn has_place_for(&self, value: f64) -> bool {
        value.is_finite() && (self.scale != Scale::Log || value > 0.0)
    }
}

impl Series {
    /// A series of points.
    pub fn new(name: impl Into<String>, mark: Mark, style: Style, points: Vec<Point>) -> Self {
        Self { name: name.into(), mark, style, points }
    }

    /// The series in words, by its name or that of the category it stands at; `None` if nothing of it is shown.
    fn describe(&self, chart: &Chart) -> Option<String> {
        let shown: Vec<&Point> = self.points.iter().filter(|point| chart.shows(point)).collect();
        let (first, last) = (shown.first()?, shown.last()?);
        let category = chart.x.ticks.iter().find(|(place, _)| *place == first.x).map(|(_, name)| name.as_str());
        let name = if self.name.is_empty() { category.unwrap_or("unnamed") } else { &self.name };
        let [low, high] = [first.y, last.y].map(text::score);
        Some(match shown.len() {
            1 => format!("  {name}: {low}"),
            count => format!("  {name}: {count} points, from {low} to {high}"),
        })
    }
}

impl Point {
    /// A point of the usual size, without deviation or label.
    pub fn new(x: f64, y: f64) -> Self {
        Self { x, y, deviation: 0.0, size: 1.0, label: String::new() }
    }

    /// With a marker of another size; one that is not a number counts as the usual.
    pub fn size(mut self, size: f64) -> Self {
        self.size = if size.is_finite() { size.max(0.0) } else { 1.0 };
        self
    }

    /// With a deviation; one that is not a number counts as none.
    pub fn deviation(mut self, deviation: f64) -> Self {
        self.deviation = if deviation.is_finite() { deviation } else { 0.0 };
        self
    }

    /// With a text beside it.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two panels: a line of two points among three, with a name that must be escaped, and a bar.
    pub(crate) fn example() -> Figure {
        let points = vec![Point::new(1e-4, 0.5), Point::new(1e-3, 0.75).deviation(0.02), Point::new(1e-2, f64::NAN)];
        let line = Series::new("<b> & co", Mark::LineAndMarkers, Style::indexed(0), points);
        let left = Chart::new("left", Axis::log("rate"), Axis::new("accuracy"));
        let bars = Series::new("bars", Mark::Bars, Style::indexed(1), vec![Point::new(0.0, 3.0).label("three")]);
        let right = Chart::new("right", Axis::categories("", ["a\nfirst", "b"]), Axis::new("count")).series(bars);
        Figure::new("Rates </script> & \"more\"")
            .panel(left.series(line).reference("baseline 0.8", 0.8, None))
            .panel(right)
    }

    #[test]
    fn values_without_a_place_are_left_out_and_counted() {
        let figure = example();
        assert_eq!(figure.all_notes(), ["1 value is left out: it is not a number that the axes have a place for"]);
        let chart = &figure.panels[0];
        assert!(!chart.shows(&Point::new(0.0, 0.5)) && chart.shows(&Point::new(1e-9, 0.0)));
        assert_eq!(Figure::new("").all_notes(), ["there is nothing to draw yet"]);
    }

    #[test]
    fn the_legend_lists_each_name_once() {
        let figure = example().panel(example().panels.remove(0));
        assert_eq!(figure.legend(), ["<b> & co", "bars", "baseline 0.8"]);
    }

    #[test]
    fn a_figure_in_words_names_every_axis_series_and_reference_line() {
        let words = example().describe();
        for line in [
            "left: accuracy against rate",
            "  <b> & co: 2 points, from 0.500 to 0.750",
            "  baseline 0.8: 0.800",
            "right: count",
            "  bars: 3.000",
        ] {
            assert!(words.lines().any(|found| found == line), "{line} is not in\n{words}");
        }
    }
}
