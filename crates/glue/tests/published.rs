//! The data that is here against what is published of it.
#![allow(clippy::unwrap_used)]

use glue::{Glue, Origin, Split, Targets, Task};

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
