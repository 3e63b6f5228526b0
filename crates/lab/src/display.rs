//! How a value reaches the notebook: one bundle of MIME types, from which each front end takes the form it can show.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::chart::Figure;
use crate::error::Result;

/// Prints a bundle as evcxr's protocol wants it. All of it is written at once and ends a line: a line left open, or another
/// thread's output in between, would break the cell.
pub(crate) fn print_bundle(forms: &[(&str, &str)]) {
    let blocks: String = forms.iter().map(|(mime, content)| block(mime, content)).collect();
    let mut output = std::io::stdout().lock();
    // A notebook that has gone away has nobody to show an error to.
    let _ = output.write_all(blocks.as_bytes()).and_then(|()| output.flush());
}

/// One form of a bundle. Data that holds the protocol's own marks does not end it.
fn block(mime: &str, content: &str) -> String {
    let content = content.replace("EVCXR_", "EVCXR\u{200b}_");
    format!("EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT\n")
}

/// JSON that may stand inside a `<script>`.
pub(crate) fn escape_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// An id that no other chart of the page has, not even one left there by an earlier kernel; a notebook run again has the
/// same ones.
fn unique_id(content: &str) -> String {
    static FIGURES: AtomicUsize = AtomicUsize::new(1);
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("lab-chart-{:08x}-{}", hasher.finish() as u32, FIGURES.fetch_add(1, Ordering::Relaxed))
}

impl Figure {
    /// The figure as HTML: its still image, which plotly.js replaces where the page has it. Since a front end may draw what is in
    /// sight first, it waits ten seconds for plotly.js.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub fn to_html(&self) -> Result<String> {
        let json = escape_script(&self.plotly_json()?.to_string());
        let id = unique_id(&json);
        Ok(format!(
            "<div class=\"lab-chart\" id=\"{id}\">{}</div>\n<script>(function(){{var figure={json},tries=50;\
             (function draw(){{var chart=document.getElementById(\"{id}\");\
             if(!chart||!window.Plotly){{if(--tries>0)setTimeout(draw,200);return;}}\
             chart.innerHTML=\"\";Plotly.newPlot(chart,figure.data,figure.layout,figure.config);}})();}})();</script>",
            self.svg()?
        ))
    }

    /// Called by the notebook when the figure is a cell's result.
    pub fn evcxr_display(&self) {
        let forms = || -> Result<[String; 3]> { Ok([self.plotly_json()?.to_string(), self.to_html()?, self.svg()?]) };
        match forms() {
            Ok([json, html, svg]) => print_bundle(&[
                ("application/vnd.plotly.v1+json", &json),
                ("text/html", &html),
                ("image/svg+xml", &svg),
                ("text/plain", &self.describe()),
            ]),
            Err(error) => print_bundle(&[("text/plain", &format!("{error}\n{}", self.describe()))]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::{Axis, Chart, Mark, Point, Series};
    use crate::palette::Style;
    use crate::text::escape;

    fn figure(name: &str) -> Figure {
        let points = vec![Point::new(1.0, 0.5), Point::new(2.0, f64::NAN), Point::new(3.0, 0.75)];
        let series = Series::new(name, Mark::LineAndMarkers, Style::numbered(0), points);
        let chart = Chart::new("", Axis::new("step"), Axis::new("loss")).series(series);
        Figure::new("A <b>title</b> & more").panel(chart)
    }

    #[test]
    fn markup_in_data_is_shown_and_not_obeyed() {
        assert_eq!(escape("<script>\"a\" & 'b'"), "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;");
        let json = escape_script("{\"a\":\"</script><!--\u{2028}\"}");
        assert!(!json.contains('<') && !json.contains('\u{2028}'));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["a"], "</script><!--\u{2028}");
    }

    #[test]
    fn a_figure_is_valid_xml_and_valid_json_whatever_its_names() {
        let figure = figure("</script><script>alert('1')</script> & \"x\"");
        let svg = figure.svg().unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert!(document.descendants().all(|node| !node.has_tag_name("script")), "{svg}");
        let json = figure.plotly_json().unwrap();
        assert!(json["data"].is_array() && json["layout"].is_object());
        let html = figure.to_html().unwrap();
        assert_eq!(html.matches("<script>").count(), 1, "{html}");
    }

    #[test]
    fn a_block_ends_in_a_line_end_and_only_at_its_own_end() {
        let block = block("text/plain", "a\nEVCXR_END_CONTENT\nb");
        assert!(block.starts_with("EVCXR_BEGIN_CONTENT text/plain\n") && block.ends_with("\nEVCXR_END_CONTENT\n"));
        assert_eq!(block.lines().filter(|line| *line == "EVCXR_END_CONTENT").count(), 1);
    }

    #[test]
    fn figures_of_a_page_have_ids_of_their_own() {
        let id = |html: String| html.split("id=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_string();
        assert_ne!(id(figure("a").to_html().unwrap()), id(figure("a").to_html().unwrap()));
    }

    #[test]
    fn a_value_that_is_not_a_number_is_left_out_and_counted() {
        assert!(figure("a").describe().contains("1 value is left out"), "{}", figure("a").describe());
    }
}
