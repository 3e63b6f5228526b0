//! Records of runs. One that is taken is written and read again as the same.

use anyhow::Result;
use tempfile::TempDir;
use trainer::Record;

use super::{Outcome, Target};
use crate::input::{Input, repository};

const FILE: &str = "record.json";

pub(super) struct Records {
    seeds: Vec<Input>,
    folder: TempDir,
}

impl Records {
    pub(super) fn new() -> Result<Self> {
        let mut seeds = Vec::new();
        let mut paths: Vec<_> = std::fs::read_dir(repository("results"))?
            .collect::<std::io::Result<Vec<_>>>()?
            .iter()
            .map(|e| e.path())
            .collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
        paths.sort();
        for path in paths.iter().step_by(7) {
            // The losses of thousands of steps are all alike.
            let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
            if let Some(losses) = record.get_mut("losses").and_then(serde_json::Value::as_array_mut) {
                losses.truncate(5);
            }
            seeds.push(Input::file(FILE, record.to_string()));
        }
        Ok(Self { seeds, folder: tempfile::tempdir()? })
    }
}

impl Target for Records {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        input.put_into(self.folder.path())?;
        let record = match trainer::results::load(self.folder.path()) {
            Ok(mut records) => records.remove(0),
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        let _ =
            (record.best_score(), record.tokens_per_second(), record.run.key(), record.run.check(), record.run.name());
        let _ = (record.data.is_partial(), record.data.caveat(), record.run.settings.steps(1000));
        let text = serde_json::to_string(&record)?;
        // Numbers that are not finite are equal to none, and stand in the text as what they are.
        Ok(match serde_json::from_str::<Record>(&text).map(|again| serde_json::to_string(&again)) {
            Ok(Ok(again)) if again == text => Outcome::Accepted,
            Ok(_) => Outcome::Wrong(format!("written and read, it is another: {text}")),
            Err(error) => Outcome::Wrong(format!("written, it cannot be read: {error}: {text}")),
        })
    }
}
