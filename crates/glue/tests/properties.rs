//! Tables and submissions of any content: what is written is what is read.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;

use glue::{Example, Glue, Split, Targets, Task, submission};
use proptest::prelude::*;

fn few() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

/// Any text of one field: without the tab and the line ends that part fields, and with something to read in it.
fn text() -> impl Strategy<Value = String> {
    "[^\t\r\n]{1,20}".prop_filter("a sentence of blanks is none", |text| !text.trim().is_empty())
}

/// Task, file, header, and the columns of a row in order: which are the sentences, and where the label stands.
const TABLES: [(Task, &str, &str, &str); 4] = [
    (Task::Rte, "train.tsv", "index\tsentence1\tsentence2\tlabel\n", "0\tFIRST\tSECOND\tLABEL\n"),
    (Task::StsB, "train.tsv", "sentence2\tscore\tsentence1\n", "SECOND\tLABEL\tFIRST\n"),
    (Task::Cola, "train.tsv", "", "gj04\tLABEL\t*\tFIRST\n"),
    (Task::Sst2, "train.tsv", "sentence\tlabel\n", "FIRST\tLABEL\n"),
];

proptest! {
    #![proptest_config(few())]

    #[test]
    fn rows_that_are_written_to_a_table_are_the_rows_that_are_read(
        table in prop::sample::select(&TABLES[..]),
        rows in prop::collection::vec((text(), text(), 0..2_usize, 0.0..=5.0_f64), 1..8),
    ) {
        let (task, file, header, columns) = table;
        let names: Vec<String> = if task == Task::Rte {
            task.labels().iter().map(ToString::to_string).collect()
        } else {
            vec!["0".into(), "1".into()]
        };
        let mut written = header.to_string();
        for (first, second, class, score) in &rows {
            let label = if task.is_regression() { score.to_string() } else { names[*class].clone() };
            // Cut at the marks: a text may hold one.
            for field in columns.split_inclusive(['\t', '\n']) {
                let (name, end) = field.split_at(field.len() - 1);
                let value: &str = match name {
                    "FIRST" => first,
                    "SECOND" => second,
                    "LABEL" => &label,
                    other => other,
                };
                written += value;
                written += end;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(task.name())).unwrap();
        std::fs::write(folder.path().join(task.name()).join(file), written).unwrap();
        let read = Glue::at(folder.path()).unwrap().load(task, Split::Train).unwrap();
        let expected: Vec<Example> = rows
            .iter()
            .map(|(first, second, ..)| Example { first: first.clone(), second: task.has_pairs().then(|| second.clone()) })
            .collect();
        prop_assert_eq!(read.examples().unwrap(), expected);
        let targets = match read.targets().unwrap().unwrap() {
            Targets::Classes(classes) => classes.iter().zip(&rows).all(|(class, row)| *class == row.2),
            Targets::Values(scores) => scores.iter().zip(&rows).all(|(score, row)| *score == row.3),
        };
        prop_assert!(targets && read.len() == rows.len());
    }

    #[test]
    fn predictions_that_are_written_are_those_that_the_file_holds_by_index(
        place in 0..submission::splits().count(),
        predictions in prop::collection::btree_map(0..100_000_i64, (0..3_usize, -1.0..7.0_f64), 1..30),
        reversed in any::<bool>(),
    ) {
        let (task, split) = submission::splits().nth(place).unwrap();
        let class = |class: usize| class % task.num_labels();
        let mut rows: Vec<(i64, usize, f64)> = predictions.iter().map(|(&index, &(c, score))| (index, class(c), score)).collect();
        if reversed {
            rows.reverse();
        }
        let targets = match task.is_regression() {
            true => Targets::Values(rows.iter().map(|row| row.2).collect()),
            false => Targets::Classes(rows.iter().map(|row| row.1).collect()),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = submission::write(folder.path(), task, split, &targets, rows.iter().map(|row| row.0)).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines();
        prop_assert_eq!(lines.next(), Some("index\tprediction"));
        let held: Vec<(i64, &str)> = lines.map(|line| line.split_once('\t').unwrap()).map(|(i, p)| (i.parse().unwrap(), p)).collect();
        prop_assert!(held.windows(2).all(|pair| pair[0].0 < pair[1].0), "in the order of the indices");
        let held: BTreeMap<i64, &str> = held.into_iter().collect();
        prop_assert_eq!(held.len(), rows.len());
        for (index, class, score) in rows {
            let found = held[&index];
            let is_right = match task.is_regression() {
                true => (found.parse::<f64>().unwrap() - score.clamp(0.0, 5.0)).abs() <= 0.0005 + 1e-12,
                false => found == class.to_string() || found == task.labels()[class],
            };
            prop_assert!(is_right, "{} row {}: {}", task, index, found);
        }
    }
}
