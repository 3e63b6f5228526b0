//! Tables as a notebook shows them: HTML and aligned text.

use comfy_table::CellAlignment;
use polars::prelude::{AnyValue, DataFrame};

use crate::display::print_bundle;
use crate::text::{cut, escape};

/// Longer texts are cut, with an ellipsis.
const LONGEST_TEXT: usize = 160;

/// Texts up to this length stay on one line.
const SHORT_TEXT: usize = 18;

/// A table as a notebook shows it: HTML, escaped, and plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// A table without rows.
    pub fn new<S: ToString>(columns: impl IntoIterator<Item = S>) -> Self {
        let columns = columns.into_iter().map(|column| column.to_string()).collect();
        Self { columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// The first `rows` rows of a frame.
    pub fn from_frame(frame: &DataFrame, rows: usize) -> Self {
        let mut table = Self::new(frame.get_column_names());
        for row in 0..rows.min(frame.height()) {
            let cell = |column: &polars::prelude::Column| match column.get(row) {
                Ok(AnyValue::String(text)) => text.to_string(),
                Ok(AnyValue::StringOwned(text)) => text.to_string(),
                Ok(value) => value.to_string(),
                Err(_) => String::new(),
            };
            table.push(frame.columns().iter().map(cell));
        }
        table
    }

    /// Adds a row.
    pub fn push<S: ToString>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| cut(&cell.to_string(), LONGEST_TEXT)).collect());
    }

    /// Adds a row whose texts are shown whole.
    pub fn push_long<S: ToString>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| cell.to_string()).collect());
    }

    /// Adds a line under the table, once.
    pub fn note(&mut self, note: impl ToString) {
        let note = note.to_string();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Whether every cell of a column that holds something is a number, perhaps with a unit or a spread.
    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some()
            && cells.all(|cell| {
                cell.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '–') && !cell.contains(", ")
            })
    }

    /// Whether no cell of a column is worth a second line.
    fn is_short(&self, column: usize) -> bool {
        self.rows.iter().filter_map(|row| row.get(column)).all(|cell| cell.chars().count() <= SHORT_TEXT)
    }

    /// The table as HTML.
    pub fn to_html(&self) -> String {
        let class = |column| match (self.is_numeric(column), self.is_short(column)) {
            (true, _) => " class=\"number\"",
            (false, true) => " class=\"short\"",
            (false, false) => "",
        };
        let cells = |tag: &str, row: &[String]| -> String {
            let cell = |(column, text): (usize, &String)| format!("<{tag}{}>{}</{tag}>", class(column), escape(text));
            row.iter().enumerate().map(cell).collect()
        };
        let rows: String = self.rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
        let notes: String = self.notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))).collect();
        format!(
            "<div class=\"lab-table\">{STYLE}<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{rows}</tbody></table>\n{notes}</div>",
            cells("th", &self.columns)
        )
    }

    /// The table as aligned text.
    pub fn to_text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING).set_header(&self.columns).add_rows(&self.rows);
        for (index, column) in table.column_iter_mut().enumerate() {
            let alignment = if self.is_numeric(index) { CellAlignment::Right } else { CellAlignment::Left };
            column.set_padding((0, 2)).set_cell_alignment(alignment);
        }
        let lines = table.lines().map(|line| line.trim_end().to_string());
        lines.chain(self.notes.iter().cloned()).collect::<Vec<_>>().join("\n")
    }

    /// Called by the notebook when the table is a cell's result.
    pub fn evcxr_display(&self) {
        print_bundle(&[("text/html", &self.to_html()), ("text/plain", &self.to_text())]);
    }
}

const STYLE: &str = "<style>.lab-table table{border-collapse:collapse}.lab-table th,.lab-table td{text-align:left;\
                     vertical-align:top;padding:.25em .7em;border-bottom:1px solid #ddd}.lab-table .number{text-align:right}\
                     .lab-table .number,.lab-table .short{white-space:nowrap}.lab-table .note{font-size:.85em;margin:.3em 0}</style>";

#[cfg(test)]
mod tests {
    use polars::prelude::{Column, DataFrame};

    use super::*;

    #[test]
    fn a_small_table_reads_as_aligned_text() {
        let mut table = Table::new(["task", "rows"]);
        table.push(["MRPC", "408"]);
        table.push(["SST-2", "1821"]);
        table.note("a note");
        table.note("a note");
        assert_eq!(table.to_text(), "task   rows\nMRPC    408\nSST-2  1821\na note");
    }

    #[test]
    fn text_from_a_data_set_is_escaped_and_cut() {
        let texts = ["<script>alert(1)</script> & more".to_string(), "x".repeat(500)];
        let frame = DataFrame::new(2, vec![Column::new("<b>".into(), &texts[..])]).unwrap();
        let html = Table::from_frame(&frame, 5).to_html();
        assert!(
            html.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; more") && html.contains(">&lt;b&gt;</th>"),
            "{html}"
        );
        assert!(!html.contains("<script>") && html.contains('…') && !html.contains(&"x".repeat(200)));
    }
}
