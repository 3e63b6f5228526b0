//! Checkpoints: `config.json` with the tensors as they are, or the tensors with `config.json` as it is; a forward pass.

use anyhow::Result;
use peft::{Method, Model, ModelOptions, Pretrained};
use tempfile::TempDir;

use super::{Outcome, Target, clear, folders, logits};
use crate::input::Input;

pub(super) struct Encoders {
    seeds: Vec<Input>,
    folder: TempDir,
}

impl Encoders {
    /// Those of which this file is changed.
    pub(super) fn new(file: &str) -> Result<Self> {
        let mut folders = folders("crates/peft/tests/oracle/encoders")?;
        folders.push("crates/peft/tests/oracle/tiny-bert".into());
        let seeds = folders.iter().filter_map(|folder| Input::of(folder, &[file]).ok()).collect();
        Ok(Self { seeds, folder: tempfile::tempdir()? })
    }
}

impl Target for Encoders {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        clear(self.folder.path())?;
        input.put_into(self.folder.path())?;
        let read = || -> Result<()> {
            let pretrained = Pretrained::from_folder(self.folder.path())?;
            let options = ModelOptions { pooling: pretrained.pooling(), ..ModelOptions::new(Method::Head, 2) };
            logits(&Model::new(&pretrained, &options)?)?;
            Ok(())
        };
        Ok(read().map_or_else(|error| Outcome::Refused(format!("{error:#}")), |()| Outcome::Accepted))
    }
}
