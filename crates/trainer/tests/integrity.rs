//! What lies in a run's folder is that run's and whole, or refused with what to do: on a tiny checkpoint.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glue::{Glue, Task};
use peft::Method;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use trainer::results::{self, Condition};
use trainer::{Record, Run, Stop, Trainer};

fn run(model: &TempDir) -> Run {
    Run::new(Task::Synthetic, model.path().to_str().unwrap(), Method::lora(2)).with(|s| {
        (s.max_length, s.train_limit, s.batch_size, s.epochs) = (40, Some(8), 4, 2);
    })
}

fn trainer(runs: &Path) -> Trainer {
    Trainer::new(Glue::synthetic("a test"), runs).keep_weights(true)
}

/// What does not depend on the time that a run took.
fn outcome(record: &Record) -> impl PartialEq + std::fmt::Debug {
    (record.losses.clone(), record.evaluations.clone(), record.best.clone(), record.stop, record.tokens)
}

/// A folder in which the run has a checkpoint after so many steps, and where that lies.
fn begun(run: &Run, steps: usize) -> (TempDir, PathBuf) {
    let runs = tempfile::tempdir().unwrap();
    for step in 1..=steps {
        let record = trainer(runs.path()).time_budget(Some(Duration::ZERO)).run(run).unwrap();
        assert_eq!((record.stop, record.losses.len()), (Stop::TimeBudget, step));
    }
    let checkpoint = trainer(runs.path()).folder(run).join("checkpoint.safetensors");
    (runs, checkpoint)
}

/// How the run is refused that finds these bytes in the place of its checkpoint.
fn refused(runs: &TempDir, run: &Run, checkpoint: &Path, bytes: &[u8]) -> String {
    std::fs::write(checkpoint, bytes).unwrap();
    let error = trainer(runs.path()).run(run).unwrap_err().to_string();
    assert!(error.contains("checkpoint.safetensors") && error.contains("remove the file"), "{error}");
    error
}

/// The metadata of a safetensors file.
fn metadata(bytes: &[u8]) -> HashMap<String, String> {
    SafeTensors::read_metadata(bytes).unwrap().1.metadata().clone().unwrap()
}

/// The same tensors under another header.
fn with_metadata(bytes: &[u8], kept: impl Fn(&str) -> bool, metadata: HashMap<String, String>) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    safetensors::serialize(file.iter().filter(|(name, _)| kept(name)), Some(metadata)).unwrap()
}

/// A checkpoint as it was written before checkpoints had a version: all that was logged as JSON in the header, and no digest.
fn before(bytes: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let header: Value = serde_json::from_str(&metadata(bytes)["peft-glue"]).unwrap();
    let file = SafeTensors::deserialize(bytes).unwrap();
    let column = |name: &str| -> Vec<f64> {
        let numbers = file.tensor(name).unwrap().data().chunks_exact(8);
        numbers.map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let (loss, epoch, rate) = (column("loss"), column("epoch"), column("learning_rate"));
    let losses: Vec<Value> = (0..loss.len())
        .map(|i| json!({"step": i + 1, "epoch": epoch[i], "loss": loss[i], "learning_rate": rate[i]}))
        .collect();
    let mut progress = header["content"].clone();
    progress["losses"] = json!(losses);
    edit(&mut progress);
    let of_before = |name: &str| !["loss", "epoch", "learning_rate", "sha256"].contains(&name);
    with_metadata(bytes, of_before, HashMap::from([("progress".into(), progress.to_string())]))
}

#[test]
fn a_checkpoint_with_a_flipped_bit_or_of_another_length_is_refused() {
    let model = support::model();
    let run = run(&model);
    let (runs, checkpoint) = begun(&run, 2);
    let whole = std::fs::read(&checkpoint).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    // Of the length and the header, of the numbers, and of the digest.
    let places = [3, 8, 60, header / 2, header - 1, header, header + 5, (header + whole.len()) / 2, whole.len() - 33];
    for (bit, place) in places.into_iter().chain([whole.len() - 32, whole.len() - 1]).enumerate() {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (bit % 8);
        refused(&runs, &run, &checkpoint, &bytes);
    }
    let mut zeros = whole.clone();
    zeros[header..header + 4096.min(whole.len() - header)].fill(0);
    let others = [&whole[..whole.len() - 1], &whole[..header], &[], &zeros, &[&whole[..], &[0]].concat()];
    for bytes in others.into_iter().chain([&[&whole[..], &whole].concat()[..]]) {
        refused(&runs, &run, &checkpoint, bytes);
    }
    std::fs::write(&checkpoint, &whole).unwrap();
    let alone = tempfile::tempdir().unwrap();
    let expected = trainer(alone.path()).run(&run).unwrap();
    assert_eq!(outcome(&trainer(runs.path()).run(&run).unwrap()), outcome(&expected));
}

#[test]
fn a_checkpoint_of_another_seed_other_settings_or_another_model_is_refused_by_name() {
    let (model, other_model) = (support::model(), support::model());
    let weights = other_model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    let ours = run(&model);
    let (runs, checkpoint) = begun(&ours, 1);
    let others = [ours.clone().seed(2), ours.clone().with(|s| s.learning_rate = 0.1), run(&other_model)];
    for other in others {
        let (_place, foreign) = begun(&other, 1);
        let error = refused(&runs, &ours, &checkpoint, &std::fs::read(foreign).unwrap());
        assert!(error.contains(&other.key()), "{error}");
    }
    // The same name, and other weights below it.
    let (place, foreign) = begun(&run(&other_model), 1);
    let bytes = std::fs::read(&foreign).unwrap();
    std::fs::copy(model.path().join("model.safetensors"), other_model.path().join("model.safetensors")).unwrap();
    let changed = trainer(place.path()).folder(&run(&other_model));
    assert_ne!(changed.join("checkpoint.safetensors"), foreign);
    std::fs::create_dir_all(&changed).unwrap();
    let error = refused(&place, &run(&other_model), &changed.join("checkpoint.safetensors"), &bytes);
    assert!(error.contains("made from another model"), "{error}");
}

#[test]
fn a_checkpoint_of_before_versions_is_gone_on_with_and_refused_where_it_was_edited_to_what_cannot_be() {
    let model = support::model();
    let run = run(&model);
    let (runs, checkpoint) = begun(&run, 2);
    let whole = std::fs::read(&checkpoint).unwrap();
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 8] = [
        (|progress| progress["step"] = json!(1_000_000), "step 1000000 of a run of 4"),
        (|progress| progress["step"] = json!(1), "2 losses after step 1"),
        (|progress| progress["losses"] = json!([]), "0 losses after step 2"),
        (|progress| progress["losses"][1]["step"] = json!(1), "as the loss of step 2"),
        (|progress| progress["losses"][0]["loss"] = Value::Null, "as the loss of step 1"),
        (|progress| progress["evaluations"][0]["step"] = json!(3), "evaluations after the steps [3] by step 2"),
        (|progress| progress["train_seconds"] = json!(-1), "-1 seconds"),
        (|progress| progress["part_tokens"] = json!(0), "parts of no token"),
    ];
    for (edit, expected) in edits {
        let error = refused(&runs, &run, &checkpoint, &before(&whole, edit));
        assert!(error.contains(expected), "{error}");
    }
    std::fs::write(&checkpoint, before(&whole, |_| {})).unwrap();
    let alone = tempfile::tempdir().unwrap();
    let expected = trainer(alone.path()).run(&run).unwrap();
    assert_eq!(outcome(&trainer(runs.path()).run(&run).unwrap()), outcome(&expected));
}

#[test]
fn a_checkpoint_of_a_later_version_is_refused_by_saying_so() {
    let model = support::model();
    let run = run(&model);
    let (runs, checkpoint) = begun(&run, 1);
    let whole = std::fs::read(&checkpoint).unwrap();
    let mut later = metadata(&whole);
    let header = later["peft-glue"].replace("\"format\":2", "\"format\":3");
    later.insert("peft-glue".into(), header);
    let error = refused(&runs, &run, &checkpoint, &with_metadata(&whole, |_| true, later));
    assert!(error.contains("found version 3") && error.contains("a later version of this program"), "{error}");
}

#[test]
fn weights_with_a_flipped_bit_or_of_another_run_predict_nothing_and_those_of_before_do() {
    let model = support::model();
    let (run, runs) = (run(&model), tempfile::tempdir().unwrap());
    let other = run.clone().seed(2);
    let mut trainer = trainer(runs.path());
    trainer.run_all(&[run.clone(), other.clone()]).unwrap();
    let path = trainer.folder(&run).join("weights.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    let place = flipped.len() - 40;
    flipped[place] ^= 1;
    let foreign = std::fs::read(trainer.folder(&other).join("weights.safetensors")).unwrap();
    for bytes in [flipped, foreign] {
        std::fs::write(&path, bytes).unwrap();
        let error = trainer.trained_model(&run).err().unwrap().to_string();
        assert!(error.contains("weights.safetensors") && error.contains("remove the file"), "{error}");
    }
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    std::fs::write(&path, with_metadata(&whole, |name| name != "sha256", format)).unwrap();
    trainer.trained_model(&run).unwrap();
}

#[test]
fn a_record_that_was_edited_is_refused_and_one_that_was_laid_out_anew_is_not() {
    let model = support::model();
    let (run, runs) = (run(&model), tempfile::tempdir().unwrap());
    let record = trainer(runs.path()).run(&run).unwrap();
    let path = trainer(runs.path()).folder(&run).join("record.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\n  \"format\": 2,\n  \"sha256\": \""), "{text}");
    std::fs::write(&path, record.to_json().unwrap()).unwrap();
    assert_eq!(trainer(runs.path()).run(&run).unwrap(), record);

    let edited = text.replacen("\"step\": 1,", "\"step\": 2,", 1);
    assert_ne!(edited, text);
    let later = text.replacen("\"format\": 2", "\"format\": 7", 1);
    for (text, expected) in [(edited, "edited or damaged"), (later, "found version 7")] {
        std::fs::write(&path, text).unwrap();
        let error = trainer(runs.path()).run(&run).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("remove the file"), "{error}");
    }
}

#[test]
fn a_published_record_of_other_data_or_another_model_does_not_count() {
    let model = support::model();
    let (run, runs) = (run(&model), tempfile::tempdir().unwrap());
    let record = trainer(runs.path()).run(&run).unwrap();
    let found = |record: Record| {
        let elsewhere = tempfile::tempdir().unwrap();
        trainer(elsewhere.path()).published(vec![record]).record(&run).unwrap().is_some()
    };
    let mut other = record.clone();
    other.inputs.as_mut().unwrap().model = Some("0".repeat(64));
    assert_eq!([found(record.clone()), found(other), found(Record { inputs: None, ..record })], [true, false, true]);
}

#[test]
fn a_record_of_the_same_run_on_another_model_is_refused_in_its_folder() {
    let model = support::model();
    let (run, runs, others) = (run(&model), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    trainer(runs.path()).run(&run).unwrap();
    let foreign = trainer(runs.path()).folder(&run).join("record.json");
    let weights = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    trainer(others.path()).run(&run).unwrap();
    std::fs::copy(foreign, trainer(others.path()).folder(&run).join("record.json")).unwrap();
    let error = trainer(others.path()).run(&run).unwrap_err().to_string();
    assert!(error.contains("made from another model") && error.contains("remove the file"), "{error}");
}

#[test]
fn where_the_inputs_of_a_folder_are_missing_its_record_tells_them() {
    let model = support::model();
    let (run, runs) = (run(&model), tempfile::tempdir().unwrap());
    let first = trainer(runs.path()).run(&run).unwrap();
    let folder = trainer(runs.path()).folder(&run);
    std::fs::remove_file(folder.join("inputs.json")).unwrap();
    let weights = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    let second = trainer(runs.path()).run(&run).unwrap();
    assert_ne!(first.inputs, second.inputs);
    assert_eq!(Record::read(&folder.join("record.json")).unwrap(), Some(first), "the record of before stays");
}

#[test]
fn a_run_of_more_steps_than_a_record_holds_has_all_its_losses_beside_it() {
    let model = support::model();
    let run = run(&model).with(|s| (s.train_limit, s.batch_size, s.epochs) = (Some(1), 1, 2001));
    let run = run.with(|s| s.evaluate = trainer::Evaluate::Steps(10_000));
    let runs = tempfile::tempdir().unwrap();
    let record = trainer(runs.path()).run(&run).unwrap();
    assert_eq!((record.stop, record.losses.len(), record.losses[1000].step), (Stop::Finished, 1001, 2001));
    let all = trainer(runs.path()).losses(&run).unwrap().unwrap();
    assert_eq!((all.len(), all[2000].step), (2001, 2001));
    assert!((record.losses[0].loss - (all[0].loss + all[1].loss) / 2.0).abs() < 1e-15);
    // Any program that reads safetensors can read them.
    let bytes = std::fs::read(trainer(runs.path()).folder(&run).join("losses.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view: TensorView = file.tensor("learning_rate").unwrap();
    assert_eq!((view.dtype(), view.shape()), (Dtype::F64, &[2001][..]));

    let folder = trainer(runs.path()).folder(&run);
    let condition = || results::check(&folder.join("record.json")).unwrap();
    assert_eq!(condition(), Condition::Whole);
    let mut flipped = bytes;
    flipped[9000] ^= 1;
    std::fs::write(folder.join("losses.safetensors"), flipped).unwrap();
    assert!(matches!(condition(), Condition::Damaged(reason) if reason.contains("losses.safetensors")));
    assert!(trainer(runs.path()).losses(&run).unwrap_err().to_string().contains("edited or damaged"));
}
