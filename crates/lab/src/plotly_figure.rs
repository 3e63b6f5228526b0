//! A figure for plotly, which a reader can point at, zoom, and switch series of on and off.

use plotly::common::{
    Anchor, DashType, ErrorData, ErrorType, Font, HoverInfo, Label, Line, LineShape, Marker as PlotlyMarker,
    MarkerSymbol, Mode, Orientation, Position, TextPosition, Title,
};
use plotly::layout::{
    Annotation, Axis as PlotlyAxis, AxisType, BarMode, HoverMode, Layout, Legend, Margin, Shape, ShapeLine, ShapeType,
};
use plotly::{Bar, Scatter, Trace};
use serde_json::{Value, json};

use crate::chart::{Axis, Chart, Figure, Mark, Point, Scale, Series};
use crate::error::{Error, Result};
use crate::palette::{GRID, INK, Marker};
use crate::text;
use crate::ticks::ticks;

const TITLE: f64 = 44.0;
const NOTE_LINE: f64 = 17.0;
const PANEL: f64 = 300.0;
/// Between rows of panels: marks, label, and the next one's title.
const BETWEEN: f64 = 95.0;
const LEGEND: f64 = 60.0;

impl Figure {
    /// The figure as plotly.js takes it: `data`, `layout` and `config`.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn plotly_json(&self) -> Result<Value> {
        self.try_json().map_err(|source| Error::Json { title: self.title.clone(), source })
    }

    fn try_json(&self) -> serde_json::Result<Value> {
        let rows = self.panels.len().div_ceil(2).max(1) as f64;
        let columns = if self.panels.len() > 1 { 2 } else { 1 };
        let top = TITLE + NOTE_LINE * self.note_lines().len() as f64 + if columns > 1 { 22.0 } else { 0.0 };
        let tick_lines = |chart: &Chart| chart.x.ticks.iter().map(|(_, text)| text.lines().count()).max().unwrap_or(1);
        let lines = self.panels.iter().map(tick_lines).max().unwrap_or(1);
        let below = 48.0 + 17.0 * lines as f64;
        let plots = rows * PANEL + (rows - 1.0) * BETWEEN;
        let height = top + plots + below + LEGEND;

        let mut layout = serde_json::to_value(self.layout(height, (top, below + LEGEND), below / plots))?;
        let mut data = Vec::new();
        let mut shapes = Vec::new();
        let mut annotations = Vec::new();
        let mut named: Vec<&str> = Vec::new();
        for (index, chart) in self.panels.iter().enumerate() {
            let number = if index == 0 { String::new() } else { (index + 1).to_string() };
            let (row, column) = ((index / 2) as f64, (index % 2) as f64);
            let highest = 1.0 - row * (PANEL + BETWEEN) / plots;
            let x_domain = if columns == 1 { [0.0, 1.0] } else { [column * 0.55, column * 0.55 + 0.45] };
            let y_domain = [(highest - PANEL / plots).max(0.0), highest];
            let (x_limits, y_limits) = chart.limits();
            let x_axis = axis(&chart.x, x_limits).domain(&x_domain).anchor(format!("y{number}"));
            let y_axis = axis(&chart.y, y_limits).domain(&y_domain).anchor(format!("x{number}"));
            layout[format!("xaxis{number}")] = serde_json::to_value(x_axis)?;
            layout[format!("yaxis{number}")] = serde_json::to_value(y_axis)?;

            for series in &chart.series {
                let first = !series.name.is_empty() && !named.contains(&series.name.as_str());
                if first {
                    named.push(&series.name);
                }
                data.push(serde_json::to_value(trace(chart, series, &number, first))?);
                if !matches!(series.mark, Mark::Bars(_)) && series.points.iter().any(|point| !point.label.is_empty()) {
                    data.push(serde_json::to_value(labels(chart, series, &number))?);
                }
            }
            for reference in &chart.references {
                let (from, to) = reference.span.unwrap_or(x_limits);
                let first = !reference.label.is_empty() && !named.contains(&reference.label.as_str());
                if first {
                    named.push(&reference.label);
                }
                let line = Scatter::new(vec![from, to], vec![reference.y; 2])
                    .name(escape(&reference.label))
                    .legend_group(escape(&reference.label))
                    .show_legend(first)
                    .mode(Mode::Lines)
                    .line(Line::new().color(INK.hex()).width(1.2).dash(DashType::Dash))
                    .x_axis(format!("x{number}"))
                    .y_axis(format!("y{number}"));
                data.push(serde_json::to_value(line)?);
            }
            if columns > 1 {
                let title = Annotation::new()
                    .text(format!("<b>{}</b>", escape(&chart.title)))
                    .show_arrow(false)
                    .x_ref("paper")
                    .y_ref("paper")
                    .x((x_domain[0] + x_domain[1]) / 2.0)
                    .y(highest)
                    .x_anchor(Anchor::Center)
                    .y_anchor(Anchor::Bottom);
                annotations.push(serde_json::to_value(title)?);
            }
            // The frame's left and lower side, as in the SVG.
            let corner = |x0: f64, y0: f64, x1: f64, y1: f64| {
                Shape::new()
                    .shape_type(ShapeType::Line)
                    .x_ref("paper")
                    .y_ref("paper")
                    .x0(x0)
                    .y0(y0)
                    .x1(x1)
                    .y1(y1)
                    .line(ShapeLine::new().color(INK.hex()).width(1.0))
            };
            shapes.push(serde_json::to_value(corner(x_domain[0], y_domain[0], x_domain[1], y_domain[0]))?);
            shapes.push(serde_json::to_value(corner(x_domain[0], y_domain[0], x_domain[0], y_domain[1]))?);
        }
        layout["annotations"] = Value::Array(annotations);
        layout["shapes"] = Value::Array(shapes);
        Ok(json!({ "data": data, "layout": layout, "config": { "responsive": true, "displaylogo": false } }))
    }

    fn layout(&self, height: f64, (top, bottom): (f64, f64), legend_below: f64) -> Layout {
        let notes: Vec<String> = self.note_lines().iter().map(|line| escape(line)).collect();
        let notes = if notes.is_empty() {
            String::new()
        } else {
            format!("<br><span style=\"font-size:12px;color:#6b737a\">{}</span>", notes.join("<br>"))
        };
        let title = Title::with_text(format!("<b>{}</b>{notes}", escape(&self.title)))
            .font(Font::new().size(16))
            .x(0.01)
            .x_anchor(Anchor::Left)
            .y(1.0 - 14.0 / height)
            .y_anchor(Anchor::Top);
        Layout::new()
            .title(title)
            .height(height as usize)
            .font(Font::new().family("Liberation Sans, Arial, Helvetica, sans-serif").size(13).color(INK.hex()))
            .margin(Margin::new().left(70).right(20).top(top as usize).bottom(bottom as usize))
            .paper_background_color("#ffffff")
            .plot_background_color("#ffffff")
            .hover_mode(HoverMode::Closest)
            .hover_label(Label::new().name_length(-1))
            .bar_mode(BarMode::Overlay)
            .legend(
                Legend::new()
                    .orientation(Orientation::Horizontal)
                    .x(0.0)
                    .x_anchor(Anchor::Left)
                    .y(-legend_below)
                    .y_anchor(Anchor::Top),
            )
    }
}

fn axis(axis: &Axis, (low, high): (f64, f64)) -> PlotlyAxis {
    let plotly = PlotlyAxis::new()
        .title(Title::with_text(escape(&axis.label)).font(Font::new().size(13)))
        .grid_color(GRID.hex())
        .zero_line(false)
        .range(vec![axis.place(low), axis.place(high)]);
    let plotly = if axis.scale == Scale::Linear { plotly } else { plotly.type_(AxisType::Log) };
    // plotly has no axis to the base of two, and writes 1e-4 as 100μ.
    if axis.ticks.is_empty() && axis.scale == Scale::Linear {
        return plotly;
    }
    let (values, texts) =
        ticks(axis, low, high, 8).into_iter().map(|(value, text)| (value, escape(&text))).collect::<(Vec<_>, Vec<_>)>();
    let named = axis.scale == Scale::Linear;
    plotly.tick_values(values).tick_text(texts).show_grid(!named)
}

fn trace(chart: &Chart, series: &Series, number: &str, in_legend: bool) -> Box<dyn Trace> {
    let points: Vec<&Point> = series.points.iter().filter(|point| chart.shows(point)).collect();
    let xs: Vec<f64> = points.iter().map(|point| point.x).collect();
    let ys: Vec<f64> = points.iter().map(|point| point.y).collect();
    let colour = series.style.colour.hex();
    let deviations = points.iter().any(|point| point.deviation > 0.0).then(|| {
        let bars = ErrorData::new(ErrorType::Data).array(points.iter().map(|point| point.deviation).collect());
        let colour = if matches!(series.mark, Mark::Bars(_)) { INK.hex() } else { colour.clone() };
        bars.color(colour).thickness(1.3).width(4)
    });
    let name = escape(&series.name);
    let (x_axis, y_axis) = (format!("x{number}"), format!("y{number}"));
    if let Mark::Bars(width) = series.mark {
        let mut bars = Bar::new(xs, ys)
            .name(&name)
            .legend_group(&name)
            .show_legend(in_legend)
            .width(width)
            .marker(PlotlyMarker::new().color(colour))
            .x_axis(x_axis)
            .y_axis(y_axis);
        if points.iter().any(|point| !point.label.is_empty()) {
            let labels = points.iter().map(|point| escape(&point.label)).collect();
            bars = bars.text_array(labels).text_position(TextPosition::Outside).clip_on_axis(false);
        }
        if let Some(deviations) = deviations {
            bars = bars.error_y(deviations);
        }
        return bars;
    }
    let mode = match series.mark {
        Mark::Line => Mode::Lines,
        Mark::LineAndMarkers => Mode::LinesMarkers,
        Mark::Markers | Mark::Bars(_) => Mode::Markers,
    };
    let symbol = match series.style.marker {
        Marker::Circle => MarkerSymbol::Circle,
        Marker::Square => MarkerSymbol::Square,
        Marker::Triangle => MarkerSymbol::TriangleUp,
        Marker::Diamond => MarkerSymbol::Diamond,
        Marker::Ring => MarkerSymbol::CircleOpen,
    };
    let dash = if series.dashed { DashType::Dash } else { DashType::Solid };
    let mut line = Scatter::new(xs, ys)
        .name(&name)
        .legend_group(&name)
        .show_legend(in_legend)
        .mode(mode)
        .marker(PlotlyMarker::new().color(colour.clone()).symbol(symbol).size_array(sizes(series, &points)))
        .line(Line::new().color(colour).width(1.8).dash(dash).shape(LineShape::Linear))
        .x_axis(x_axis)
        .y_axis(y_axis);
    if let Some(deviations) = deviations {
        line = line.error_y(deviations);
    }
    line
}

/// The diameters of the points' markers, whose areas go with the points' sizes.
fn sizes(series: &Series, points: &[&Point]) -> Vec<usize> {
    let usual = if series.style.marker == Marker::Ring { 6.0 } else { 8.0 };
    points.iter().map(|point| (usual * point.size.sqrt()).round() as usize).collect()
}

/// The texts above a series' points, clear of their whiskers.
fn labels(chart: &Chart, series: &Series, number: &str) -> Box<dyn Trace> {
    let points: Vec<&Point> = series.points.iter().filter(|point| chart.shows(point)).collect();
    let xs = points.iter().map(|point| point.x).collect();
    let ys = points.iter().map(|point| point.y + point.deviation).collect();
    Scatter::new(xs, ys)
        .legend_group(escape(&series.name))
        .show_legend(false)
        .mode(Mode::MarkersText)
        // Not to be seen: they keep the texts clear of those that are.
        .marker(PlotlyMarker::new().size_array(sizes(series, &points)).opacity(0.0))
        .text_array(points.iter().map(|point| escape(&point.label)).collect())
        .text_position(Position::TopCenter)
        .hover_info(HoverInfo::Skip)
        .x_axis(format!("x{number}"))
        .y_axis(format!("y{number}"))
}

/// plotly reads a few HTML tags in its texts.
fn escape(text: &str) -> String {
    text::escape(text).replace('\n', "<br>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::tests::example;

    #[test]
    fn the_json_holds_each_series_with_its_points_and_axes() {
        let json = example().plotly_json().unwrap();
        let data = json["data"].as_array().unwrap();
        assert_eq!(data.len(), 3);
        assert_eq!(data[0]["type"], "scatter");
        // The third point is not a number.
        assert_eq!(data[0]["x"], json!([1e-4, 1e-3]));
        assert_eq!(data[0]["y"], json!([0.5, 0.75]));
        assert_eq!(data[0]["error_y"]["array"], json!([0.0, 0.02]));
        assert_eq!((&data[2]["type"], &data[2]["xaxis"]), (&json!("bar"), &json!("x2")));
        assert_eq!(json["layout"]["xaxis"]["type"], "log");
        assert_eq!(json["layout"]["xaxis2"]["ticktext"], json!(["a<br>first", "b"]));
    }

    #[test]
    fn names_are_escaped_since_plotly_reads_tags() {
        let json = example().plotly_json().unwrap();
        assert_eq!(json["data"][0]["name"], "&lt;b&gt; &amp; co");
        let title = json["layout"]["title"]["text"].as_str().unwrap();
        assert!(title.starts_with("<b>Rates &lt;/script&gt; &amp; "), "{title}");
    }
}
