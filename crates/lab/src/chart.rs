//! What a chart is, before it is drawn.

use crate::palette::Style;
use crate::text;

/// One or several charts under one title: what a cell shows.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// What must be known to read it, one line each, under the title: caveats of the data, what a point is.
    pub notes: Vec<String>,
    /// The charts, two beside each other.
    pub panels: Vec<Chart>,
}

/// Series over one pair of axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Stands above it where a figure has several.
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

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it measures.
    pub label: String,
    /// How values are placed.
    pub scale: Scale,
    /// Marks with their texts, which may have several lines; none: at round values.
    pub ticks: Vec<(f64, String)>,
    /// The least it spans; it spans all values in any case.
    pub range: Option<(f64, f64)>,
}

/// How values are placed along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// By value.
    Linear,
    /// By logarithm, marked at powers of ten.
    Log10,
    /// By logarithm, marked at powers of two.
    Log2,
}

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend, which lists each name once; none if it is empty.
    pub name: String,
    /// How its points are drawn.
    pub mark: Mark,
    /// Its colour, and the form of its points.
    pub style: Style,
    /// Whether its line is dashed.
    pub dashed: bool,
    /// The points, in the order of the line.
    pub points: Vec<Point>,
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mark {
    /// A line through them.
    Line,
    /// A line with a marker at each.
    LineAndMarkers,
    /// A marker at each.
    Markers,
    /// A bar from 0 to each, this wide in units of the horizontal axis.
    Bars(f64),
}

/// A point of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical axis.
    pub y: f64,
    /// A standard deviation, drawn as a bar of this length up and down; 0: none.
    pub deviation: f64,
    /// The area of its marker, as a multiple of the usual.
    pub size: f64,
    /// Stands above it.
    pub label: String,
}

/// A horizontal line to compare with.
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
    /// A figure without charts yet.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// With a chart more.
    pub fn panel(mut self, chart: Chart) -> Self {
        self.panels.push(chart);
        self
    }

    /// With a line more under the title.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The notes, and what could not be drawn: values that are not finite, and on a logarithmic axis those not above 0.
    pub(crate) fn all_notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        let points = |chart: &Chart| {
            let all = chart.series.iter().flat_map(|series| &series.points);
            all.filter(|point| !chart.shows(point)).count()
        };
        match self.panels.iter().map(points).sum::<usize>() {
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

    /// What the legend lists: each named series and reference line once.
    pub(crate) fn legend(&self) -> Vec<LegendEntry<'_>> {
        let mut entries: Vec<LegendEntry> = Vec::new();
        let series = self.panels.iter().flat_map(|chart| &chart.series).map(LegendEntry::Series);
        let references = self.panels.iter().flat_map(|chart| &chart.references).map(LegendEntry::Reference);
        for entry in series.chain(references) {
            if !entry.name().is_empty() && entries.iter().all(|earlier| earlier.name() != entry.name()) {
                entries.push(entry);
            }
        }
        entries
    }

    /// The figure in words: for a terminal, and for readers who do not see it.
    pub(crate) fn describe(&self) -> String {
        let mut lines = vec![self.title.clone()];
        lines.extend(self.all_notes());
        for chart in &self.panels {
            lines.push(format!("{}{} against {}", prefix(&chart.title), chart.y.label, chart.x.label));
            for series in &chart.series {
                let shown: Vec<&Point> = series.points.iter().filter(|point| chart.shows(point)).collect();
                if let (Some(first), Some(last)) = (shown.first(), shown.last()) {
                    let (count, name) =
                        (shown.len(), if series.name.is_empty() { chart.x.name_at(first.x) } else { &series.name });
                    let ends = format!("from {} to {}", text::score(first.y), text::score(last.y));
                    lines.push(format!("  {name}: {count} point{}, {ends}", if count == 1 { "" } else { "s" }));
                }
            }
            lines.extend(chart.references.iter().map(|line| format!("  {}: {}", line.label, text::score(line.y))));
        }
        lines.join("\n")
    }
}

fn prefix(title: &str) -> String {
    if title.is_empty() { String::new() } else { format!("{title}: ") }
}

/// A row of a legend.
#[derive(Clone, Copy)]
pub(crate) enum LegendEntry<'a> {
    Series(&'a Series),
    Reference(&'a Reference),
}

impl LegendEntry<'_> {
    pub fn name(&self) -> &str {
        match self {
            Self::Series(series) => &series.name,
            Self::Reference(reference) => &reference.label,
        }
    }
}

impl Chart {
    /// Without series yet.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, series: Vec::new(), references: Vec::new() }
    }

    /// With a series more.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// With a horizontal line more.
    pub fn reference(mut self, label: impl Into<String>, y: f64) -> Self {
        self.references.push(Reference { label: label.into(), y, span: None });
        self
    }

    /// Whether the axes have a place for a point.
    pub(crate) fn shows(&self, point: &Point) -> bool {
        self.x.has_place_for(point.x) && self.y.has_place_for(point.y)
    }

    /// From where to where the axes go, in their units: all points with their deviations and bars, and the reference lines.
    pub(crate) fn limits(&self) -> ((f64, f64), (f64, f64)) {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        for series in &self.series {
            for point in series.points.iter().filter(|point| self.shows(point)) {
                let half = if let Mark::Bars(width) = series.mark { width / 2.0 } else { 0.0 };
                xs.extend([point.x - half, point.x + half]);
                ys.extend([point.y - point.deviation, point.y + point.deviation]);
                if matches!(series.mark, Mark::Bars(_)) {
                    ys.push(0.0);
                }
            }
        }
        ys.extend(self.references.iter().map(|reference| reference.y));
        let (mut low, mut high) = self.y.limits(&ys);
        let has_bars = self.series.iter().any(|series| matches!(series.mark, Mark::Bars(_)));
        if has_bars && ys.iter().all(|y| *y >= 0.0) {
            low = 0.0;
        }
        // A text above the highest point is within the frame, too.
        if self.series.iter().any(|series| series.points.iter().any(|point| !point.label.is_empty())) {
            let (from, to) = (self.y.place(low), self.y.place(high));
            high = self.y.value(to + 0.08 * (to - from));
        }
        (self.x.limits(&xs), (low, high))
    }
}

impl Axis {
    /// A linear axis.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear, ticks: Vec::new(), range: None }
    }

    /// With another scale.
    pub fn scale(mut self, scale: Scale) -> Self {
        self.scale = scale;
        self
    }

    /// Marked at these values, with these texts.
    pub fn ticks(mut self, ticks: Vec<(f64, String)>) -> Self {
        self.ticks = ticks;
        self
    }

    /// Spanning at least this.
    pub fn range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// An axis of names: the first at 0, the next at 1, and so on.
    pub fn categories<S: ToString>(label: impl Into<String>, names: impl IntoIterator<Item = S>) -> Self {
        let ticks: Vec<(f64, String)> =
            names.into_iter().enumerate().map(|(index, name)| (index as f64, name.to_string())).collect();
        let last = ticks.len() as f64 - 0.5;
        Self::new(label).ticks(ticks).range(-0.5, last)
    }

    /// The text of the mark at a value.
    fn name_at(&self, value: f64) -> &str {
        self.ticks.iter().find(|(place, _)| *place == value).map_or("unnamed", |(_, name)| name)
    }

    fn has_place_for(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Linear || value > 0.0)
    }

    /// From a value to its place, of which equal steps are equally long.
    pub(crate) fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log10 | Scale::Log2 => value.log10(),
        }
    }

    fn value(&self, place: f64) -> f64 {
        match self.scale {
            Scale::Linear => place,
            Scale::Log10 | Scale::Log2 => 10f64.powf(place),
        }
    }

    fn limits(&self, values: &[f64]) -> (f64, f64) {
        let places = || values.iter().filter(|value| self.has_place_for(**value)).map(|&value| self.place(value));
        let low = places().fold(f64::INFINITY, f64::min);
        let high = places().fold(f64::NEG_INFINITY, f64::max);
        let range = self.range.map(|(low, high)| (self.place(low), self.place(high)));
        let (low, high) = match (range, low <= high) {
            (Some(range), false) => range,
            (None, false) => (0.0, 1.0),
            (range, true) => {
                // Some room, so that no point lies on the frame; where the range has room already, it ends as it says.
                let room = if high > low { 0.05 * (high - low) } else { 0.5f64.min(0.1 * high.abs()).max(1e-3) };
                let (least, most) = range.unwrap_or((f64::INFINITY, f64::NEG_INFINITY));
                (if low >= least { least } else { low - room }, if high <= most { most } else { high + room })
            }
        };
        (self.value(low), self.value(high))
    }
}

impl Series {
    /// A series of points.
    pub fn new(name: impl Into<String>, mark: Mark, style: Style, points: Vec<Point>) -> Self {
        Self { name: name.into(), mark, style, dashed: false, points }
    }

    /// With a dashed line.
    pub fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }
}

impl Point {
    /// Of the usual size, without deviation or label.
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

    /// With a text above it.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A chart of two points among three, with a name that must be escaped.
    pub(crate) fn example() -> Figure {
        let points = vec![Point::new(1e-4, 0.5), Point::new(1e-3, 0.75).deviation(0.02), Point::new(1e-2, f64::NAN)];
        let series = Series::new("<b> & co", Mark::LineAndMarkers, Style::numbered(0), points);
        let chart = Chart::new("left", Axis::new("rate").scale(Scale::Log10), Axis::new("accuracy"));
        let bars = Series::new("bars", Mark::Bars(0.5), Style::numbered(1), vec![Point::new(0.0, 3.0).label("three")]);
        let right = Chart::new("right", Axis::categories("", ["a\nfirst", "b"]), Axis::new("count")).series(bars);
        Figure::new("Rates </script> & \"more\"")
            .panel(chart.series(series).reference("baseline 0.8", 0.8))
            .panel(right)
    }

    #[test]
    fn values_without_a_place_are_left_out_and_counted() {
        let figure = example();
        assert_eq!(figure.all_notes(), ["1 value is left out: it is not a number that the axes have a place for"]);
        let chart = &figure.panels[0];
        assert!(!chart.shows(&Point::new(0.0, 0.5)) && chart.shows(&Point::new(1e-9, 0.0)));
    }

    #[test]
    fn the_axes_span_deviations_reference_lines_and_the_foot_of_bars() {
        let figure = example();
        let (_, (low, high)) = figure.panels[0].limits();
        assert!(low < 0.5 && high > 0.8);
        assert_eq!(figure.panels[1].limits().0, (-0.5, 1.5));
        let (foot, top) = figure.panels[1].limits().1;
        assert!(foot == 0.0 && top > 3.2, "a bar stands on the axis, and its text is within the frame: {foot} {top}");
    }

    #[test]
    fn the_legend_lists_each_name_once() {
        let figure = example().panel(example().panels.remove(0));
        let names: Vec<String> = figure.legend().iter().map(|entry| entry.name().to_string()).collect();
        assert_eq!(names, ["<b> & co", "bars", "baseline 0.8"]);
    }
}
