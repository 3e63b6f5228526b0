//! One split of one task.

use std::collections::BTreeSet;
use std::fmt;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataFrame, IntoColumn, StringChunked, StringChunkedBuilder};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metrics::Targets;
use crate::task::{Split, Task};
use crate::tsv::{self, Line, Lines};

/// A split in a polars frame.
///
/// Columns: `index` (i64, the row in its file from 0, left-out rows counted; of a test set the number that the file itself gives the row, by
/// which a submission names it, also where only a part of the rows is here), `sentence1` and for pairs `sentence2` (strings), and where there are labels `label` (i64 class id, or f64 score) and for classes `label_name`.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The task.
    pub task: Task,
    /// The split.
    pub split: Split,
    /// The rows.
    pub frame: DataFrame,
    /// How many rows there are, and how many the official file has.
    pub completeness: Completeness,
    /// Lines left out because a field was missing: of QQP's training file, where line breaks inside questions tore about
    /// 20 rows apart and two have no second question; never of another.
    pub dropped: usize,
    /// The file.
    pub path: PathBuf,
}

/// Text of one example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The sentence, or the first of two.
    pub first: String,
    /// The second.
    pub second: Option<String>,
}

/// Rows found against rows of the official file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completeness {
    /// Rows found. As in the official count, QQP's training rows with an empty question are among them, torn lines are not.
    pub found: usize,
    /// Rows of the official file; none for the synthetic task.
    pub official: Option<usize>,
    /// Rows beside those found that are not GLUE's; none but with [`Glue::load_with_extra`](crate::Glue::load_with_extra).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<usize>,
}

impl Completeness {
    /// Whether the rows are not those of the official file, so that a score does not compare with a published one.
    pub fn is_partial(&self) -> bool {
        self.extra.is_some() || self.official.is_some_and(|official| official != self.found)
    }

    /// All rows: those found and those that are not GLUE's.
    pub fn rows(&self) -> usize {
        self.found + self.extra.unwrap_or(0)
    }
}

impl fmt::Display for Completeness {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.official {
            Some(official) if official != self.found => write!(f, "{} of {official} (partial)", self.found)?,
            _ => write!(f, "{}", self.found)?,
        }
        match self.extra {
            Some(extra) => write!(f, ", and {extra} rows that are not GLUE's"),
            None => Ok(()),
        }
    }
}

impl Dataset {
    /// How many rows.
    pub fn len(&self) -> usize {
        self.frame.height()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The texts, in order.
    ///
    /// # Errors
    /// When the frame was changed and lacks its columns.
    pub fn examples(&self) -> Result<Vec<Example>> {
        self.examples_of(0..self.len())
    }

    /// The texts of these rows, counted from 0, in their order; a row that is not there has none.
    ///
    /// # Errors
    /// When the frame was changed and lacks its columns.
    pub fn examples_of(&self, rows: impl IntoIterator<Item = usize>) -> Result<Vec<Example>> {
        let text = |column: &StringChunked, row| column.get(row).unwrap_or_default().to_string();
        let first = self.frame.column("sentence1")?.str()?;
        let second = if self.task.has_pairs() { Some(self.frame.column("sentence2")?.str()?) } else { None };
        let example = |row| Example { first: text(first, row), second: second.map(|second| text(second, row)) };
        Ok(rows.into_iter().filter(|&row| row < self.len()).map(example).collect())
    }

    /// The rows' indices, in order.
    ///
    /// # Errors
    /// When the frame was changed and lacks them.
    pub fn index(&self) -> Result<Vec<i64>> {
        Ok(self.frame.column("index")?.i64()?.iter().flatten().collect())
    }

    /// The labels, in order; `None` for a split without.
    ///
    /// # Errors
    /// When the frame was changed and its labels are of another type.
    pub fn targets(&self) -> Result<Option<Targets>> {
        let Ok(column) = self.frame.column("label") else { return Ok(None) };
        Ok(Some(if self.task.is_regression() {
            Targets::Values(column.f64()?.iter().flatten().collect())
        } else {
            Targets::Classes(column.i64()?.iter().flatten().map(|id| id as usize).collect())
        }))
    }

    /// Puts rows that are not GLUE's after the rows there are.
    pub(crate) fn append_extra(&mut self, extra: Self) -> Result<()> {
        self.completeness.extra = Some(extra.len());
        self.dropped += extra.dropped;
        self.frame.vstack_mut(&extra.frame)?;
        Ok(())
    }

    /// Reads the file of a split, line by line.
    pub(crate) fn read(task: Task, split: Split, path: &Path, file: impl BufRead) -> Result<Self> {
        let mut lines = Lines::new(path, file);
        let labeled = matches!(split, Split::Train | Split::Validation | Split::ValidationMismatched);
        let format = if task == Task::Cola && labeled {
            Format::cola()
        } else {
            let Some(header) = lines.next()? else { return Err(lines.missing("rows", "an empty file")) };
            Format::from_header(task, labeled, path, &header)?
        };
        let mut rows = Rows::new(task, format);
        let mut own = (!labeled).then(OwnIndex::default);
        let (mut torn, mut without_question, mut index) = (0, 0, 0);
        while let Some(line) = lines.next()? {
            index += 1;
            // Official files may lack the last line's end, so that alone is no error.
            if task == Task::Qqp && split == Split::Train && !line.is_open {
                if rows.format.is_torn(&line) {
                    torn += 1;
                    continue;
                }
                if rows.format.empty_sentence(&line).is_some() {
                    without_question += 1;
                    continue;
                }
            }
            if let Some(own) = &mut own {
                own.push(&rows.format, &line);
            }
            let is_open = line.is_open;
            rows.push(split, path, index - 1, &line).map_err(|error| match error {
                Error::Line { path, line, expected, found } if is_open => {
                    Error::Line { path, line, expected, found: format!("{found} in a truncated last line") }
                }
                other => other,
            })?;
        }
        if rows.index.is_empty() {
            return Err(match index {
                0 if task == Task::Cola && labeled => lines.missing("rows", "an empty file"),
                _ => lines.missing("rows after the header", "none that is whole"),
            });
        }
        // The official 363846 rows of QQP's training file count the rows without a question and not the torn lines
        // (huggingface/datasets issue 277 gives the rows of both).
        let found = rows.index.len() + without_question;
        let completeness = Completeness { found, official: task.official_rows(split), extra: None };
        let dropped = torn + without_question;
        if let Some(own) = own.and_then(OwnIndex::numbers) {
            rows.index = own;
        }
        let frame = rows.into_frame(labeled)?;
        Ok(Self { task, split, frame, completeness, dropped, path: path.into() })
    }
}

/// Where in a line the fields stand.
struct Format {
    columns: usize,
    first: usize,
    second: Option<usize>,
    label: Option<usize>,
    index: Option<usize>,
}

impl Format {
    /// CoLA's labeled files have no header: source, label, the author's mark, sentence.
    fn cola() -> Self {
        Self { columns: 4, first: 3, second: None, label: Some(1), index: None }
    }

    /// By name: official files and shortened copies of them differ in the columns around.
    fn from_header(task: Task, labeled: bool, path: &Path, header: &Line) -> Result<Self> {
        let (first, second, label) = match task {
            Task::Cola | Task::Sst2 => ("sentence", None, "label"),
            Task::Mrpc => ("#1 String", Some("#2 String"), "Quality"),
            Task::StsB => ("sentence1", Some("sentence2"), "score"),
            Task::Qqp => ("question1", Some("question2"), "is_duplicate"),
            Task::Mnli => ("sentence1", Some("sentence2"), "gold_label"),
            Task::Qnli => ("question", Some("sentence"), "label"),
            Task::Rte | Task::Wnli | Task::Ax | Task::Synthetic => ("sentence1", Some("sentence2"), "label"),
        };
        let position = |name: &str| {
            header.fields.iter().position(|field| *field == name).ok_or_else(|| {
                let found = header.fields.join(", ").chars().take(120).collect::<String>();
                tsv::error(path, header.number, format!("a header with a column {name:?}"), format!("columns {found}"))
            })
        };
        Ok(Self {
            columns: header.fields.len(),
            first: position(first)?,
            second: second.map(position).transpose()?,
            label: if labeled { Some(position(label)?) } else { None },
            index: ["index", "id"].into_iter().find_map(|name| position(name).ok()),
        })
    }

    /// Whether the line is a part of a row: fields are missing, or the label is.
    fn is_torn(&self, line: &Line) -> bool {
        line.fields.len() != self.columns || self.label.is_some_and(|label| line.fields[label].trim().is_empty())
    }

    /// The column of the first sentence that is empty. The line must have all columns.
    fn empty_sentence(&self, line: &Line) -> Option<usize> {
        std::iter::once(self.first).chain(self.second).find(|&column| line.fields[column].trim().is_empty())
    }
}

/// The numbers that a file gives its rows.
struct OwnIndex(Option<Vec<i64>>);

impl Default for OwnIndex {
    fn default() -> Self {
        Self(Some(Vec::new()))
    }
}

impl OwnIndex {
    fn push(&mut self, format: &Format, line: &Line) {
        let number = format.index.and_then(|index| line.fields.get(index)?.trim().parse().ok());
        match (&mut self.0, number.filter(|&number: &i64| number >= 0)) {
            (Some(numbers), Some(number)) => numbers.push(number),
            _ => self.0 = None,
        }
    }

    /// Them, if each row has one of its own.
    fn numbers(self) -> Option<Vec<i64>> {
        self.0.filter(|numbers| numbers.iter().collect::<BTreeSet<_>>().len() == numbers.len())
    }
}

/// The rows read so far, as the columns of a frame.
struct Rows {
    task: Task,
    format: Format,
    index: Vec<i64>,
    first: StringChunkedBuilder,
    second: StringChunkedBuilder,
    classes: Vec<i64>,
    scores: Vec<f64>,
}

impl Rows {
    fn new(task: Task, format: Format) -> Self {
        let text = |name: &str| StringChunkedBuilder::new(name.into(), 0);
        let (first, second) = (text("sentence1"), text("sentence2"));
        Self { task, format, index: Vec::new(), first, second, classes: Vec::new(), scores: Vec::new() }
    }

    fn push(&mut self, split: Split, path: &Path, index: usize, line: &Line) -> Result<()> {
        let Self { task, format, .. } = self;
        let wrong = |expected: String, found: String| Err(tsv::error(path, line.number, expected, found));
        if line.fields.len() != format.columns {
            return wrong(format!("{} columns", format.columns), format!("{} columns", line.fields.len()));
        }
        // A test row is never refused for its text: each must be predicted.
        let may_be_empty = matches!(split, Split::Test | Split::TestMismatched);
        if let Some(column) = format.empty_sentence(line).filter(|_| !may_be_empty) {
            return wrong(format!("a sentence in column {}", column + 1), "nothing".into());
        }
        if let Some(column) = format.label {
            let text = line.fields[column].trim();
            if task.is_regression() {
                match text.parse::<f64>() {
                    Ok(score) if (0.0..=5.0).contains(&score) => self.scores.push(score),
                    _ => return wrong("a score from 0 to 5".into(), format!("{text:?}")),
                }
            } else {
                match class(*task, text) {
                    Some(class) => self.classes.push(class as i64),
                    None => return wrong(format!("a label: {}", label_texts(*task).join(", ")), format!("{text:?}")),
                }
            }
        }
        self.index.push(index as i64);
        self.first.append_value(line.fields[format.first]);
        if let Some(second) = format.second {
            self.second.append_value(line.fields[second]);
        }
        Ok(())
    }

    fn into_frame(self, labeled: bool) -> Result<DataFrame> {
        let rows = self.index.len();
        let mut columns = vec![Column::new("index".into(), self.index), self.first.finish().into_column()];
        if self.task.has_pairs() {
            columns.push(self.second.finish().into_column());
        }
        if labeled && self.task.is_regression() {
            columns.push(Column::new("label".into(), self.scores));
        } else if labeled {
            let names: Vec<&str> = self.classes.iter().map(|&class| self.task.labels()[class as usize]).collect();
            columns.push(Column::new("label".into(), &self.classes));
            columns.push(Column::new("label_name".into(), names));
        }
        Ok(DataFrame::new(rows, columns)?)
    }
}

/// Whether the task's files give class names; the others give ids.
pub(crate) fn has_label_names(task: Task) -> bool {
    matches!(task, Task::Mnli | Task::Qnli | Task::Rte | Task::Ax)
}

/// What a label may be in the task's files, those of a submission too.
pub(crate) fn label_texts(task: Task) -> Vec<String> {
    if has_label_names(task) {
        task.labels().iter().map(ToString::to_string).collect()
    } else {
        (0..task.labels().len()).map(|id| id.to_string()).collect()
    }
}

fn class(task: Task, text: &str) -> Option<usize> {
    if has_label_names(task) {
        return task.labels().iter().position(|label| *label == text);
    }
    // One digit: the tasks whose files give ids have two classes.
    text.parse().ok().filter(|&id| text.len() == 1 && id < task.labels().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(task: Task, split: Split, text: impl AsRef<[u8]>) -> Result<Dataset> {
        Dataset::read(task, split, Path::new("task.tsv"), text.as_ref())
    }

    fn message(task: Task, text: impl AsRef<[u8]>) -> String {
        parse(task, Split::Train, text).unwrap_err().to_string()
    }

    const QQP: &str = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n";
    const RTE: &str = "index\tsentence1\tsentence2\tlabel\n";

    #[test]
    fn a_quotation_mark_is_a_character_like_any_other() {
        let data =
            parse(Task::Rte, Split::Train, format!("{RTE}0\t\"a\tb \"\"c\tentailment\n1\td\te\tnot_entailment\n"));
        let data = data.unwrap();
        assert_eq!(data.examples().unwrap()[0], Example { first: "\"a".into(), second: Some("b \"\"c".into()) });
        assert_eq!(data.targets().unwrap(), Some(Targets::Classes(vec![0, 1])));
    }

    #[test]
    fn cola_has_no_header_and_a_bom_or_carriage_returns_do_no_harm() {
        let data = parse(Task::Cola, Split::Train, "\u{feff}gj04\t1\t\tGood.\r\ngj04\t0\t*\tBad.\r\n").unwrap();
        assert_eq!(data.examples().unwrap()[1].first, "Bad.");
        assert_eq!(data.targets().unwrap(), Some(Targets::Classes(vec![1, 0])));
    }

    #[test]
    fn mnli_loads_by_header_name_in_its_official_and_its_short_form() {
        let long = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t\
                    sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n0\t1\t2\tg\t(\t(\t(\t(\ta\tb\tneutral\tcontradiction\n";
        let short = "index\tgenre\tsentence1\tsentence2\tgold_label\n0\tg\ta\tb\tcontradiction\n";
        for text in [long, short] {
            let data = parse(Task::Mnli, Split::Train, text).unwrap();
            assert_eq!(data.targets().unwrap(), Some(Targets::Classes(vec![2])));
            assert_eq!(data.examples().unwrap()[0].second.as_deref(), Some("b"));
        }
    }

    #[test]
    fn each_bad_line_is_an_error_that_names_the_line_what_was_expected_and_what_was_found() {
        let cases: [(Task, Vec<u8>, [&str; 3]); 8] = [
            (Task::Rte, format!("{RTE}0\ta\tb\n").into(), ["line 2", "4 columns", "3 columns"]),
            (Task::Rte, format!("{RTE}0\ta\tb\tmaybe\n").into(), ["line 2", "entailment, not_entailment", "\"maybe\""]),
            (Task::Rte, format!("{RTE}0\t \tb\tentailment\n").into(), ["line 2", "a sentence in column 2", "nothing"]),
            (
                Task::Rte,
                format!("{RTE}0\ta\tb\tentailment\n1\ta").into(),
                ["line 3", "4 columns", "truncated last line"],
            ),
            (Task::Rte, "index\tsentence1\tlabel\n".into(), ["line 1", "\"sentence2\"", "index, sentence1, label"]),
            (Task::Rte, [RTE.as_bytes(), b"0\ta\xff\tb\tentailment\n"].concat(), ["line 2", "UTF-8", "0xff"]),
            (Task::Rte, Vec::new(), ["line 1", "rows", "an empty file"]),
            (Task::StsB, "sentence1\tsentence2\tscore\na\tb\t5.5\n".into(), ["line 2", "a score from 0 to 5", "5.5"]),
        ];
        for (task, text, parts) in cases {
            let error = message(task, text);
            assert!(parts.iter().all(|part| error.contains(part)) && error.contains("task.tsv"), "{error}");
        }
    }

    #[test]
    fn broken_rows_are_dropped_and_counted_in_qqps_training_file_only() {
        // A line break tore row 1; row 3 lacks a question; row 4 lacks its label.
        let text =
            format!("{QQP}0\t1\t2\ta\tb\t1\n1\t1\t2\ta\n\tb\t0\n3\t1\t2\t\tb\t0\n4\t1\t2\ta\tb\t\n5\t1\t2\tc\td\t0\n");
        let data = parse(Task::Qqp, Split::Train, &text).unwrap();
        assert_eq!((data.len(), data.dropped), (2, 4));
        assert!(parse(Task::Qqp, Split::Validation, &text).is_err());
    }

    #[test]
    fn qqps_official_count_holds_the_rows_without_a_question_but_not_the_torn_lines() {
        let rows: String = (0..363_844).map(|row| format!("{row}\t1\t2\ta\tb\t1\n")).collect();
        let text = format!("{QQP}{rows}0\t1\t2\ta\t\t0\n0\t1\t2\ta\t\t0\n\ttorn\t0\n");
        let data = parse(Task::Qqp, Split::Train, text).unwrap();
        assert_eq!((data.len(), data.dropped), (363_844, 3));
        assert!(!data.completeness.is_partial(), "{}", data.completeness);
    }

    #[test]
    fn the_index_is_the_row_of_the_file_even_after_a_row_that_was_left_out() {
        let text = format!("{QQP}0\t1\t2\ta\tb\t1\n1\t1\t2\ta\n2\t1\t2\tc\td\t0\n");
        let data = parse(Task::Qqp, Split::Train, text).unwrap();
        let index: Vec<i64> = data.frame.column("index").unwrap().i64().unwrap().iter().flatten().collect();
        assert_eq!(index, [0, 2]);
    }

    #[test]
    fn a_wrong_label_or_a_truncated_last_line_is_an_error_in_qqps_training_file_too() {
        let wrong = message(Task::Qqp, format!("{QQP}0\t1\t2\ta\tb\t7\n"));
        assert!(wrong.contains("line 2") && wrong.contains("\"7\""), "{wrong}");
        let cut = message(Task::Qqp, format!("{QQP}0\t1\t2\ta\tb\t1\n1\t1\t2\ta"));
        assert!(cut.contains("line 3") && cut.contains("truncated last line"), "{cut}");
    }

    #[test]
    fn a_last_line_without_a_line_end_is_read_when_it_is_whole_and_refused_when_its_label_is_cut() {
        assert_eq!(parse(Task::Rte, Split::Train, format!("{RTE}0\ta\tb\tentailment")).unwrap().len(), 1);
        let cut = message(Task::Rte, format!("{RTE}0\ta\tb\tentail"));
        assert!(cut.contains("\"entail\" in a truncated last line"), "{cut}");
    }

    #[test]
    fn lines_without_any_character_hold_no_row_and_are_no_torn_ones() {
        for end in ["", "\n", "\r\n", "\n\n\r\n", "\r"] {
            let text = format!("{RTE}0\ta\tb\tentailment\n\n1\tc\td\tentailment\n{end}");
            let data = parse(Task::Rte, Split::Train, text).unwrap();
            assert_eq!((data.len(), data.index().unwrap()), (2, vec![0, 1]), "{end:?}");
            let data = parse(Task::Qqp, Split::Train, format!("{QQP}0\t1\t2\ta\tb\t1\n{end}")).unwrap();
            assert_eq!((data.len(), data.dropped), (1, 0), "{end:?}");
        }
        let error = message(Task::Rte, format!("\n{RTE}\n0\ta\tb\n"));
        assert!(error.contains("line 4"), "{error}");
        assert!(message(Task::Rte, "\n\r\n").contains("an empty file"));
    }

    #[test]
    fn the_rows_of_a_part_of_a_test_file_keep_the_numbers_that_the_file_gives_them() {
        let index = |text: &str| parse(Task::Rte, Split::Test, text).unwrap().index().unwrap();
        assert_eq!(index("index\tsentence1\tsentence2\n17\ta\tb\n4\tc\td\n"), [17, 4]);
        // What numbers no row alone is no index.
        assert_eq!(index("index\tsentence1\tsentence2\n7\ta\tb\n7\tc\td\n"), [0, 1]);
        assert_eq!(index("sentence1\tsentence2\na\tb\nc\td\n"), [0, 1]);
        let qqp = parse(Task::Qqp, Split::Test, "id\tquestion1\tquestion2\n3\ta\tb\n").unwrap();
        assert_eq!(qqp.index().unwrap(), [3]);
    }

    #[test]
    fn a_file_of_a_header_alone_is_an_error() {
        let error = message(Task::Rte, RTE);
        assert!(error.contains("rows after the header"), "{error}");
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error() {
        for score in ["NaN", "inf", "-0.1", "", "4,5"] {
            let error = message(Task::StsB, format!("sentence1\tsentence2\tscore\na\tb\t{score}\n"));
            assert!(error.contains("a score from 0 to 5") && error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn a_test_row_is_kept_even_when_a_question_is_empty() {
        let data = parse(Task::Qqp, Split::Test, "id\tquestion1\tquestion2\n0\t\tb\n1\ta\tb\n").unwrap();
        assert_eq!(data.len(), 2);
        assert!(data.targets().unwrap().is_none());
    }

    #[test]
    fn a_set_with_fewer_rows_than_the_official_one_says_so() {
        let data = parse(Task::Rte, Split::Train, format!("{RTE}0\ta\tb\tentailment\n")).unwrap();
        assert_eq!(data.completeness.to_string(), "1 of 2490 (partial)");
    }

    #[test]
    fn rows_that_are_not_glues_make_even_a_whole_set_partial_and_are_said() {
        let whole = Completeness { found: 2490, official: Some(2490), extra: None };
        assert!(!whole.is_partial());
        let more = Completeness { extra: Some(10), ..whole };
        assert!(more.is_partial());
        assert_eq!((more.to_string().as_str(), more.rows()), ("2490, and 10 rows that are not GLUE's", 2500));
    }

    #[test]
    fn a_record_from_before_there_were_extra_rows_reads_and_is_written_as_it_was() {
        let before = r#"{"found":2500,"official":3668}"#;
        let read: Completeness = serde_json::from_str(before).unwrap();
        assert_eq!(read, Completeness { found: 2500, official: Some(3668), extra: None });
        assert_eq!(serde_json::to_string(&read).unwrap(), before);
        let extra = Completeness { extra: Some(7), ..read };
        assert_eq!(serde_json::from_str::<Completeness>(&serde_json::to_string(&extra).unwrap()).unwrap(), extra);
    }
}
