//! Which rows a run trains on and is validated on, on a tiny checkpoint and a few rows of RTE's format.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::path::Path;

use glue::{Glue, Task};
use peft::Method;
use trainer::{Run, Trainer};

/// RTE with so many training rows and nothing else.
fn glue(folder: &Path, rows: usize) -> Glue {
    let row = |index: usize| {
        format!(
            "{index}\tthe cat {index}\ta dog sleeps\t{}entailment\n",
            if index.is_multiple_of(2) { "" } else { "not_" }
        )
    };
    let text = format!("index\tsentence1\tsentence2\tlabel\n{}", (0..rows).map(row).collect::<String>());
    std::fs::create_dir_all(folder.join("RTE")).unwrap();
    std::fs::write(folder.join("RTE/train.tsv"), text).unwrap();
    Glue::at(folder).unwrap()
}

fn run(model: &Path) -> Run {
    Run::new(Task::Rte, &model.to_string_lossy(), Method::bitfit()).with(|settings| {
        settings.max_length = 40;
        settings.epochs = 1;
        settings.batch_size = 4;
    })
}

#[test]
fn a_run_that_holds_rows_out_needs_no_validation_set_and_says_what_it_was_validated_on() {
    let (data, model, runs) = (tempfile::tempdir().unwrap(), support::model(), tempfile::tempdir().unwrap());
    let mut trainer = Trainer::new(glue(data.path(), 40), runs.path());
    let whole = run(model.path());
    assert!(trainer.run(&whole).unwrap_err().to_string().contains("dev.tsv"));
    let record = trainer.run(&whole.clone().with(|settings| settings.held_out = true)).unwrap();
    assert_eq!((record.data.train_used, record.data.held_out()), (36, Some(4)));
    assert!(record.data.is_partial());
    let caveat = record.data.caveat().unwrap();
    assert!(caveat.contains("validated on 4 held-out training examples") && !caveat.contains("trained on"), "{caveat}");
    assert_ne!(whole.clone().with(|settings| settings.held_out = true).key(), whole.key());
}

#[test]
fn further_rows_that_are_asked_for_and_not_here_are_told_before_anything_is_read() {
    let (data, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trainer = Trainer::new(glue(data.path(), 4), runs.path());
    let run = run(Path::new("/no/such/model")).with(|settings| {
        settings.train_extra = true;
        settings.held_out = true;
    });
    let error = trainer.check(&[run]).unwrap_err().to_string();
    assert!(error.contains("train_extra.tsv"), "{error}");
}

#[test]
fn the_tokens_of_a_large_set_are_kept_and_the_run_that_takes_them_has_the_bits_of_the_one_that_made_them() {
    let (data, model) = (tempfile::tempdir().unwrap(), support::model());
    let run = run(model.path()).with(|settings| settings.held_out = false);
    let rows = 10_000;
    glue(data.path(), rows);
    std::fs::copy(data.path().join("RTE/train.tsv"), data.path().join("RTE/dev.tsv")).unwrap();
    let runs = tempfile::tempdir().unwrap();
    let load = || {
        let data = Trainer::new(Glue::at(data.path()).unwrap(), runs.path()).data(&run).unwrap();
        (data.train.sequences.clone(), data.validation[0].1.sequences.clone())
    };
    std::fs::create_dir_all(runs.path()).unwrap();
    let made = load();
    let kept = || std::fs::read_dir(runs.path().join("tokens")).unwrap().count();
    assert_eq!((kept(), made.0.len()), (2, rows));
    assert_eq!(load(), made);
}
