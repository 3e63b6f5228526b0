//! Checkpoints of runs, by the trainer's public functions: a run that is taken up must end as one that was never interrupted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use glue::{Glue, Split, Task};
use peft::{AdaLora, Method};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use trainer::{Record, Run, Silent, Stop, Trainer};

use super::{Outcome, Target, clear};
use crate::input::Input;

pub(super) struct Checkpoints {
    /// The folder of a model with a tokenizer, and those of runs.
    folder: TempDir,
    runs: Vec<Whole>,
    seeds: Vec<Input>,
}

/// A run, and how it ends where nothing interrupts it.
struct Whole {
    run: Run,
    expected: Record,
}

/// What names the run of an input, whose files are those of its folder.
const RUN: &str = "run.txt";

impl Checkpoints {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let model = folder.path().join("model");
        std::fs::create_dir(&model)?;
        let tokenizer = Input::file("tokenizer.json", tokenizer()?.to_string());
        Input { base: "crates/peft/tests/oracle/tiny-bert".into(), ..tokenizer }.put_into(&model)?;
        let mut target = Self { folder, runs: Vec::new(), seeds: Vec::new() };
        let adalora = AdaLora { init_r: 3, target_r: 2, tfinal: 1, ..AdaLora::default() };
        for method in [Method::lora(2), Method::AdaLora(adalora)] {
            let run = Run::new(Task::Synthetic, &model.to_string_lossy(), method).with(|s| {
                (s.train_limit, s.batch_size, s.epochs) = (Some(8), 4, 2);
            });
            let expected = target.trainer("whole").run(&run)?;
            if expected.stop != Stop::Finished {
                bail!("a run of four steps ended as {:?}", expected.stop);
            }
            let number = target.runs.len();
            target.runs.push(Whole { run, expected });
            target.seeds.push(target.interrupted(number)?);
        }
        Ok(target)
    }

    fn trainer(&self, runs: &str) -> Trainer {
        Trainer::new(Glue::synthetic("fuzzing"), self.runs_folder(runs)).logger(Silent)
    }

    fn runs_folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the folder of a run has after its first step.
    fn interrupted(&self, number: usize) -> Result<Input> {
        let mut trainer = self.trainer("interrupted").time_budget(Some(Duration::ZERO));
        let run = &self.runs[number].run;
        if trainer.run(run)?.stop != Stop::TimeBudget {
            bail!("a run without time took all of its steps");
        }
        let mut input = Input::file(RUN, number.to_string());
        for entry in std::fs::read_dir(trainer.folder(run))? {
            let entry = entry?;
            // The record of an interrupted run is another target's.
            if entry.file_name() != "record.json" {
                input.files.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?);
            }
        }
        Ok(input)
    }
}

/// A tokenizer for the first words of the synthetic task.
fn tokenizer() -> Result<Value> {
    let examples = Glue::synthetic("fuzzing").load(Task::Synthetic, Split::Train)?.examples()?;
    let words = examples.iter().flat_map(|example| example.first.split_whitespace());
    let mut vocabulary = Map::new();
    for word in ["[PAD]", "[CLS]", "[SEP]", "[UNK]"].into_iter().chain(words) {
        let id = vocabulary.len();
        if id < 100 && !vocabulary.contains_key(word) {
            vocabulary.insert(word.into(), json!(id));
        }
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "decoder": null,
        "post_processor": { "type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2] },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    }))
}

impl Target for Checkpoints {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        let number = input.files.get(RUN).and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok());
        let Some(Whole { run, expected }) = number.and_then(|number| self.runs.get(number)) else {
            return Ok(Outcome::Refused("no such run".into()));
        };
        let mut trainer = self.trainer("resumed");
        let folder = trainer.folder(run);
        std::fs::create_dir_all(&folder)?;
        clear(&folder)?;
        let mut files = input.clone();
        files.files.remove(RUN);
        files.put_into(&folder)?;
        let record = match trainer.run(run) {
            Ok(record) => record,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        let outcome = |record: &Record| format!("{:?} {:?} {:?}", record.losses, record.evaluations, record.stop);
        Ok(match outcome(&record) == outcome(expected) {
            true => Outcome::Accepted,
            false => Outcome::Wrong(format!(
                "ended as {}, and without the interruption as {}",
                outcome(&record),
                outcome(expected)
            )),
        })
    }
}
