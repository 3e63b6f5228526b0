//! A chart as plotly.js takes it: traces, and a layout of panels, axes, title, notes and legend.

use plotly::common::{DashType, ErrorData, ErrorType, Line, Marker, Mode, Position, TextPosition};
use plotly::{Bar, Scatter};
use serde_json::{Value, json};

use crate::chart::{Axis, Chart, Figure, Mark, Point, Reference, Scale, Series};
use crate::error::{Error, Result};
use crate::palette::{GRAY, GRID, INK};

/// The width that pictures are made for, in pixels: that of a column of text.
const WIDTH: usize = 700;
// Heights in pixels, since plotly gives a legend and notes no room of their own below and above the panels.
const TITLE: usize = 46;
const NOTE_LINE: usize = 17;
const PANEL_TITLE: usize = 24;
const PANEL: usize = 250;
const TICK_LINE: usize = 16;
const AXIS_LABEL: usize = 26;
const LEGEND_ROW: usize = 20;
/// Left of the panels and right of them.
const SIDES: (usize, usize) = (66, 14);
/// About the width of a character, in a text of the usual size.
const CHARACTER: usize = 7;
/// In a legend, the width of what stands before and after a name.
const LEGEND_SAMPLE: usize = 55;

impl Figure {
    /// The figure as plotly.js takes it: `data`, `layout` and `config`.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn plotly_json(&self) -> Result<Value> {
        let mut data = Vec::new();
        let mut listed = Vec::new();
        for (index, chart) in self.panels.iter().enumerate() {
            for series in &chart.series {
                let trace = trace(chart, series, &axis_number(index), is_new(&mut listed, &series.name));
                data.push(trace.map_err(|source| Error::Json { title: self.title.clone(), source })?);
            }
        }
        let layout = self.layout(&mut listed);
        Ok(json!({ "data": data, "layout": layout, "config": { "responsive": true, "displaylogo": false } }))
    }

    fn layout<'a>(&'a self, listed: &mut Vec<&'a str>) -> Value {
        let room = Room::of(self);
        let points = self.panels.iter().flat_map(|chart| &chart.series).flat_map(|series| &series.points);
        let sizes_differ = points.map(|point| point.size).any(|size| size > 1.0);
        let (left, right) = SIDES;
        let mut layout = json!({
            "title": {
                "text": format!("<b>{}</b>", plain(&self.title)), "font": { "size": 15 },
                "subtitle": { "text": plain(&self.note_lines().join("\n")), "font": { "size": 12, "color": GRAY } },
                "x": 0.01, "xanchor": "left", "y": 1, "yanchor": "top", "pad": { "t": 10 },
            },
            "height": room.height(),
            "margin": { "l": left, "r": right, "t": room.above, "b": room.below + room.legend },
            "font": { "family": "Liberation Sans, Arial, Helvetica, sans-serif", "size": 12, "color": INK },
            "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff",
            "hovermode": "closest", "hoverlabel": { "namelength": -1 },
            "barmode": "overlay", "bargap": 0.4,
            "grid": {
                "rows": room.rows, "columns": room.columns, "pattern": "independent",
                "xgap": 0.22, "ygap": room.between as f64 / (PANEL + room.between) as f64,
            },
            "legend": {
                "orientation": "h",
                // Marks of one size where the chart's sizes mean something; lines would be too thick.
                "itemsizing": if sizes_differ { "constant" } else { "trace" },
                "x": 0, "xanchor": "left", "y": -(room.below as f64 / room.panels() as f64), "yanchor": "top",
            },
        });
        let mut shapes = Vec::new();
        let mut titles = Vec::new();
        for (index, chart) in self.panels.iter().enumerate() {
            let number = axis_number(index);
            layout[format!("xaxis{number}")] = axis(&chart.x, room.columns);
            layout[format!("yaxis{number}")] = axis(&chart.y, room.columns);
            if let Some((low, high)) = y_range(chart) {
                layout[format!("yaxis{number}")]["range"] = json!([low, high]);
            }
            shapes.extend(chart.references.iter().map(|line| reference(line, &number, is_new(listed, &line.label))));
            if room.columns > 1 {
                titles.push(panel_title(chart, &number));
            }
        }
        layout["shapes"] = Value::Array(shapes);
        layout["annotations"] = Value::Array(titles);
        layout
    }

    /// The notes in lines as wide as the figure.
    fn note_lines(&self) -> Vec<String> {
        let lines = |note: &String| textwrap::wrap(note, 115).into_iter().map(String::from).collect::<Vec<_>>();
        self.all_notes().iter().flat_map(lines).collect()
    }
}

/// The heights of a figure's parts, and how its panels are arranged.
struct Room {
    rows: usize,
    columns: usize,
    above: usize,
    /// From a row of panels to the next.
    between: usize,
    /// From the last row to the legend.
    below: usize,
    legend: usize,
}

impl Room {
    fn of(figure: &Figure) -> Self {
        let columns = if figure.panels.len() > 1 { 2 } else { 1 };
        let panel_title = if columns > 1 { PANEL_TITLE } else { 0 };
        let axis = |chart: &Chart| {
            let label = if chart.x.label.is_empty() { 0 } else { AXIS_LABEL };
            8 + TickTexts::of(&chart.x, columns).height() + label
        };
        let below = figure.panels.iter().map(axis).max().unwrap_or(0);
        // As plotly arranges a legend: entry by entry, a new row where one does not fit.
        let legend = figure.legend();
        let (mut rows, mut x) = (usize::from(!legend.is_empty()), 0);
        for name in &legend {
            let width = LEGEND_SAMPLE + CHARACTER * name.chars().count();
            (rows, x) =
                if x > 0 && x + width > WIDTH - SIDES.0 - SIDES.1 { (rows + 1, width) } else { (rows, x + width) };
        }
        Self {
            rows: figure.panels.len().div_ceil(2).max(1),
            columns,
            above: TITLE + NOTE_LINE * figure.note_lines().len() + panel_title,
            between: below + panel_title + 12,
            below: below + 4,
            legend: LEGEND_ROW * rows + 8,
        }
    }

    /// All rows of panels, and what is between them.
    fn panels(&self) -> usize {
        self.rows * PANEL + (self.rows - 1) * self.between
    }

    fn height(&self) -> usize {
        self.above + self.panels() + self.below + self.legend
    }
}

/// plotly numbers the axes `x`, `x2`, `x3`, and so on.
fn axis_number(index: usize) -> String {
    if index == 0 { String::new() } else { (index + 1).to_string() }
}

/// Whether the legend is to list a name: at its first series.
fn is_new<'a>(listed: &mut Vec<&'a str>, name: &'a str) -> bool {
    let is_new = !name.is_empty() && !listed.contains(&name);
    if is_new {
        listed.push(name);
    }
    is_new
}

fn axis(axis: &Axis, columns: usize) -> Value {
    let mut json = json!({
        "title": { "text": plain(&axis.label), "standoff": 8, "font": { "size": 13 } },
        "gridcolor": GRID, "zeroline": false, "showline": true, "linecolor": GRAY,
    });
    if axis.scale == Scale::Log {
        json["type"] = json!("log");
        // Powers of ten, not 100μ, and between them 2 and 5 where there is room.
        json["exponentformat"] = json!("power");
        json["nticks"] = json!(if columns > 1 { 4 } else { 5 });
    }
    if axis.scale == Scale::Categories {
        // Names need no line of the grid, and the same room around each.
        json["showgrid"] = json!(false);
        json["range"] = json!([-0.5, axis.ticks.len() as f64 - 0.5]);
    }
    if !axis.ticks.is_empty() {
        let texts = TickTexts::of(axis, columns);
        json["tickvals"] = axis.ticks.iter().map(|(value, _)| *value).collect();
        json["ticktext"] = texts.texts.iter().map(|text| plain(text)).collect();
        json["tickangle"] = json!(if texts.upright { -90 } else { 0 });
        json["tickfont"] = json!({ "size": if axis.ticks.len() > 8 { 10 } else { 12 } });
    }
    json
}

/// The texts at an axis's own marks: in lines that leave room for the neighbors, or upright where there is none.
struct TickTexts {
    texts: Vec<String>,
    upright: bool,
}

impl TickTexts {
    fn of(axis: &Axis, columns: usize) -> Self {
        let characters = (WIDTH - SIDES.0) / columns / axis.ticks.len().max(1) / CHARACTER;
        let lines = || textwrap::Options::new(characters).break_words(false);
        let upright = axis.scale == Scale::Categories && characters < 7;
        let text = |(_, text): &(f64, String)| if upright { text.clone() } else { textwrap::fill(text, lines()) };
        Self { texts: axis.ticks.iter().map(text).collect(), upright }
    }

    fn height(&self) -> usize {
        let texts = self.texts.iter();
        match self.upright {
            true => CHARACTER * texts.map(|text| text.chars().count()).max().unwrap_or(0),
            false => TICK_LINE * texts.map(|text| text.lines().count()).max().unwrap_or(1),
        }
    }
}

/// From where to where a linear vertical axis goes, with room around reference lines and for texts, where plotly leaves none. `None` leaves
/// it to plotly: bars stand on zero, and no values tell no range.
fn y_range(chart: &Chart) -> Option<(f64, f64)> {
    let has_bars = chart.series.iter().any(|series| series.mark == Mark::Bars);
    if chart.y.scale != Scale::Linear || has_bars {
        return None;
    }
    let points = chart.series.iter().flat_map(|series| &series.points).filter(|point| chart.shows(point));
    let ends = points.flat_map(|point| [point.y - point.deviation, point.y + point.deviation]);
    let values: Vec<f64> = ends.chain(chart.references.iter().map(|line| line.y)).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let room = if high > low { high - low } else { 0.1 };
    (high >= low).then_some((low - 0.06 * room, high + 0.12 * room))
}

fn panel_title(chart: &Chart, number: &str) -> Value {
    json!({
        "text": format!("<b>{}</b>", plain(&chart.title)), "showarrow": false,
        "xref": format!("x{number} domain"), "x": 0.5, "xanchor": "center",
        "yref": format!("y{number} domain"), "y": 1, "yanchor": "bottom",
    })
}

fn reference(line: &Reference, number: &str, in_legend: bool) -> Value {
    let (x_axis, (from, to)) = match line.span {
        Some(span) => (format!("x{number}"), span),
        None => (format!("x{number} domain"), (0.0, 1.0)),
    };
    json!({
        "type": "line", "line": { "color": INK, "width": 1.2, "dash": "5px,4px" },
        "xref": x_axis, "x0": from, "x1": to, "yref": format!("y{number}"), "y0": line.y, "y1": line.y,
        "name": plain(&line.label), "legendgroup": plain(&line.label), "showlegend": in_legend,
    })
}

fn trace(chart: &Chart, series: &Series, number: &str, in_legend: bool) -> serde_json::Result<Value> {
    let points: Vec<&Point> = series.points.iter().filter(|point| chart.shows(point)).collect();
    let (xs, ys): (Vec<f64>, Vec<f64>) = points.iter().map(|point| (point.x, point.y)).unzip();
    let (name, color) = (plain(&series.name), series.style.color);
    let (x_axis, y_axis) = (format!("x{number}"), format!("y{number}"));
    let labels: Vec<String> = points.iter().map(|point| plain(&point.label)).collect();
    let mode = match series.mark {
        Mark::Bars => {
            let bars =
                Bar::new(xs, ys).name(&name).legend_group(&name).show_legend(in_legend).x_axis(x_axis).y_axis(y_axis);
            let bars = bars.text_array(labels).text_position(TextPosition::Outside).clip_on_axis(false);
            return serde_json::to_value(bars.marker(Marker::new().color(color)));
        }
        Mark::Line => Mode::Lines,
        Mark::LineAndMarkers => Mode::LinesMarkers,
        Mark::Markers if labels.iter().all(String::is_empty) => Mode::Markers,
        Mark::Markers => Mode::MarkersText,
    };
    let marker = Marker::new().color(color).symbol(series.style.symbol.clone()).opacity(1.0);
    let scatter = Scatter::new(xs, ys)
        .name(&name)
        .legend_group(&name)
        .show_legend(in_legend)
        .mode(mode)
        .marker(marker.size_array(points.iter().map(|point| diameter(point)).collect()))
        .line(Line::new().color(color).width(1.8).dash(DashType::Solid))
        .x_axis(x_axis)
        .y_axis(y_axis)
        // Beside the error bar.
        .text_array(labels)
        .text_position(Position::TopLeft);
    let scatter = if points.iter().any(|point| point.deviation > 0.0) {
        let deviations = points.iter().map(|point| point.deviation).collect();
        scatter.error_y(ErrorData::new(ErrorType::Data).array(deviations).color(color).thickness(1.3).width(4))
    } else {
        scatter
    };
    serde_json::to_value(scatter)
}

/// The diameter of a marker whose area goes with the point's size.
fn diameter(point: &Point) -> usize {
    (9.0 * point.size.sqrt()).round() as usize
}

/// Text that is shown as it stands: plotly reads a few HTML tags and entities.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\n', "<br>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::tests::example;

    #[test]
    fn the_json_holds_each_series_with_its_points_and_axes() {
        let json = example().plotly_json().unwrap();
        let data = json["data"].as_array().unwrap();
        assert_eq!((data.len(), &data[0]["type"]), (2, &json!("scatter")));
        // The third point is not a number.
        assert_eq!(data[0]["x"], json!([1e-4, 1e-3]));
        assert_eq!(data[0]["y"], json!([0.5, 0.75]));
        assert_eq!(data[0]["error_y"]["array"], json!([0.0, 0.02]));
        assert_eq!((&data[1]["type"], &data[1]["xaxis"]), (&json!("bar"), &json!("x2")));
        let layout = &json["layout"];
        assert_eq!((&layout["xaxis"]["type"], &layout["shapes"][0]["y0"]), (&json!("log"), &json!(0.8)));
        assert_eq!(layout["xaxis2"]["ticktext"], json!(["a<br>first", "b"]));
    }

    #[test]
    fn names_are_escaped_since_plotly_reads_tags() {
        let json = example().plotly_json().unwrap();
        assert_eq!(json["data"][0]["name"], "&lt;b&gt; &amp; co");
        let title = json["layout"]["title"]["text"].as_str().unwrap();
        assert_eq!(title, "<b>Rates &lt;/script&gt; &amp; \"more\"</b>");
    }

    #[test]
    fn the_legend_lists_a_name_at_its_first_series_only() {
        let json = example().panel(example().panels.remove(0)).plotly_json().unwrap();
        let shown: Vec<&Value> = json["data"].as_array().unwrap().iter().map(|trace| &trace["showlegend"]).collect();
        assert_eq!(shown, [&json!(true), &json!(true), &json!(false)]);
        let lines: Vec<&Value> =
            json["layout"]["shapes"].as_array().unwrap().iter().map(|line| &line["showlegend"]).collect();
        assert_eq!(lines, [&json!(true), &json!(false)]);
    }

    #[test]
    fn the_vertical_axis_has_room_around_scores_deviations_and_the_baseline() {
        let (low, high) = y_range(&example().panels[0]).unwrap();
        assert!(low < 0.5 && high > 0.8);
        assert_eq!(y_range(&example().panels[1]), None);
        let single = Series::new("", Mark::Markers, crate::Style::indexed(0), vec![Point::new(1.0, 0.5)]);
        let (low, high) = y_range(&Chart::new("", Axis::new("x"), Axis::new("y")).series(single)).unwrap();
        assert!(0.4 < low && low < 0.5 && 0.5 < high && high < 0.6);
    }

    #[test]
    fn names_without_room_beside_each_other_stand_upright() {
        let upright = |count: usize| TickTexts::of(&Axis::categories("", vec!["Full fine-tuning"; count]), 2).upright;
        assert_eq!([upright(3), upright(9)], [false, true]);
        let names = TickTexts::of(&Axis::categories("", ["Full fine-tuning", "BitFit", "LoRA r=8"]), 2).texts;
        assert_eq!(names[0], "Full fine-\ntuning");
    }

    #[test]
    fn long_notes_and_long_legends_make_a_figure_higher_and_not_its_panels_lower() {
        let height = |figure: &Figure| figure.plotly_json().unwrap()["layout"]["height"].as_u64().unwrap();
        let long = example().note("a word ".repeat(40));
        assert_eq!(height(&long), height(&example()) + 3 * NOTE_LINE as u64);
        let mut many = example();
        for index in 0..12 {
            many.panels[0].series.push(Series::new(
                format!("the method {index}"),
                Mark::Line,
                crate::Style::indexed(index),
                vec![],
            ));
        }
        assert!(height(&many) > height(&example()));
    }
}
