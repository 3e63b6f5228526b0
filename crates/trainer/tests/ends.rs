//! How runs end: without a score, diverged, interrupted, or refused before they begin; on a tiny checkpoint.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use glue::{Glue, Split, Task};
use peft::Method;
use tempfile::TempDir;
use trainer::{Evaluate, Run, Stop, Trainer, evaluate};

fn put(folder: &Path, file: &str, text: &str) {
    std::fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
    std::fs::write(folder.join(file), text).unwrap();
}

/// STS-B with training scores that differ and validation scores that do not.
fn constant(folder: &Path) -> Glue {
    let rows = |score: &dyn Fn(usize) -> usize| {
        let row = |index| format!("the cat {index}\ta dog sleeps\t{}\n", score(index));
        format!("sentence1\tsentence2\tscore\n{}", (0..8).map(row).collect::<String>())
    };
    put(folder, "STS-B/train.tsv", &rows(&|index| index % 6));
    put(folder, "STS-B/dev.tsv", &rows(&|_| 3));
    Glue::at(folder).unwrap()
}

fn run(task: Task, model: &TempDir) -> Run {
    Run::new(task, model.path().to_str().unwrap(), Method::lora(2)).with(|s| {
        s.max_length = 40;
        s.train_limit = Some(8);
        s.batch_size = 4;
        s.epochs = 2;
        s.evaluate = Evaluate::Steps(2);
    })
}

#[test]
fn where_no_evaluation_has_a_score_the_last_weights_are_kept() {
    let (data, runs, model) = (TempDir::new().unwrap(), TempDir::new().unwrap(), support::model());
    let mut trainer = Trainer::new(constant(data.path()), runs.path()).keep_weights(true);
    let run = run(Task::StsB, &model);
    let record = trainer.run(&run).unwrap();
    assert_eq!((record.stop, record.best, record.evaluations.len()), (Stop::Finished, None, 2));
    let trained = trainer.trained_model(&run).unwrap();
    let validation = trainer.data(&run).unwrap();
    let (loss, _) = evaluate(&trained, run.task, &validation.validation[0].1).unwrap();
    assert_eq!(loss, record.evaluations[1].loss);
    assert_ne!(loss, record.evaluations[0].loss);
    trainer.save_adapter(&run, &runs.path().join("adapter")).unwrap();
    // And the run is not made again for weights that it has.
    assert_eq!(trainer.run(&run).unwrap().environment.finished_at, record.environment.finished_at);
}

#[test]
fn a_run_that_is_to_be_measured_records_how_far_its_last_step_left_the_model() {
    let (runs, model) = (TempDir::new().unwrap(), support::model());
    let mut trainer =
        Trainer::new(Glue::synthetic("a test"), runs.path()).keep_weights(true).movement_examples(Some(5));
    // Evaluated at its end alone, so that the weights that are kept are the last ones.
    let run = run(Task::Synthetic, &model).with(|s| s.evaluate = Evaluate::Steps(1000));
    let movement = trainer.run(&run).unwrap().movement.unwrap();
    assert!(movement.change > 0.0 && movement.layers.iter().all(|&layer| layer > 0.0), "{movement:?}");
    assert_eq!(trainer.movement(&run, 5).unwrap(), movement);
    assert_ne!(trainer.movement(&run, 6).unwrap().layers, movement.layers);
}

#[test]
fn a_trainer_that_trains_nothing_has_the_records_there_are_and_refuses_what_has_none() {
    let (runs, model) = (TempDir::new().unwrap(), support::model());
    let run = run(Task::Synthetic, &model);
    let made = Trainer::new(Glue::synthetic("a test"), runs.path()).run(&run).unwrap();
    let elsewhere = TempDir::new().unwrap();
    let mut trainer =
        Trainer::new(Glue::synthetic("a test"), elsewhere.path()).trains(false).published(vec![made.clone()]);
    assert_eq!(trainer.run(&run).unwrap(), made);
    let error = trainer.run(&run.clone().seed(7)).unwrap_err().to_string();
    assert!(error.contains("seed 7") && error.contains("PROFILE=standard"), "{error}");
    assert!(
        std::fs::read_dir(elsewhere.path()).unwrap().all(|entry| !entry.unwrap().path().join("record.json").exists())
    );
}

#[test]
fn the_biases_that_a_run_has_changed_are_told_by_layer_and_module() {
    let (runs, model) = (TempDir::new().unwrap(), support::model());
    let mut trainer = Trainer::new(Glue::synthetic("a test"), runs.path()).keep_weights(true);
    let run = Run { method: Method::bitfit(), ..run(Task::Synthetic, &model) };
    trainer.run(&run).unwrap();
    let changes = trainer.bias_changes(&run).unwrap();
    // Query, key, value, output and its norm, two of the feed-forward network and its norm.
    assert_eq!(changes.iter().map(|change| change.layer).collect::<Vec<_>>(), [[0; 8], [1; 8]].concat());
    let (before, after) = (trainer.untrained_model(&run).unwrap(), trainer.trained_model(&run).unwrap());
    let bias = |model: &peft::Model| {
        let bias = model.parameters().get("bert.encoder.layer.1.intermediate.dense.bias").unwrap();
        bias.as_tensor().to_vec1::<f32>().unwrap()
    };
    let (before, after) = (bias(&before), bias(&after));
    let sum: f64 = before.iter().zip(&after).map(|(before, after)| f64::from((after - before).abs())).sum();
    let found =
        changes.iter().find(|change| (change.layer, change.module.as_str()) == (1, "intermediate.dense")).unwrap();
    assert!(sum > 0.0 && (found.change - sum / before.len() as f64).abs() < 1e-9, "{found:?} {sum}");
}

#[test]
fn a_run_that_diverged_before_an_evaluation_says_so_and_is_not_made_again_for_its_weights() {
    let (runs, model) = (TempDir::new().unwrap(), support::model());
    let mut trainer = Trainer::new(Glue::synthetic("a test"), runs.path()).keep_weights(true);
    let run = run(Task::Synthetic, &model).with(|s| {
        (s.learning_rate, s.max_grad_norm, s.warmup_ratio) = (1e30, None, 0.0);
        s.evaluate = Evaluate::Epoch;
    });
    let record = trainer.run(&run).unwrap();
    assert_eq!((record.stop, record.best.clone(), record.losses.len()), (Stop::Diverged, None, 1));
    let error = trainer.trained_model(&run).err().unwrap().to_string();
    assert!(error.contains("step 2") && error.contains("lower the learning rate"), "{error}");
    assert_eq!(trainer.run(&run).unwrap(), record);
}

#[test]
fn outputs_that_are_not_finite_are_no_score_and_end_a_run_whose_record_reads_again() {
    let (runs, model) = (TempDir::new().unwrap(), support::model());
    let mut trainer = Trainer::new(Glue::synthetic("a test"), runs.path()).keep_weights(true);
    // The evaluation comes before the next loss.
    let run = run(Task::Synthetic, &model).with(|s| {
        (s.learning_rate, s.max_grad_norm, s.warmup_ratio) = (1e30, None, 0.0);
        s.evaluate = Evaluate::Steps(1);
    });
    let record = trainer.run(&run).unwrap();
    assert_eq!((record.stop, record.best.clone(), record.losses.len()), (Stop::Diverged, None, 1));
    assert!(record.evaluations[0].loss.is_nan() && record.evaluations[0].scores.mean().is_nan());
    assert!(record.best_score().is_nan());
    let error = trainer.trained_model(&run).err().unwrap().to_string();
    assert!(error.contains("at the evaluation after step 1") && error.contains("lower the learning rate"), "{error}");
    assert!(trainer.save_adapter(&run, &runs.path().join("adapter")).is_err() && !runs.path().join("adapter").exists());
    // What is not a number equals nothing, but its text does.
    assert_eq!(format!("{:?}", trainer.run(&run).unwrap()), format!("{record:?}"), "it is read and not made again");
}

#[test]
fn a_model_whose_outputs_are_not_finite_predicts_nothing_and_its_examples_are_counted() {
    let (runs, model) = (TempDir::new().unwrap(), support::model());
    let mut trainer = Trainer::new(Glue::synthetic("a test"), runs.path());
    let run = run(Task::Synthetic, &model);
    let untrained = trainer.untrained_model(&run).unwrap();
    let bias = untrained.parameters().get("classifier.bias").unwrap();
    bias.set(&bias.affine(0.0, f64::NAN).unwrap()).unwrap();
    let examples = trainer.data(&run).unwrap();
    let (loss, scores) = evaluate(&untrained, run.task, &examples.validation[0].1).unwrap();
    assert!(loss.is_nan() && scores.mean().is_nan());
    let folder = runs.path().join("predictions");
    let error = trainer.write_predictions_of(&untrained, &run, &folder).unwrap_err().to_string();
    let rows = trainer.glue().load(run.task, Split::Test).unwrap().len();
    assert!(error.contains(&format!("{rows} of {rows} examples")) && error.contains("not finite"), "{error}");
    assert!(!folder.exists());
}

#[test]
fn what_is_called_the_best_is_what_is_kept_after_an_interruption_too() {
    let (runs, model) = (TempDir::new().unwrap(), support::model());
    let run = run(Task::Synthetic, &model).with(|s| s.epochs = 4);
    let mut last_was_unscheduled = false;
    for step in 1..=8 {
        let mut trainer = Trainer::new(Glue::synthetic("a test"), runs.path()).keep_weights(true);
        trainer = trainer.time_budget(Some(Duration::ZERO));
        let record = trainer.run(&run).unwrap();
        assert_eq!(record.losses.len(), step);
        let best = record.best.unwrap();
        // Of an interruption only where there is nothing else.
        assert!(best.step.is_multiple_of(2) || step == 1, "step {step}: {}", best.step);
        last_was_unscheduled |= record.evaluations.last().unwrap().step == 3;
        let kept =
            evaluate(&trainer.trained_model(&run).unwrap(), run.task, &trainer.data(&run).unwrap().validation[0].1);
        assert_eq!(kept.unwrap(), (best.loss, best.scores), "step {step}");
    }
    assert!(last_was_unscheduled);
}

#[test]
fn what_can_be_known_at_the_start_is_refused_there() {
    let (data, runs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(data.path(), "MNLI/train.tsv", "not a table");
    put(data.path(), "MNLI/dev_matched.tsv", "not a table");
    let glue = Glue::at(data.path()).unwrap();
    let run = Run::new(Task::Mnli, "./no/such/model", Method::lora(2));
    let error = |run: &Run, runs: &Path| Trainer::new(glue.clone(), runs).run(run).unwrap_err().to_string();
    for (change, name) in [
        ((|s| s.learning_rate = 0.0) as fn(&mut trainer::Settings), "learning_rate"),
        (|s| s.epochs = 0, "epochs"),
        (|s| s.train_limit = Some(0), "train_limit"),
        (|s| s.patience = Some(0), "patience"),
        (|s| s.evaluate = Evaluate::Steps(0), "evaluate"),
    ] {
        let message = error(&run.clone().with(change), runs.path());
        assert!(message.contains(name), "{message}");
    }
    let message = error(&run, runs.path());
    assert!(message.contains("dev_mismatched.tsv"), "{message}");
    put(data.path(), "MNLI/dev_mismatched.tsv", "not a table");
    let file = data.path().join("MNLI/train.tsv");
    let message = error(&run, &file.join("runs"));
    assert!(message.contains("MNLI/train.tsv/runs"), "{message}");
    assert!(glue.require(Task::Mnli, Split::Test).is_err());
    assert!(error(&run, runs.path()).contains("no/such/model"), "then the model is looked for");
}

#[test]
fn a_budget_that_is_spent_while_sentences_are_tokenized_ends_there() {
    let (data, runs, model) = (TempDir::new().unwrap(), TempDir::new().unwrap(), support::model());
    let row = |index| format!("the cat {index}\ta dog sleeps\t{}\n", index % 6);
    let rows = format!("sentence1\tsentence2\tscore\n{}", (0..10_000).map(row).collect::<String>());
    put(data.path(), "STS-B/train.tsv", &rows);
    put(data.path(), "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\t1\n");
    let glue = Glue::at(data.path()).unwrap();
    let run = run(Task::StsB, &model).with(|s| s.train_limit = None);
    let began = Instant::now();
    let mut trainer = Trainer::new(glue, runs.path()).time_budget(Some(Duration::ZERO));
    let error = trainer.run(&run).unwrap_err().to_string();
    assert!(error.contains("2048 of 10000 sentences") && error.contains("time budget"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
}
