//! The predictions that a run keeps, on a tiny checkpoint.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::path::Path;
use std::time::Duration;

use glue::{Glue, Split, Task};
use peft::Method;
use tempfile::TempDir;
use trainer::{Evaluate, Run, Trainer};

fn trainer(runs: &Path) -> Trainer {
    Trainer::new(Glue::synthetic("a test"), runs).keep_weights(true)
}

#[test]
fn the_kept_predictions_are_those_of_the_best_evaluation_and_the_same_after_interruptions() {
    let (whole, parts, model) = (TempDir::new().unwrap(), TempDir::new().unwrap(), support::model());
    let run = Run::new(Task::Synthetic, model.path().to_str().unwrap(), Method::lora(2)).with(|s| {
        s.max_length = 40;
        s.train_limit = Some(8);
        s.batch_size = 4;
        s.epochs = 4;
        s.evaluate = Evaluate::Steps(2);
    });
    let mut uninterrupted = trainer(whole.path());
    assert_eq!(uninterrupted.predictions(&run).unwrap(), None);
    let record = uninterrupted.run(&run).unwrap();
    let predictions = uninterrupted.predictions(&run).unwrap().unwrap();
    assert!(predictions.are_of(&record));
    let kept = predictions.on(Split::Validation).unwrap();
    let of_weights = uninterrupted.predict(&run, Task::Synthetic, Split::Validation).unwrap();
    let labels = uninterrupted.glue().load(Task::Synthetic, Split::Validation).unwrap().targets().unwrap();
    assert_eq!((&kept.predicted, Some(&kept.labels)), (&of_weights, labels.as_ref()));

    for step in 1..=8 {
        let mut interrupted = trainer(parts.path()).time_budget(Some(Duration::ZERO));
        let record = interrupted.run(&run).unwrap();
        assert!(interrupted.predictions(&run).unwrap().unwrap().are_of(&record), "step {step}");
    }
    let bytes = |runs: &Path| std::fs::read(trainer(runs).folder(&run).join("predictions.safetensors")).unwrap();
    assert!(bytes(parts.path()) == bytes(whole.path()), "the predictions differ");
}
