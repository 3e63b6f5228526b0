//! Concurrent runs against the same ones alone, on a tiny checkpoint; with the feature `cuda` on a GPU too. Without one:
//! `eval "$(scripts/cuda_emulator.sh)"` first.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::time::Duration;

use glue::{Glue, Task};
use peft::{Lora, Method, Vera};
use support::model;
use tempfile::TempDir;
use trainer::study::{SearchSpace, over_seeds, search};
use trainer::{DeviceName, Evaluate, Record, Run, Stop, Trainer};

fn trainer(runs: &TempDir, device: DeviceName) -> Trainer {
    Trainer::new(Glue::synthetic("a test"), runs.path()).keep_weights(true).device(device)
}

/// Six short steps, with dropout.
fn run(model: &TempDir, method: Method) -> Run {
    Run::new(Task::Synthetic, model.path().to_str().unwrap(), method).with(|s| {
        s.max_length = 40;
        s.train_limit = Some(24);
        s.batch_size = 8;
        s.epochs = 2;
    })
}

fn devices() -> Vec<DeviceName> {
    let gpus = if cfg!(feature = "cuda") { vec![DeviceName::Cuda(0)] } else { Vec::new() };
    [vec![DeviceName::Cpu], gpus].concat()
}

/// What a run leaves that must not depend on those beside it: what it logged, and the bytes of its weights.
fn outcome(trainer: &Trainer, record: &Record) -> impl PartialEq + std::fmt::Debug + use<> {
    let weights = std::fs::read(trainer.folder(&record.run).join("weights.safetensors")).unwrap();
    (record.losses.clone(), record.evaluations.clone(), record.stop, record.tokens, weights)
}

#[test]
fn runs_at_once_come_in_their_order_with_the_bits_that_they_have_alone() {
    let model = model();
    let mut runs = over_seeds(&run(&model, Method::Lora(Lora { lora_dropout: 0.1, ..Lora::rank(4) })), &[1, 2, 3]);
    runs.extend([Method::lora(1), Method::bitfit(), Method::Full].map(|method| run(&model, method)));
    runs.push(runs[0].clone());
    for device in devices() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut alone, mut at_once) =
            (trainer(&folders[0], device.clone()), trainer(&folders[1], device.clone()).at_once(3));
        let records = at_once.run_all(&runs).unwrap();
        for (run, found) in runs.iter().zip(&records) {
            let expected = alone.run(run).unwrap();
            assert_eq!((&found.run, found.stop, found.losses.len()), (run, Stop::Finished, 6));
            assert!(outcome(&at_once, found) == outcome(&alone, &expected), "{device}: {} differs", run.key());
            assert_eq!((expected.environment.at_once, found.environment.at_once), (None, Some(3)));
        }
        // Down to its seconds: an equal run has the same record, and one that has a record is not run again.
        assert_eq!(records[0], records[6]);
        assert_eq!(at_once.run_all(&runs).unwrap(), records);
    }
}

#[test]
fn runs_at_once_that_are_interrupted_after_every_step_go_on_as_if_they_were_not() {
    let model = model();
    let vera = Method::Vera(Vera { r: 8, ..Vera::default() });
    let runs = [Method::lora(2), vera, Method::Head].map(|method| run(&model, method));
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut alone = trainer(&folders[0], DeviceName::Cpu);
    for times in 1..=6 {
        let mut interrupted = trainer(&folders[1], DeviceName::Cpu).time_budget(Some(Duration::ZERO)).at_once(2);
        let records = interrupted.run_all(&runs).unwrap();
        for (run, record) in runs.iter().zip(&records) {
            assert_eq!(record.losses.len(), times);
            if times == 6 {
                let expected = alone.run(run).unwrap();
                assert!(outcome(&interrupted, record) == outcome(&alone, &expected), "{} differs", run.key());
            }
        }
    }
}

#[test]
fn a_failure_ends_neither_what_is_under_way_nor_begins_anything_and_is_returned() {
    let model = model();
    let good = run(&model, Method::lora(2)).with(|s| s.epochs = 20);
    let wrong = good.clone().with(|s| s.max_length = 5000);
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&folder, DeviceName::Cpu).at_once(2);
    let error = trainer.run_all(&[good.clone(), wrong.clone()]).unwrap_err().to_string();
    assert!(error.contains("max_length"), "{error}");
    assert_eq!(trainer.record(&good).unwrap().unwrap().stop, Stop::Finished);

    let other = good.clone().seed(2);
    let mut trainer = trainer.at_once(1);
    trainer.run_all(&[wrong, other.clone()]).unwrap_err();
    assert!(trainer.record(&other).unwrap().is_none());
}

#[test]
fn a_search_at_once_finds_what_one_run_after_the_other_does() {
    let model = model();
    let start = run(&model, Method::bitfit()).with(|s| s.evaluate = Evaluate::Steps(3));
    let space =
        SearchSpace { learning_rates: vec![1e-3, 1e-2, 3e-2], batch_sizes: vec![4, 8], warmup_ratios: vec![0.06, 0.5] };
    let found = [1, 3].map(|at_once| {
        let folder = tempfile::tempdir().unwrap();
        let found = search(&mut trainer(&folder, DeviceName::Cpu).at_once(at_once), &start, &space).unwrap();
        let scores: Vec<_> = found.records.into_iter().map(|record| (record.run, record.evaluations)).collect();
        (scores, found.best)
    });
    assert_eq!(found[0].0.len(), 3 + 1 + 1);
    assert!(found[0] == found[1]);
}
