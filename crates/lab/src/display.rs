//! Display in the notebook: a value as one bundle of MIME types, of which each front end takes the one it can show.

use std::io::Write;

use crate::chart::Figure;

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

impl Figure {
    /// Called by the notebook when the figure is a cell's result. What runs or exports the notebook adds a still picture.
    pub fn evcxr_display(&self) {
        let words = self.describe();
        match self.plotly_json() {
            Ok(json) => {
                print_bundle(&[("application/vnd.plotly.v1+json", &json.to_string()), ("text/plain", &words)]);
            }
            Err(error) => print_bundle(&[("text/plain", &format!("{error}\n{words}"))]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_ends_in_a_line_end_and_only_at_its_own_end() {
        let block = block("text/plain", "a\nEVCXR_END_CONTENT\nb");
        assert!(block.starts_with("EVCXR_BEGIN_CONTENT text/plain\n") && block.ends_with("\nEVCXR_END_CONTENT\n"));
        assert_eq!(block.lines().filter(|line| *line == "EVCXR_END_CONTENT").count(), 1);
    }
}
