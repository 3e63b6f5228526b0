//! A record is of the data, the model and the tokenizer that it was made from: on a tiny checkpoint and a few rows of RTE.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glue::{Glue, Task};
use peft::Method;
use tempfile::TempDir;
use trainer::{Inputs, LineLogger, Record, Run, Stop, Trainer};

fn glue(folder: &Path, rows: usize) -> Glue {
    let row = |index| format!("{index}\tthe cat {index}\ta dog sleeps\t{}entailment\n", ["", "not_"][index % 2]);
    let text = format!("index\tsentence1\tsentence2\tlabel\n{}", (0..rows).map(row).collect::<String>());
    std::fs::create_dir_all(folder.join("RTE")).unwrap();
    for file in ["train.tsv", "dev.tsv"] {
        std::fs::write(folder.join("RTE").join(file), &text).unwrap();
    }
    Glue::at(folder).unwrap()
}

fn run(model: &TempDir) -> Run {
    Run::new(Task::Rte, model.path().to_str().unwrap(), Method::lora(2)).with(|s| {
        s.max_length = 40;
        s.epochs = 1;
        s.batch_size = 4;
        s.warmup_ratio = 0.0;
    })
}

/// What does not depend on the time that a run took.
fn outcome(record: &Record) -> impl PartialEq + std::fmt::Debug {
    (record.losses.clone(), record.evaluations.clone(), record.stop)
}

/// Lines that a trainer logs.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

#[test]
fn a_run_is_made_anew_where_its_data_model_or_tokenizer_changed_and_each_record_stays() {
    let (data, other, runs, lines) =
        (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap(), Lines::default());
    let model = support::model();
    let run = run(&model);
    let trainer = |glue| Trainer::new(glue, runs.path()).logger(LineLogger::new(lines.clone()));
    let (few, more) = (glue(data.path(), 12), glue(other.path(), 16));
    let first = trainer(few.clone()).run(&run).unwrap();
    let told = first.inputs.clone().unwrap();
    assert!(told.data.is_some() && told.model.is_some() && told.tokenizer.is_some());
    lines.take();

    let second = trainer(more.clone()).run(&run).unwrap();
    assert_eq!((first.data.train_used, second.data.train_used), (12, 16));
    assert!(lines.take().contains("the data changed since what lies in"));
    let folders = [&few, &more].map(|glue| trainer(glue.clone()).folder(&run));
    assert_ne!(folders[0], folders[1]);
    for (glue, expected) in [(&few, &first), (&more, &second)] {
        assert_eq!(trainer(glue.clone()).run(&run).unwrap(), *expected);
        assert!(lines.take().contains("found its record"));
    }

    // The same in one trainer, which keeps data and models in memory; one weight and one word are others.
    let mut long_lived = trainer(few);
    assert_eq!(long_lived.run(&run).unwrap(), first);
    let weights = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    lines.take();
    let third = long_lived.run(&run).unwrap();
    assert!(lines.take().contains("the model changed"));
    let inputs: [Inputs; 2] = [first, third.clone()].map(|record| record.inputs.unwrap());
    assert!(inputs[0].model != inputs[1].model && inputs[0].data == inputs[1].data);
    let tokenizer = model.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    std::fs::write(&tokenizer, text.replace("[UNK]", "[unk]")).unwrap();
    assert_ne!(long_lived.run(&run).unwrap().inputs, third.inputs);
    assert!(lines.take().contains("the model and tokenizer changed"));
}

#[test]
fn what_was_begun_on_other_data_is_not_gone_on_with() {
    let (data, runs, alone) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let model = support::model();
    let run = run(&model);
    let begun = Trainer::new(glue(data.path(), 12), runs.path()).time_budget(Some(Duration::ZERO)).run(&run).unwrap();
    assert_eq!((begun.stop, begun.losses.len()), (Stop::TimeBudget, 1));
    let changed = glue(data.path(), 16);
    let expected = Trainer::new(changed.clone(), alone.path()).run(&run).unwrap();
    assert_eq!(outcome(&Trainer::new(changed, runs.path()).run(&run).unwrap()), outcome(&expected));
    // The first goes on where it stopped, with the data that it was begun on.
    let rest = Trainer::new(glue(data.path(), 12), runs.path()).run(&run).unwrap();
    assert_eq!((rest.stop, rest.losses.len(), rest.losses[0]), (Stop::Finished, 3, begun.losses[0]));
}

#[test]
fn a_record_of_before_inputs_were_told_and_one_whose_data_are_gone_still_count() {
    let (data, runs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let model = support::model();
    let run = run(&model);
    let glue = glue(data.path(), 12);
    let mut trainer = Trainer::new(glue.clone(), runs.path());
    let record = trainer.run(&run).unwrap();
    let without_data = Trainer::new(Glue::synthetic("a test"), runs.path());
    assert_eq!(without_data.record(&run).unwrap(), Some(record.clone()));

    let folder = trainer.folder(&run);
    std::fs::remove_file(folder.join("inputs.json")).unwrap();
    let old = Record { inputs: None, ..record };
    std::fs::write(folder.join("record.json"), serde_json::to_vec(&old).unwrap()).unwrap();
    assert!(!std::fs::read_to_string(folder.join("record.json")).unwrap().contains("inputs"));
    assert_eq!(Trainer::new(glue, runs.path()).run(&run).unwrap(), old);
}

#[test]
fn a_limited_training_set_has_the_rows_that_it_always_had() {
    let (data, runs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let model = support::model();
    let mut trainer = Trainer::new(glue(data.path(), 40), runs.path());
    let whole = trainer.data(&run(&model)).unwrap();
    let limited = trainer.data(&run(&model).with(|s| s.train_limit = Some(5))).unwrap();
    assert_eq!((limited.train.len(), limited.summary.train_used, limited.summary.train.found), (5, 5, 40));
    // Each is one of the whole set's, in its order, with the label of its row.
    let mut rows = whole.train.sequences.iter();
    for sequence in &limited.train.sequences {
        assert!(rows.any(|row| row.input_ids == sequence.input_ids));
    }
    let again = trainer.data(&run(&model).seed(7).with(|s| s.train_limit = Some(5))).unwrap();
    assert_eq!(again.train.targets, limited.train.targets);
}
