//! GLUE's tables, all tasks and splits. The rows that are taken must be those of a reader that was written apart, from GLUE's own description.

use anyhow::Result;
use glue::{Example, Glue, Split, Targets, Task};
use tempfile::TempDir;

use super::{Outcome, Target};
use crate::input::Input;

pub(super) struct Tables {
    seeds: Vec<Input>,
    folder: TempDir,
}

/// A task's file: its name below GLUE's folder, and the columns of a labeled and of a test file. CoLA's labeled file has no header.
struct Table {
    task: Task,
    file: &'static str,
    split: Split,
    text: &'static str,
}

const TABLES: [Table; 14] = [
    Table {
        task: Task::Cola,
        file: "CoLA/train.tsv",
        split: Split::Train,
        text: "gj04\t1\t\tThe car ran.\ngj04\t0\t*\tThe the car.\n",
    },
    Table {
        task: Task::Cola,
        file: "CoLA/test.tsv",
        split: Split::Test,
        text: "index\tsentence\n0\tBill ran.\n1\tAnn fell.\n",
    },
    Table {
        task: Task::Sst2,
        file: "SST-2/dev.tsv",
        split: Split::Validation,
        text: "sentence\tlabel\nit 's good \t1\nbad .\t0\n",
    },
    Table {
        task: Task::Mrpc,
        file: "MRPC/dev.tsv",
        split: Split::Validation,
        text: "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t10\t11\tHe said \"no\tNo, he said\r\n0\t12\t13\tA\tB\r\n",
    },
    Table {
        task: Task::StsB,
        file: "STS-B/train.tsv",
        split: Split::Train,
        text: "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tA man\tA boy\t2.50\n1\tnews\tIt is\tIt was\t5\n",
    },
    Table {
        task: Task::Qqp,
        file: "QQP/train.tsv",
        split: Split::Train,
        text: "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\tHow?\tWhy?\t0\n8\t3\t4\tWho?\t\t1\n9\t5\ttorn\n10\t6\t7\tA?\tB?\t1\n",
    },
    Table {
        task: Task::Qqp,
        file: "QQP/test.tsv",
        split: Split::Test,
        text: "id\tquestion1\tquestion2\n0\tHow?\tWhy?\n1\tWhat?\t\n",
    },
    Table {
        task: Task::Mnli,
        file: "MNLI/train.tsv",
        split: Split::Train,
        text: "index\tpairID\tsentence1\tsentence2\tlabel1\tgold_label\n0\t1a\tIt is so\tIt is\tneutral\tneutral\n1\t2b\tA\tB\tcontradiction\tentailment\n",
    },
    Table {
        task: Task::Mnli,
        file: "MNLI/dev_mismatched.tsv",
        split: Split::ValidationMismatched,
        text: "index\tsentence1\tsentence2\tgold_label\n0\tIt is so\tIt is\tcontradiction\n",
    },
    Table {
        task: Task::Qnli,
        file: "QNLI/train.tsv",
        split: Split::Train,
        text: "index\tquestion\tsentence\tlabel\n0\tWhen?\tIn May.\tentailment\n1\tWho?\tIt rained.\tnot_entailment\n",
    },
    Table {
        task: Task::Rte,
        file: "RTE/dev.tsv",
        split: Split::Validation,
        text: "index\tsentence1\tsentence2\tlabel\n0\tNo weapons\tWeapons\tnot_entailment\n1\tA\tB\tentailment\n",
    },
    Table {
        task: Task::Rte,
        file: "RTE/test.tsv",
        split: Split::Test,
        text: "index\tsentence1\tsentence2\n0\tNo weapons\tWeapons\n5\tA\tB\n",
    },
    Table {
        task: Task::Wnli,
        file: "WNLI/train.tsv",
        split: Split::Train,
        text: "index\tsentence1\tsentence2\tlabel\n0\tI stuck a pin\tThe carrot had a hole\t1\n1\tA\tB\t0\n",
    },
    Table {
        task: Task::Ax,
        file: "AX/diagnostic.tsv",
        split: Split::Test,
        text: "index\tsentence1\tsentence2\n0\tThe cat sat\tThe cat did not sit\n1\tA\tB\n",
    },
];

impl Tables {
    pub(super) fn new() -> Result<Self> {
        // The number of the table stands before its text: the files of an input have no folders.
        let name = |number: usize| format!("{number}.tsv");
        let seeds = TABLES.iter().enumerate().map(|(number, table)| Input::file(&name(number), table.text)).collect();
        Ok(Self { seeds, folder: tempfile::tempdir()? })
    }
}

impl Target for Tables {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        let Some((name, bytes)) = input.files.first_key_value() else { return Ok(Outcome::Refused("no file".into())) };
        let number = name.split('.').next().and_then(|number| number.parse::<usize>().ok());
        let Some(table) = number.and_then(|number| TABLES.get(number)) else {
            return Ok(Outcome::Refused("no table".into()));
        };
        let path = self.folder.path().join(table.file);
        std::fs::create_dir_all(path.with_file_name(""))?;
        std::fs::write(&path, bytes)?;
        let read = || -> glue::Result<(Vec<Example>, Option<Targets>)> {
            let dataset = Glue::at(self.folder.path())?.load(table.task, table.split)?;
            Ok((dataset.examples()?, dataset.targets()?))
        };
        let (examples, targets) = match read() {
            Ok(rows) => rows,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        let expected = rows(table, bytes);
        let labels: Vec<String> = match targets {
            None => vec![String::new(); examples.len()],
            Some(Targets::Classes(classes)) => classes.iter().map(ToString::to_string).collect(),
            Some(Targets::Values(values)) => values.iter().map(ToString::to_string).collect(),
        };
        let found: Vec<Row> = examples.into_iter().zip(labels).map(|(e, label)| (e.first, e.second, label)).collect();
        Ok(match expected {
            Some(expected) if expected == found => Outcome::Accepted,
            other => Outcome::Wrong(format!("{}: found {found:?}, expected {other:?}", table.file)),
        })
    }
}

/// The first sentence, the second one, and the label as a number.
type Row = (String, Option<String>, String);

/// A table's rows; `None` where it has none that could be read.
fn rows(table: &Table, bytes: &[u8]) -> Option<Vec<Row>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).enumerate();
    let mut lines = lines.filter(|(_, line)| !line.is_empty());
    let is_test = matches!(table.split, Split::Test | Split::TestMismatched);
    let header: Vec<&str> = match (table.task, is_test) {
        (Task::Cola, false) => vec!["source", "label", "mark", "sentence"],
        _ => lines.next()?.1.split('\t').collect(),
    };
    let [first, second, label] = match table.task {
        Task::Cola | Task::Sst2 => ["sentence", "", "label"],
        Task::Mrpc => ["#1 String", "#2 String", "Quality"],
        Task::StsB => ["sentence1", "sentence2", "score"],
        Task::Qqp => ["question1", "question2", "is_duplicate"],
        Task::Mnli => ["sentence1", "sentence2", "gold_label"],
        Task::Qnli => ["question", "sentence", "label"],
        _ => ["sentence1", "sentence2", "label"],
    };
    let column = |name: &str| header.iter().position(|column| *column == name);
    let (first, second) = (column(first)?, if second.is_empty() { None } else { Some(column(second)?) });
    let label = if is_test { None } else { Some(column(label)?) };
    let mut rows = Vec::new();
    let ends = text.matches('\n').count();
    for (index, line) in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        // Torn lines and rows without a question are left out of QQP's training file, but for a last line that was cut off.
        let is_cut = index == ends;
        let may_be_left_out = table.file == "QQP/train.tsv" && !is_cut;
        let is_whole = fields.len() == header.len();
        let sentences = || [Some(first), second].into_iter().flatten();
        if may_be_left_out
            && (!is_whole
                || label.is_some_and(|label| fields[label].trim().is_empty())
                || sentences().any(|column| fields[column].trim().is_empty()))
        {
            continue;
        }
        if !is_whole || (!is_test && sentences().any(|column| fields[column].trim().is_empty())) {
            return None;
        }
        let label = match label.map(|label| fields[label].trim()) {
            None => String::new(),
            Some(score) if table.task == Task::StsB => {
                let score: f64 = score.parse().ok()?;
                (0.0..=5.0).contains(&score).then_some(score)?.to_string()
            }
            Some(name) => class(table.task, name)?.to_string(),
        };
        rows.push((fields[first].to_string(), second.map(|second| fields[second].to_string()), label));
    }
    (!rows.is_empty()).then_some(rows)
}

/// The number of a class in Hugging Face's data sets.
fn class(task: Task, name: &str) -> Option<usize> {
    let names: &[&str] = match task {
        Task::Mnli | Task::Ax => &["entailment", "neutral", "contradiction"],
        Task::Qnli | Task::Rte => &["entailment", "not_entailment"],
        _ => &["0", "1"],
    };
    names.iter().position(|other| *other == name)
}
