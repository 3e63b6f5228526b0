//! The data that is here against what is published of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use glue::submission::majority;
use glue::{Glue, Overlap, Split, Targets, Task};

/// The copy of GLUE that is here. A download is no test's business.
fn glue() -> Glue {
    Glue::find().unwrap().expect("no GLUE: set GLUE_DIR, or type: make data")
}

#[test]
#[ignore = "needs GLUE: make test"]
fn every_file_that_is_here_loads_and_none_has_more_rows_than_the_official_one() {
    let glue = glue();
    for task in glue.tasks() {
        for split in glue.splits(task) {
            let data = glue.load(task, split).unwrap();
            let official = task.official_rows(split).unwrap();
            assert!(data.completeness.found <= official, "{task} {split}: {}", data.completeness);
            assert_eq!(data.examples().unwrap().len(), data.len());
            assert_eq!(data.targets().unwrap().is_some(), !task.test_splits().contains(&split), "{task} {split}");
        }
    }
}

/// Lines are counted here and not by the loader.
#[test]
#[ignore = "needs GLUE: make test"]
fn every_line_of_a_file_is_an_example_and_a_file_with_fewer_than_the_official_one_is_partial() {
    let glue = glue();
    for task in glue.tasks() {
        for split in glue.splits(task) {
            let data = glue.load(task, split).unwrap();
            let bytes = std::fs::read(&data.path).unwrap();
            let has_header = !(task == Task::Cola && split != Split::Test);
            let lines =
                bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count() - usize::from(has_header);
            assert_eq!(data.len() + data.dropped, lines, "{task} {split}");
            let is_part = data.completeness.found < task.official_rows(split).unwrap();
            assert_eq!(data.completeness.is_partial(), is_part, "{task} {split}: {}", data.completeness);
        }
    }
}

#[test]
#[ignore = "needs GLUE: make test"]
fn whole_validation_sets_have_the_published_label_counts() {
    let glue = glue();
    let published: [(Task, &[usize]); 7] = [
        (Task::Cola, &[322, 721]),
        (Task::Sst2, &[428, 444]),
        (Task::Mrpc, &[129, 279]),
        (Task::Rte, &[146, 131]),
        (Task::Wnli, &[40, 31]),
        (Task::Qnli, &[2702, 2761]),
        (Task::Mnli, &[3479, 3123, 3213]),
    ];
    for (task, expected) in published.into_iter().filter(|(task, _)| glue.splits(*task).contains(&Split::Validation)) {
        let data = glue.load(task, Split::Validation).unwrap();
        if data.completeness.is_partial() {
            continue;
        }
        let Some(Targets::Classes(labels)) = data.targets().unwrap() else { panic!("{task}: no labels") };
        let counts: Vec<usize> =
            (0..task.num_labels()).map(|class| labels.iter().filter(|&&label| label == class).count()).collect();
        assert_eq!(counts, expected, "{task}");
    }
}

/// Counted with Python's standard library: lines split at tabs, words as runs of `str.isalnum` characters of `str.lower`,
/// multisets as `collections.Counter` (`&` and `|`), similarities as `fractions.Fraction`, the first of the highest by `list.index`.
/// The training set's majority class is 0 (323 of 635), which 40 of the 71 validation pairs have; 65 of them share their first
/// sentence, in 96 pairs of a validation and a training example.
#[test]
#[ignore = "needs GLUE: make test"]
fn wnlis_nearest_neighbors_have_the_wrong_label() {
    let glue = glue();
    let expected = Overlap {
        majority: 40.0 / 71.0,
        nearest_neighbor: 3.0 / 71.0,
        inverted_nearest_neighbor: Some(68.0 / 71.0),
        shared_first_sentence: 65.0 / 71.0,
        opposite_label: Some(77.0 / 96.0),
    };
    assert_eq!(Overlap::of(&glue, Task::Wnli).unwrap(), expected);
    assert_eq!(Overlap::shared_first_sentences(&glue, Task::Wnli, Split::Validation).unwrap(), (65, 71));
    assert_eq!(Overlap::shared_first_sentences(&glue, Task::Wnli, Split::Test).unwrap(), (8, 146));
}

/// The most frequent label of each training file and the mean of STS-B's scores (`math.fsum`), from Python.
#[test]
#[ignore = "needs GLUE: make test"]
fn the_majority_of_a_training_set_is_the_one_counted_elsewhere() {
    let glue = glue();
    for (task, class, rows) in [(Task::Qqp, 0, 390_965), (Task::Cola, 1, 1063)] {
        assert_eq!(majority(&glue, task, Split::Test).unwrap(), Targets::Classes(vec![class; rows]), "{task}");
    }
    let Targets::Values(scores) = majority(&glue, Task::StsB, Split::Test).unwrap() else { panic!("no scores") };
    assert!(scores.len() == 1379 && (scores[0] - 2.7009990253653497).abs() < 1e-12, "{}", scores[0]);
}
