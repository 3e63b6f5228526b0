//! Tree of a model's trained and frozen parameters, as HTML whose modules can be closed.

use peft::{TrainableTree, TreeParameter, thousands};

use crate::display::print_bundle;
use crate::text::escape;

/// A [`TrainableTree`] as a notebook shows it: as HTML whose modules can be closed, and as plain text.
///
/// ```text
/// Tree::new(trainer.untrained_model(&run)?.trainable_tree())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree(TrainableTree);

impl Tree {
    /// The tree to show.
    pub fn new(tree: TrainableTree) -> Self {
        Self(tree)
    }

    /// The tree as HTML. What is trained is bold.
    pub fn to_html(&self) -> String {
        format!("<div class=\"lab-tree\">{STYLE}{}</div>", module(&self.0, 1))
    }

    /// Called by the notebook when the tree is a cell's result.
    pub fn evcxr_display(&self) {
        print_bundle(&[("text/html", &self.to_html()), ("text/plain", &self.0.to_string())]);
    }
}

/// A module of so many equal ones around it.
fn module(tree: &TrainableTree, times: usize) -> String {
    let name = if tree.name.is_empty() { "model" } else { &tree.name };
    let parameters: Vec<String> = tree.parameters.iter().map(parameter).collect();
    let (trained, all) = (times * tree.trainable(), times * tree.count());
    let class = if trained > 0 { "trained" } else { "frozen" };
    let line = format!(
        "<span class=\"{class}\">{}</span> {} <span class=\"count\">{} of {}</span>",
        escape(name),
        parameters.join(", "),
        thousands(trained),
        thousands(all)
    );
    if tree.modules.is_empty() {
        return format!("<div>{line}</div>\n");
    }
    let within: String = tree.modules.iter().map(|within| module(within, times * tree.times)).collect();
    // Open, so that a page on paper shows all.
    format!("<details open><summary>{line}</summary>\n{within}</details>\n")
}

fn parameter(parameter: &TreeParameter) -> String {
    let class = if parameter.is_trained { "trained" } else { "frozen" };
    format!("<span class=\"{class}\">{} {}</span>", escape(&parameter.name), escape(&format!("{:?}", parameter.shape)))
}

const STYLE: &str = "<style>.lab-tree{font-family:monospace;font-size:.9em}.lab-tree details>div,.lab-tree details>details\
                     {margin-left:1.4em}.lab-tree .trained{font-weight:bold}.lab-tree .frozen{opacity:.75}\
                     .lab-tree .count{float:right;opacity:.75}</style>";

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &str) -> TrainableTree {
        let weight = TreeParameter { name: "<weight>".into(), shape: vec![3, 1000], is_trained: true };
        let frozen = TreeParameter { name: "bias".into(), shape: vec![3], is_trained: false };
        let inner = TrainableTree { name: name.into(), parameters: vec![weight, frozen], modules: vec![], times: 1 };
        let layers = TrainableTree { name: "layer.0-1".into(), parameters: vec![], modules: vec![inner], times: 2 };
        TrainableTree { name: String::new(), parameters: vec![], modules: vec![layers], times: 1 }
    }

    #[test]
    fn names_are_shown_and_not_obeyed() {
        let html = Tree::new(tree("<script>alert(1)</script>")).to_html();
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{html}");
        assert!(html.contains("<span class=\"trained\">&lt;weight&gt; [3, 1000]</span>"), "{html}");
        assert_eq!(html.matches("<details").count(), html.matches("</details>").count());
    }

    #[test]
    fn equal_modules_are_counted_as_often_as_they_are_there() {
        let html = Tree::new(tree("query")).to_html();
        assert_eq!(html.matches("6,000 of 6,006").count(), 3, "{html}");
    }
}
