//! The data that is here against what is published of it.
#![allow(clippy::unwrap_used)]

use glue::submission::majority;
use glue::{Glue, Origin, Overlap, Split, Targets, Task};

/// GLUE, unless there is none here: then the test says so.
fn glue() -> Option<Glue> {
    let glue = Glue::find().unwrap();
    if glue.is_none() {
        eprintln!("skipped: no GLUE in GLUE_DIR, data/glue or ../shared/glue");
    }
    glue
}

#[test]
fn every_file_that_is_here_loads_and_none_has_more_rows_than_the_official_one() {
    let Some(glue) = glue() else { return };
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

/// The parts that `../shared/glue` has, as its README lists them; every other file there is whole.
#[test]
fn the_shared_copy_is_partial_where_its_readme_says_so_and_whole_elsewhere() {
    let Some(glue) = glue().filter(|glue| glue.origin() == &Origin::Shared) else { return };
    let parts = [
        (Task::Qqp, Split::Train, 11946),
        (Task::Qqp, Split::Validation, 24024),
        (Task::Mnli, Split::Train, 25478),
        (Task::Mnli, Split::ValidationMismatched, 4916),
        (Task::Qnli, Split::Train, 2000),
    ];
    let absent = [(Task::Qqp, Split::Test), (Task::Mnli, Split::Test), (Task::Mnli, Split::TestMismatched)];
    for task in Task::ALL {
        for split in task.splits() {
            if absent.contains(&(task, split)) {
                assert!(glue.load(task, split).is_err(), "{task} {split}");
                continue;
            }
            let data = glue.load(task, split).unwrap();
            let part = parts.iter().find(|part| (part.0, part.1) == (task, split)).map(|part| part.2);
            let expected = part.or(task.official_rows(split)).unwrap();
            assert_eq!((data.len(), data.dropped), (expected, 0), "{task} {split}");
            assert_eq!(data.completeness.is_partial(), part.is_some(), "{task} {split}: {}", data.completeness);
        }
    }
}

#[test]
fn whole_validation_sets_have_the_published_label_counts() {
    let Some(glue) = glue() else { return };
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
fn wnlis_nearest_neighbours_have_the_wrong_label() {
    let Some(glue) = glue().filter(|glue| glue.tasks().contains(&Task::Wnli)) else { return };
    let expected = Overlap {
        majority: 40.0 / 71.0,
        nearest_neighbour: 3.0 / 71.0,
        inverted_nearest_neighbour: Some(68.0 / 71.0),
        shared_first_sentence: 65.0 / 71.0,
        opposite_label: Some(77.0 / 96.0),
    };
    assert_eq!(Overlap::of(&glue, Task::Wnli).unwrap(), expected);
    assert_eq!(Overlap::shared_first_sentences(&glue, Task::Wnli, Split::Validation).unwrap(), (65, 71));
    assert_eq!(Overlap::shared_first_sentences(&glue, Task::Wnli, Split::Test).unwrap(), (8, 146));
}

/// The rows and label counts of both files, counted with Python.
#[test]
fn qqps_extra_rows_follow_those_of_its_training_file_and_mark_it() {
    let Some(glue) = glue().filter(|glue| glue.origin() == &Origin::Shared) else { return };
    let data = glue.load_with_extra(Task::Qqp).unwrap();
    assert_eq!((data.len(), data.dropped), (11946 + 30674, 0));
    assert_eq!(data.completeness.to_string(), "11946 of 363846 (partial), and 30674 rows that are not GLUE's");
    let examples = data.examples().unwrap();
    assert_eq!(examples[11946].first, "Why am I mentally very lonely? How can I solve it?");
    let Some(Targets::Classes(labels)) = data.targets().unwrap() else { panic!("no labels") };
    let duplicates = |labels: &[usize]| labels.iter().sum::<usize>();
    assert_eq!([duplicates(&labels[..11946]), duplicates(&labels[11946..])], [4410, 11447]);
    let error = glue.load_with_extra(Task::Rte).unwrap_err().to_string();
    assert!(error.contains("RTE/train_extra.tsv"), "{error}");
}

/// The most frequent label of each training file and the mean of STS-B's scores (`math.fsum`), from Python.
#[test]
fn the_majority_of_the_shared_training_sets_is_the_one_counted_elsewhere() {
    let Some(glue) = glue().filter(|glue| glue.origin() == &Origin::Shared) else { return };
    for (task, split, class, rows) in [
        (Task::Mnli, Split::Test, 1, 9796),
        (Task::Mnli, Split::TestMismatched, 1, 9847),
        (Task::Qqp, Split::Test, 0, 390_965),
        (Task::Ax, Split::Test, 1, 1104),
        (Task::Cola, Split::Test, 1, 1063),
    ] {
        assert_eq!(majority(&glue, task, split).unwrap(), Targets::Classes(vec![class; rows]), "{task}, {split}");
    }
    let Targets::Values(scores) = majority(&glue, Task::StsB, Split::Test).unwrap() else { panic!("no scores") };
    assert!(scores.len() == 1379 && (scores[0] - 2.7009990253653497).abs() < 1e-12, "{}", scores[0]);
}
