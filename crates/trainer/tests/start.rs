//! Runs that go on from what was trained before, on a tiny checkpoint and a few rows of MNLI, RTE and QNLI's format.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::path::Path;
use std::time::Duration;

use candle_core::Tensor;
use glue::{Glue, Task};
use peft::{Method, Model, Pretrained};
use trainer::{Run, StartsFrom, Trainer, provenance};

/// Rows of pairs, in the columns of these tasks.
fn glue(folder: &Path) -> Glue {
    let rows = |header: &str, labels: &[&str]| {
        let row = |index: usize| format!("{index}\tthe cat {index}\ta dog sleeps\t{}\n", labels[index % labels.len()]);
        format!("{header}\n{}", (0..12).map(row).collect::<String>())
    };
    let put = |task: &str, file: &str, text: &str| {
        std::fs::create_dir_all(folder.join(task)).unwrap();
        std::fs::write(folder.join(task).join(file), text).unwrap();
    };
    let two = ["entailment", "not_entailment"];
    for file in ["train.tsv", "dev.tsv"] {
        put("RTE", file, &rows("index\tsentence1\tsentence2\tlabel", &two));
        put("QNLI", file, &rows("index\tquestion\tsentence\tlabel", &two));
    }
    let three = rows("index\tsentence1\tsentence2\tgold_label", &["entailment", "neutral", "contradiction"]);
    for file in ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"] {
        put("MNLI", file, &three);
    }
    Glue::at(folder).unwrap()
}

/// Folders of data, model and runs, which live as long as it.
struct Place {
    data: tempfile::TempDir,
    model: tempfile::TempDir,
    runs: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { data: tempfile::tempdir().unwrap(), model: support::model(), runs: tempfile::tempdir().unwrap() }
    }

    fn trainer(&self) -> Trainer {
        Trainer::new(glue(self.data.path()), self.runs.path())
    }

    fn run(&self, task: Task, method: Method) -> Run {
        Run::new(task, &self.model.path().to_string_lossy(), method).with(|settings| {
            settings.max_length = 40;
            settings.epochs = 1;
            settings.batch_size = 4;
            settings.learning_rate = 1e-2;
        })
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The trained parameters of `model` whose values are not those of `other`.
fn differing(model: &Model, other: &Model) -> Vec<String> {
    let is_other = |(name, variable): &(&str, &candle_core::Var)| {
        other.parameters().get(name).is_none_or(|theirs| values(theirs) != values(variable))
    };
    model.parameters().trainable().filter(is_other).map(|(name, _)| name.to_string()).collect()
}

#[test]
fn a_run_makes_what_it_starts_from_first_and_goes_on_from_its_values_but_for_a_head_of_other_labels() {
    let place = Place::new();
    for method in [Method::lora(2), Method::bitfit(), Method::Full] {
        let mut trainer = place.trainer();
        let mnli = place.run(Task::Mnli, method.clone());
        let rte = place.run(Task::Rte, method.clone()).starting_from(StartsFrom::Run(mnli.clone().into()));
        let record = trainer.run(&rte).unwrap();
        assert_eq!(record.run.starts_from.as_ref().unwrap().run(), Some(&mnli), "the record tells the chain");
        assert!(trainer.record(&mnli).unwrap().is_some(), "{method}: MNLI was trained first");

        let (start, of_mnli) = (trainer.untrained_model(&rte).unwrap(), trainer.trained_model(&mnli).unwrap());
        assert_eq!(differing(&start, &of_mnli), ["classifier.bias", "classifier.weight"], "{method}");
        let qnli = place.run(Task::Qnli, method.clone()).starting_from(StartsFrom::Run(rte.clone().into()));
        trainer.run(&qnli).unwrap(); // RTE's weights are kept by now, whatever the method.
        let (start, of_rte) = (trainer.untrained_model(&qnli).unwrap(), trainer.trained_model(&rte).unwrap());
        assert!(differing(&start, &of_rte).is_empty(), "{method}: QNLI has the labels of RTE, and keeps its head");
    }
}

#[test]
fn runs_with_one_start_have_it_made_once_and_the_same_bits_whether_at_once_or_not() {
    let place = Place::new();
    let mnli = place.run(Task::Mnli, Method::lora(2));
    let rte = place.run(Task::Rte, Method::lora(2)).starting_from(StartsFrom::Run(mnli.into()));
    let runs = [rte.clone(), rte.clone().seed(2)];
    let losses = |at_once: usize| {
        let folder = tempfile::tempdir().unwrap();
        let trainer = Trainer::new(glue(place.data.path()), folder.path());
        let records = trainer.at_once(at_once).run_all(&runs).unwrap();
        records.into_iter().map(|record| record.losses).collect::<Vec<_>>()
    };
    assert_eq!(losses(1), losses(2));
}

#[test]
fn a_start_that_has_not_come_to_its_end_is_an_error_that_names_it_and_the_next_time_goes_on() {
    let place = Place::new();
    let mnli = place.run(Task::Mnli, Method::lora(2));
    let rte = place.run(Task::Rte, Method::lora(2)).starting_from(StartsFrom::Run(mnli.into()));
    let error = place.trainer().time_budget(Some(Duration::ZERO)).run(&rte).unwrap_err().to_string();
    assert!(error.contains("RTE") && error.contains("MNLI") && error.contains("time budget"), "{error}");
    assert!(place.trainer().run(&rte).unwrap().stop.is_final());
}

#[test]
fn an_adapter_is_a_start_known_by_its_content_and_by_the_run_that_made_it() {
    let place = Place::new();
    let mut trainer = place.trainer();
    let (mnli, folder) = (place.run(Task::Mnli, Method::lora(2)), tempfile::tempdir().unwrap());
    trainer.run(&mnli).unwrap();
    trainer.save_adapter(&mnli, folder.path()).unwrap();
    let start = StartsFrom::adapter(folder.path()).unwrap();
    let rte = place.run(Task::Rte, Method::lora(2)).starting_from(start);
    assert_eq!(trainer.run(&rte).unwrap().run.starts_from.unwrap().run(), Some(&mnli));
    let by_run = place.run(Task::Rte, Method::lora(2)).starting_from(StartsFrom::Run(mnli.clone().into()));
    let [a, b] = [&rte, &by_run].map(|run| trainer.untrained_model(run).unwrap());
    assert!(differing(&a, &b).is_empty(), "an adapter starts a run as the run itself does");

    trainer.run(&mnli.clone().seed(2)).unwrap();
    trainer.save_adapter(&mnli.clone().seed(2), folder.path()).unwrap();
    let error = trainer.run(&rte.seed(5)).unwrap_err().to_string();
    assert!(error.contains("digest") && error.contains(&*folder.path().to_string_lossy()), "{error}");
}

#[test]
fn a_start_with_another_method_or_other_layers_is_refused_with_what_to_do() {
    let place = Place::new();
    let mnli = StartsFrom::Run(place.run(Task::Mnli, Method::lora(2)).into());
    for method in [Method::bitfit(), Method::lora(4)] {
        let error = place.trainer().run(&place.run(Task::Rte, method).starting_from(mnli.clone())).unwrap_err();
        assert!(error.to_string().contains("peft-glue adapter merge"), "{error}");
    }
}

#[test]
fn a_merged_checkpoint_that_tells_its_run_starts_another_with_a_new_output_layer_and_the_record_says_so() {
    let place = Place::new();
    let mut trainer = place.trainer().keep_weights(true);
    let (qnli, folder) = (place.run(Task::Qnli, Method::lora(2)), tempfile::tempdir().unwrap());
    trainer.run(&qnli).unwrap();
    let pretrained = Pretrained::load(&qnli.model).unwrap();
    trainer.trained_model(&qnli).unwrap().save_merged(&pretrained, qnli.task.labels(), folder.path()).unwrap();
    provenance::write(folder.path(), &qnli).unwrap();

    let on_merged = |task| Run { model: folder.path().to_string_lossy().into(), ..place.run(task, Method::bitfit()) };
    let merged = Pretrained::from_folder(folder.path()).unwrap();
    let output = |model: &Model| values(model.parameters().get("classifier.weight").unwrap());
    let trained = output(&trainer.trained_model(&qnli).unwrap());
    assert_eq!(merged.num_labels(), Some(2));
    assert_eq!(output(&trainer.untrained_model(&on_merged(Task::Rte)).unwrap()), trained, "RTE has the labels of QNLI");
    let record = trainer.run(&on_merged(Task::Rte)).unwrap();
    assert_eq!(record.model_made_by, Some(qnli.clone()));

    // MNLI as a start is told by its labels alone, not by their number: here a task of as many labels with other meanings.
    provenance::write(folder.path(), &place.run(Task::Sst2, Method::lora(2))).unwrap();
    let new = output(&trainer.untrained_model(&on_merged(Task::Rte)).unwrap());
    assert!(new != trained, "the labels of SST-2 mean something else");
}

/// A classifier of three classes in the order of some published checkpoints, with a tokenizer.
fn name_labels(folder: &Path, labels: &[&str]) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let labels = labels.iter().enumerate().map(|(id, label)| (id.to_string(), serde_json::json!(label)));
    config["id2label"] = serde_json::Value::Object(labels.collect());
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn the_classifier_of_a_checkpoint_is_taken_by_the_names_of_its_labels_or_made_new() {
    let place = Place::new();
    let weight = |task| {
        // Another trainer each time: it keeps what it has read.
        let model = place.trainer().untrained_model(&place.run(task, Method::Head)).unwrap();
        values(model.parameters().get("classifier.weight").unwrap())
    };
    let by_number = weight(Task::Mnli);
    let row = |weight: &[f32], row: usize| weight[32 * row..32 * (row + 1)].to_vec();

    name_labels(place.model.path(), &["CONTRADICTION", "neutral", "Entailment"]);
    let by_name = weight(Task::Mnli);
    for (ours, theirs) in [(0, 2), (1, 1), (2, 0)] {
        assert_eq!(row(&by_name, ours), row(&by_number, theirs));
    }
    name_labels(place.model.path(), &["sad", "glad", "mad"]);
    let new = weight(Task::Mnli);
    assert!((0..3).all(|ours| (0..3).all(|theirs| row(&new, ours) != row(&by_number, theirs))));
}
