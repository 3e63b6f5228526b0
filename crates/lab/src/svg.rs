//! A figure as SVG: sharp on paper, and on a page without scripts.

use crate::canvas::{Align, Canvas, Drawn, Font, Place};
use crate::chart::{Chart, Figure, LegendEntry, Mark, Point, Series};
use crate::error::{Error, Result};
use crate::palette::{Colour, GREY, GRID, INK, Marker};
use crate::text::{width, wrap};
use crate::ticks::ticks;

/// The width of a figure, in pixels: that of a column of text.
pub(crate) const WIDTH: f64 = 700.0;
const MARGIN: f64 = 10.0;

const TITLE_SIZE: f64 = 15.0;
/// Of notes under the title.
pub(crate) const NOTE_SIZE: f64 = 12.0;
const LABEL_SIZE: f64 = 12.5;
const TICK_SIZE: f64 = 11.5;
/// Between the texts at two marks.
const TICK_GAP: f64 = 5.0;
/// Smaller is not readable in print.
const SMALLEST_SIZE: f64 = 8.5;
const LINE_HEIGHT: f64 = 1.3;

const LEGEND_SAMPLE: f64 = 26.0;
const LEGEND_ROW: f64 = 20.0;

impl Figure {
    /// The figure as an SVG document, 700 pixels wide.
    ///
    /// # Errors
    /// When the drawing library refuses.
    pub fn svg(&self) -> Result<String> {
        let drawing = Drawing::new(self);
        Canvas::draw((WIDTH, drawing.height), &self.title, |canvas| drawing.draw(canvas))
            .map_err(|error| Error::Drawing { title: self.title.clone(), reason: error.to_string() })
    }

    /// The notes in lines as wide as the figure.
    pub(crate) fn note_lines(&self) -> Vec<String> {
        self.all_notes().iter().flat_map(|note| wrap(note, NOTE_SIZE, WIDTH - 2.0 * MARGIN)).collect()
    }
}

/// Where everything of a figure goes.
struct Drawing<'a> {
    figure: &'a Figure,
    notes: Vec<String>,
    panels: Vec<Panel<'a>>,
    legend: Vec<(Place, LegendEntry<'a>)>,
    height: f64,
}

impl<'a> Drawing<'a> {
    fn new(figure: &'a Figure) -> Self {
        let notes = figure.note_lines();
        let mut y = MARGIN + TITLE_SIZE * LINE_HEIGHT + notes.len() as f64 * NOTE_SIZE * LINE_HEIGHT + 4.0;
        let several = figure.panels.len() > 1;
        let panel_width = (WIDTH - 2.0 * MARGIN) / if several { 2.0 } else { 1.0 };
        let mut panels = Vec::new();
        for row in figure.panels.chunks(2) {
            let bottom = row.iter().map(|chart| y + Panel::height(chart, panel_width, several)).fold(y, f64::max);
            for (column, chart) in row.iter().enumerate() {
                let left = MARGIN + column as f64 * panel_width;
                panels.push(Panel::new(chart, (left, y), (left + panel_width, bottom), several));
            }
            y = bottom + 4.0;
        }
        let mut legend = Vec::new();
        let mut x = MARGIN;
        y += LEGEND_ROW / 2.0;
        for entry in figure.legend() {
            let entry_width = LEGEND_SAMPLE + 6.0 + width(entry.name(), LABEL_SIZE) + 18.0;
            if x > MARGIN && x + entry_width > WIDTH - MARGIN {
                (x, y) = (MARGIN, y + LEGEND_ROW);
            }
            legend.push(((x, y), entry));
            x += entry_width;
        }
        let end = if legend.is_empty() { y - LEGEND_ROW / 2.0 } else { y + LEGEND_ROW / 2.0 };
        Self { figure, notes, panels, legend, height: (end + MARGIN / 2.0).ceil() }
    }

    fn draw(&self, canvas: &mut Canvas) -> Drawn {
        let mut y = MARGIN + TITLE_SIZE / 2.0;
        let title = Font { size: TITLE_SIZE, colour: INK, bold: true, align: Align::Start };
        canvas.text(&self.figure.title, (MARGIN, y), title)?;
        y += TITLE_SIZE * LINE_HEIGHT;
        for note in &self.notes {
            canvas.text(note, (MARGIN, y), font(NOTE_SIZE, GREY, Align::Start))?;
            y += NOTE_SIZE * LINE_HEIGHT;
        }
        for panel in &self.panels {
            panel.draw(canvas)?;
        }
        for ((x, y), entry) in &self.legend {
            sample(canvas, (*x, *y), entry)?;
            canvas.text(entry.name(), (x + LEGEND_SAMPLE + 6.0, *y), font(LABEL_SIZE, INK, Align::Start))?;
        }
        Ok(())
    }
}

/// What stands before a name in the legend.
fn sample(canvas: &mut Canvas, (x, y): Place, entry: &LegendEntry) -> Drawn {
    let (left, middle, right) = ((x, y), (x + LEGEND_SAMPLE / 2.0, y), (x + LEGEND_SAMPLE, y));
    match entry {
        LegendEntry::Reference(_) => reference_line(canvas, left, right),
        LegendEntry::Series(series) => {
            if matches!(series.mark, Mark::Bars(_)) {
                return canvas.rectangle((x + 5.0, y - 6.0), (x + LEGEND_SAMPLE - 5.0, y + 6.0), series.style.colour);
            }
            if series.mark != Mark::Markers {
                series_line(canvas, series, &[left, right])?;
            }
            if series.mark != Mark::Line {
                canvas.marker(middle, series.style.marker, series.style.colour, marker_radius(series))?;
            }
            Ok(())
        }
    }
}

fn reference_line(canvas: &mut Canvas, from: Place, to: Place) -> Drawn {
    canvas.dashed_line(&[from, to], INK, 1.2, (6.0, 3.0))
}

fn series_line(canvas: &mut Canvas, series: &Series, places: &[Place]) -> Drawn {
    let colour = series.style.colour;
    if series.dashed { canvas.dashed_line(places, colour, 1.4, (4.0, 3.0)) } else { canvas.line(places, colour, 1.8) }
}

fn marker_radius(series: &Series) -> f64 {
    if series.style.marker == Marker::Ring { 2.6 } else { 3.6 }
}

/// Of a point's marker: its area goes with the point's size.
fn radius(series: &Series, point: &Point) -> f64 {
    marker_radius(series) * point.size.sqrt()
}

fn font(size: f64, colour: Colour, align: Align) -> Font {
    Font { size, colour, bold: false, align }
}

/// A chart and its frame.
struct Panel<'a> {
    chart: &'a Chart,
    titled: bool,
    x: ((f64, f64), Vec<(f64, String)>),
    y: ((f64, f64), Vec<(f64, String)>),
    /// Of the texts at the horizontal axis's marks.
    tick_size: f64,
    /// The corners of the frame: upper left, lower right.
    from: Place,
    to: Place,
}

impl<'a> Panel<'a> {
    fn height(chart: &Chart, panel_width: f64, titled: bool) -> f64 {
        let frame = if panel_width > 400.0 { 270.0 } else { 215.0 };
        frame + Self::above(titled) + Self::below(chart)
    }

    fn above(titled: bool) -> f64 {
        if titled { LABEL_SIZE * LINE_HEIGHT + 6.0 } else { 6.0 }
    }

    fn below(chart: &Chart) -> f64 {
        let lines = chart.x.ticks.iter().map(|(_, text)| text.lines().count()).max().unwrap_or(1).max(1);
        let label = if chart.x.label.is_empty() { 0.0 } else { LABEL_SIZE * LINE_HEIGHT + 4.0 };
        6.0 + lines as f64 * TICK_SIZE * LINE_HEIGHT + label
    }

    fn new(chart: &'a Chart, (left, top): Place, (right, bottom): Place, titled: bool) -> Self {
        let (x_limits, y_limits) = chart.limits();
        let y_ticks = ticks(&chart.y, y_limits.0, y_limits.1, 6);
        let widest = y_ticks.iter().map(|(_, text)| width(text, TICK_SIZE)).fold(0.0, f64::max);
        let label = if chart.y.label.is_empty() { 0.0 } else { LABEL_SIZE * LINE_HEIGHT + 2.0 };
        let from = (left + label + widest + 8.0, top + Self::above(titled));
        let to = (right - 12.0, bottom - Self::below(chart));
        let frame_width = to.0 - from.0;
        let mut x_ticks = ticks(&chart.x, x_limits.0, x_limits.1, (frame_width / 62.0) as usize);
        // Texts that would touch are written smaller; those that would touch still, only at every second mark, or third, ...
        let widest = |size| {
            let lines = x_ticks.iter().flat_map(|(_, text)| text.lines());
            lines.map(|line| width(line, size)).fold(1.0, f64::max)
        };
        let span = chart.x.place(x_limits.1) - chart.x.place(x_limits.0);
        let gaps = x_ticks.windows(2).map(|pair| chart.x.place(pair[1].0) - chart.x.place(pair[0].0));
        let room = gaps.fold(span, f64::min) / span * frame_width;
        let tick_size = (TICK_SIZE * (room - TICK_GAP) / widest(TICK_SIZE)).clamp(SMALLEST_SIZE, TICK_SIZE);
        let every = ((widest(tick_size) + TICK_GAP) / room - 0.01).ceil().max(1.0) as usize;
        for (_, text) in x_ticks.iter_mut().enumerate().filter(|(index, _)| index % every != 0).map(|(_, tick)| tick) {
            text.clear();
        }
        Self { chart, titled, x: (x_limits, x_ticks), y: (y_limits, y_ticks), tick_size, from, to }
    }

    fn x(&self, value: f64) -> f64 {
        let axis = &self.chart.x;
        let (low, high) = (axis.place(self.x.0.0), axis.place(self.x.0.1));
        self.from.0 + (axis.place(value) - low) / (high - low) * (self.to.0 - self.from.0)
    }

    fn y(&self, value: f64) -> f64 {
        let axis = &self.chart.y;
        let (low, high) = (axis.place(self.y.0.0), axis.place(self.y.0.1));
        self.to.1 - (axis.place(value) - low) / (high - low) * (self.to.1 - self.from.1)
    }

    fn draw(&self, canvas: &mut Canvas) -> Drawn {
        self.draw_frame(canvas)?;
        for reference in &self.chart.references {
            let (from, to) = reference.span.map_or((self.from.0, self.to.0), |(from, to)| (self.x(from), self.x(to)));
            reference_line(canvas, (from, self.y(reference.y)), (to, self.y(reference.y)))?;
        }
        for series in &self.chart.series {
            self.draw_series(canvas, series)?;
        }
        Ok(())
    }

    fn draw_frame(&self, canvas: &mut Canvas) -> Drawn {
        let ((left, top), (right, bottom)) = (self.from, self.to);
        let middle = (left + right) / 2.0;
        if self.titled {
            let title = Font { size: LABEL_SIZE, colour: INK, bold: true, align: Align::Middle };
            canvas.text(&self.chart.title, (middle, top - 6.0 - LABEL_SIZE / 2.0), title)?;
        }
        for (value, text) in &self.y.1 {
            let y = self.y(*value);
            canvas.line(&[(left, y), (right, y)], GRID, 1.0)?;
            canvas.text(text, (left - 5.0, y), font(TICK_SIZE, INK, Align::End))?;
        }
        // Names need no line of the grid, values do.
        let named = self.chart.x.range.is_some() && !self.chart.x.ticks.is_empty();
        for (value, text) in &self.x.1 {
            let x = self.x(*value);
            if !named {
                canvas.line(&[(x, top), (x, bottom)], GRID, 1.0)?;
            }
            for (index, line) in text.lines().enumerate() {
                let y = bottom + 6.0 + TICK_SIZE / 2.0 + index as f64 * TICK_SIZE * LINE_HEIGHT;
                canvas.text(line, (x, y), font(self.tick_size, INK, Align::Middle))?;
            }
        }
        canvas.line(&[(left, top), (left, bottom), (right, bottom)], GREY, 1.0)?;
        let below = bottom + Self::below(self.chart) - LABEL_SIZE / 2.0 - 2.0;
        if !self.chart.x.label.is_empty() {
            canvas.text(&self.chart.x.label, (middle, below), font(LABEL_SIZE, INK, Align::Middle))?;
        }
        if !self.chart.y.label.is_empty() {
            let widest = self.y.1.iter().map(|(_, text)| width(text, TICK_SIZE)).fold(0.0, f64::max);
            let place = (left - widest - 10.0 - LABEL_SIZE / 2.0, (top + bottom) / 2.0);
            canvas.upright_text(&self.chart.y.label, place, font(LABEL_SIZE, INK, Align::Middle))?;
        }
        Ok(())
    }

    fn draw_series(&self, canvas: &mut Canvas, series: &Series) -> Drawn {
        let shown = || series.points.iter().filter(|point| self.chart.shows(point));
        let places: Vec<Place> = shown().map(|point| (self.x(point.x), self.y(point.y))).collect();
        if matches!(series.mark, Mark::Line | Mark::LineAndMarkers) {
            series_line(canvas, series, &places)?;
        }
        for (point, &(x, y)) in shown().zip(&places) {
            if let Mark::Bars(width) = series.mark {
                let (from, to) = (self.x(point.x - width / 2.0), self.x(point.x + width / 2.0));
                let foot = self.y(0.0);
                canvas.rectangle((from, y.min(foot)), (to, y.max(foot)), series.style.colour)?;
            }
            if point.deviation > 0.0 {
                let colour = if matches!(series.mark, Mark::Bars(_)) { INK } else { series.style.colour };
                let (low, high) = (self.y(point.y - point.deviation), self.y(point.y + point.deviation));
                canvas.line(&[(x, low), (x, high)], colour, 1.3)?;
                for end in [low, high] {
                    canvas.line(&[(x - 4.0, end), (x + 4.0, end)], colour, 1.3)?;
                }
            }
            if matches!(series.mark, Mark::LineAndMarkers | Mark::Markers) {
                canvas.marker((x, y), series.style.marker, series.style.colour, radius(series, point))?;
            }
        }
        self.draw_labels(canvas, series)
    }

    /// The texts above the points, all smaller if they are wider than their bars; none if that does not do.
    fn draw_labels(&self, canvas: &mut Canvas, series: &Series) -> Drawn {
        let widest = series.points.iter().map(|point| width(&point.label, TICK_SIZE)).fold(0.0, f64::max);
        let room = match series.mark {
            Mark::Bars(bar) => self.x(self.x.0.0 + bar) - self.from.0,
            _ => f64::INFINITY,
        };
        let size = (TICK_SIZE * room / widest.max(1.0)).min(TICK_SIZE);
        if size < SMALLEST_SIZE {
            return Ok(());
        }
        for point in series.points.iter().filter(|point| self.chart.shows(point) && !point.label.is_empty()) {
            let whisker = self.y(point.y + point.deviation);
            let top = match series.mark {
                Mark::Bars(_) => whisker,
                _ => whisker.min(self.y(point.y) - radius(series, point)),
            };
            let y = top - 3.4 - size / 2.0;
            canvas.text(&point.label, (self.x(point.x), y), font(size, INK, Align::Middle))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canvas::cell;
    use crate::chart::Axis;
    use crate::chart::tests::example;
    use crate::palette::Style;

    fn texts(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let nodes = document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "text")));
        nodes.filter_map(|node| node.text()).map(|text| text.trim().to_string()).collect()
    }

    #[test]
    fn names_and_titles_are_escaped_so_that_the_document_is_well_formed() {
        let texts = texts(&example().svg().unwrap());
        for text in ["Rates </script> & \"more\"", "<b> & co", "first", "three", "baseline 0.8", "accuracy"] {
            assert!(texts.iter().any(|found| found == text), "{text} is not in {texts:?}");
        }
    }

    #[test]
    fn every_point_of_every_series_is_in_the_document() {
        let values: Vec<Point> = (0..20).map(|i| Point::new(f64::from(i), f64::from(i * i))).collect();
        let line = Series::new("line", Mark::Line, Style::numbered(0), values.clone());
        let dots = Series::new("dots", Mark::Markers, Style::PLAIN, values.clone());
        let chart = Chart::new("", Axis::new("x"), Axis::new("y")).series(line).series(dots);
        let figure = Figure::new("squares").panel(chart);
        let svg = figure.svg().unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let lines: Vec<&str> = document.descendants().filter_map(|node| node.attribute("points")).collect();
        let circles: Vec<(String, String)> = document
            .descendants()
            .filter_map(|node| Some((node.attribute("cx")?.to_string(), node.attribute("cy")?.to_string())))
            .collect();
        let drawing = Drawing::new(&figure);
        for point in values {
            let (x, y) = cell((drawing.panels[0].x(point.x), drawing.panels[0].y(point.y)));
            assert!(lines.iter().any(|line| line.split(' ').any(|place| place == format!("{x},{y}"))), "{point:?}");
            assert!(circles.contains(&(x.to_string(), y.to_string())), "{point:?}");
        }
    }

    #[test]
    fn higher_values_stand_higher_and_all_within_the_frame() {
        let figure = example();
        let drawing = Drawing::new(&figure);
        let panel = &drawing.panels[0];
        assert!(panel.y(0.75) < panel.y(0.5) && panel.x(1e-3) > panel.x(1e-4));
        assert!(panel.y(0.77) > panel.from.1 && panel.y(0.5) < panel.to.1);
        // On a logarithmic axis a decade is as long as the next.
        let decade = |value| panel.x(10.0 * value) - panel.x(value);
        assert!((decade(1e-4) - decade(1e-3)).abs() < 1e-9);
    }

    #[test]
    fn the_texts_of_neighbouring_marks_do_not_touch() {
        let names = (0..14).map(|rank| format!("{}\n{}", 1 << rank, 1_000_000 << rank));
        let names = names.enumerate().map(|(rank, name)| (f64::from(1 << rank), name)).collect();
        let values = (0..14).map(|rank| Point::new(f64::from(1 << rank), 0.5)).collect();
        let chart = Chart::new("", Axis::new("r").scale(crate::Scale::Log2).ticks(names), Axis::new("y"))
            .series(Series::new("", Mark::Line, Style::PLAIN, values));
        let figure = Figure::new("").panel(chart.clone()).panel(chart);
        let drawing = Drawing::new(&figure);
        let panel = &drawing.panels[0];
        let written: Vec<&(f64, String)> = panel.x.1.iter().filter(|(_, text)| !text.is_empty()).collect();
        assert!(written.len() > 2);
        for pair in written.windows(2) {
            let half = |text: &str| text.lines().map(|line| width(line, panel.tick_size)).fold(0.0, f64::max) / 2.0;
            assert!(panel.x(pair[1].0) - panel.x(pair[0].0) > half(&pair[0].1) + half(&pair[1].1), "{pair:?}");
        }
    }
}
