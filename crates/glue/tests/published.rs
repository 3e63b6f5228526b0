//! The data that is here against what is published of it.

use glue::{Glue, Split, Targets, Task};

/// GLUE, unless there is none here: then the test says so.
fn glue() -> Option<Glue> {
    let glue = Glue::locate().unwrap();
    if glue.tasks() == [Task::Synthetic] {
        eprintln!("skipped: no GLUE here ({})", glue.origin());
        return None;
    }
    Some(glue)
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
    for (task, expected) in published {
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
