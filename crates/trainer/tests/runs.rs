//! Whole runs on the synthetic task with the packaged base model, which `make setup` puts into `models/`.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use std::path::Path;
use std::time::Duration;

use glue::{Glue, Metric, Split, Task};
use peft::{AdaLora, InitLoraWeights, Lora, Method, Pooling, Targets, Vera};
use trainer::{DEFAULT_MODEL, Evaluate, Record, Run, Stop, Trainer, evaluate};

fn trainer(runs: &Path) -> Trainer {
    Trainer::new(Glue::synthetic("a test"), runs).keep_weights(true)
}

/// Four short steps, with dropout.
fn short_run(method: Method) -> Run {
    Run::new(Task::Synthetic, DEFAULT_MODEL, method).with(|s| {
        s.pooling = Pooling::Mean;
        s.train_limit = Some(16);
        s.batch_size = 8;
        s.epochs = 2;
    })
}

fn weights(trainer: &Trainer, run: &Run) -> Vec<u8> {
    std::fs::read(trainer.folder(run).join("weights.safetensors")).unwrap()
}

/// What must not depend on interruptions or on the machine's speed.
fn outcome(record: &Record) -> impl PartialEq + std::fmt::Debug {
    (record.losses.clone(), record.evaluations.clone(), record.best.clone(), record.stop, record.tokens)
}

#[test]
#[ignore = "needs models/: make test"]
fn a_run_interrupted_after_every_step_equals_the_uninterrupted_one_bit_for_bit() {
    // Four steps: masked after the third, and kept masked after the fourth.
    let adalora = AdaLora { init_r: 3, target_r: 2, tinit: 0, tfinal: 1, ..AdaLora::default() };
    let vera = Vera { r: 16, ..Vera::default() };
    let eva = Lora { init_lora_weights: InitLoraWeights::Eva, ..Lora::rank(4) };
    for method in [Method::lora(4), Method::bitfit(), Method::AdaLora(adalora), Method::Vera(vera), Method::Lora(eva)] {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = short_run(method);
        let mut uninterrupted = trainer(whole.path());
        let expected = uninterrupted.run(&run).unwrap();
        assert_eq!((expected.stop, expected.losses.len()), (Stop::Finished, 4));

        for times in 1..=4 {
            // Each time is a new process as far as the library can tell: a new trainer, nothing kept in memory.
            let mut interrupted = trainer(parts.path()).time_budget(Some(Duration::ZERO));
            let record = interrupted.run(&run).unwrap();
            if times < 4 {
                assert_eq!((record.stop, record.losses.len()), (Stop::TimeBudget, times));
                assert!(record.best.is_some(), "a run that was stopped has been measured");
                continue;
            }
            assert_eq!(outcome(&record), outcome(&expected));
            assert!(weights(&interrupted, &run) == weights(&uninterrupted, &run), "the trained weights differ");
        }
    }
}

#[test]
#[ignore = "needs models/: make test"]
fn the_kept_weights_are_those_of_the_best_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let run = short_run(Method::Full).with(|s| {
        s.learning_rate = 1e-4;
        s.evaluate = Evaluate::Steps(1);
    });
    let mut trainer = trainer(folder.path());
    let best = trainer.run(&run).unwrap().best.unwrap();
    let (model, data) = (trainer.trained_model(&run).unwrap(), trainer.data(&run).unwrap());
    let (loss, scores) = evaluate(&model, run.task, &data.validation[0].1).unwrap();
    assert_eq!((loss, scores), (best.loss, best.scores));
}

#[test]
#[ignore = "needs models/: make test"]
fn the_few_weights_of_a_parameter_efficient_run_are_kept_without_being_asked_for_and_the_many_of_a_full_one_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(folder.path()).keep_weights(false);
    for (method, kept) in [(Method::bitfit(), true), (Method::Full, false)] {
        let run = short_run(method).with(|s| s.epochs = 1);
        trainer.run(&run).unwrap();
        assert_eq!(trainer.trained_model(&run).is_ok(), kept);
    }
}

#[test]
#[ignore = "needs models/: make test"]
fn a_finished_run_is_not_run_again_and_a_stop_file_ends_one_after_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let run = short_run(Method::Head);
    std::fs::write(folder.path().join("stop"), "").unwrap();
    let stopped = trainer(folder.path()).run(&run).unwrap();
    assert_eq!((stopped.stop, stopped.losses.len()), (Stop::StopFile, 1));
    std::fs::remove_file(folder.path().join("stop")).unwrap();

    let finished = trainer(folder.path()).run(&run).unwrap();
    assert_eq!(finished.stop, Stop::Finished);
    assert_eq!(trainer(folder.path()).run(&run).unwrap(), finished);
    assert!(!trainer(folder.path()).folder(&run).join("checkpoint.safetensors").exists());
}

#[test]
#[ignore = "needs models/: make test"]
fn a_broken_checkpoint_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let run = short_run(Method::Head);
    let mut trainer = trainer(folder.path());
    let path = trainer.folder(&run).join("checkpoint.safetensors");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"\x10\0\0\0\0\0\0\0not json").unwrap();
    let error = trainer.run(&run).unwrap_err().to_string();
    assert!(error.contains("checkpoint.safetensors") && error.contains("remove the file"), "{error}");
}

#[test]
#[ignore = "needs models/: make test"]
fn a_rate_far_too_high_ends_as_diverged_or_bad_but_never_as_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let run = short_run(Method::Full).with(|s| s.learning_rate = 1e30);
    let record = trainer(folder.path()).keep_weights(false).run(&run).unwrap();
    assert_eq!(record.stop, Stop::Diverged);
}

#[test]
#[ignore = "needs models/: make test"]
fn lora_learns_the_synthetic_task_and_writes_predictions_for_its_test_split() {
    let folder = tempfile::tempdir().unwrap();
    let lora = Lora::rank(8).on(Targets::suffixes(["query", "key", "value", "dense"]));
    let run = Run::new(Task::Synthetic, DEFAULT_MODEL, Method::Lora(lora)).with(|s| {
        s.pooling = Pooling::Mean;
        s.learning_rate = 2e-3;
        s.batch_size = 16;
        s.epochs = 2;
    });
    let mut trainer = trainer(folder.path());
    let record = trainer.run(&run).unwrap();
    // Half of the pairs are equivalent: guessing gives 0.5.
    assert!(record.best_metric(Metric::Accuracy) > 0.75, "accuracy {}", record.best_metric(Metric::Accuracy));
    assert!(record.data.synthetic && record.data.caveat().unwrap().contains("synthetic"));

    let model = trainer.trained_model(&run).unwrap();
    let paths = trainer.write_predictions(&run, folder.path()).unwrap();
    let rows = trainer.glue().load(Task::Synthetic, Split::Test).unwrap().len();
    let text = std::fs::read_to_string(&paths[0]).unwrap();
    assert_eq!(text.lines().count(), rows + 1);
    assert!(text.starts_with("index\tprediction\n0\t"));

    let adapter = folder.path().join("adapter");
    model.save_adapter(&adapter).unwrap();
    let (again, warnings) = trainer.adapter_model(&run, &adapter).unwrap();
    assert_eq!(warnings, []);
    let paths = trainer.write_predictions_of(&again, &run, &folder.path().join("again")).unwrap();
    assert_eq!(std::fs::read_to_string(&paths[0]).unwrap(), text);
}

#[test]
#[ignore = "needs models/: make test"]
fn a_missing_model_and_a_task_without_training_data_are_errors_that_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(folder.path());
    let missing = Run::new(Task::Synthetic, "./no/such/model", Method::Head);
    assert!(trainer.run(&missing).unwrap_err().to_string().contains("no/such/model"));
    let ax = Run::new(Task::Ax, DEFAULT_MODEL, Method::Head);
    assert!(trainer.run(&ax).unwrap_err().to_string().contains("AX has no training data"));
}
