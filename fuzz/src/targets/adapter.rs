//! Adapters: loaded, predicted with, saved, loaded again. The second one must give the bits of the first.

use anyhow::Result;
use peft::{Model, Pretrained};
use tempfile::TempDir;

use super::{Outcome, Target, folders, logits, tiny};
use crate::input::Input;

pub(super) struct Adapters {
    pretrained: Pretrained,
    seeds: Vec<Input>,
    read: TempDir,
    written: TempDir,
}

impl Adapters {
    pub(super) fn new() -> Result<Self> {
        let folders = folders("crates/peft/tests/oracle/adapters")?;
        let files = ["adapter_config.json", "adapter_model.safetensors"];
        let mut seeds = folders.iter().map(|folder| Input::of(folder, &files)).collect::<std::io::Result<Vec<_>>>()?;
        // Both files are changed, and none stands for what was changed away.
        seeds.iter_mut().for_each(|seed| seed.base.clear());
        Ok(Self { pretrained: tiny()?, seeds, read: tempfile::tempdir()?, written: tempfile::tempdir()? })
    }
}

impl Target for Adapters {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        input.put_into(self.read.path())?;
        let (model, _) = match Model::from_adapter(&self.pretrained, self.read.path()) {
            Ok(loaded) => loaded,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        let first = match logits(&model) {
            Ok(first) => first,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        if let Err(error) = model.save_adapter(self.written.path()) {
            return Ok(Outcome::Wrong(format!("what was loaded cannot be saved: {error}")));
        }
        let again = match Model::from_adapter(&self.pretrained, self.written.path()) {
            Ok((again, _)) => logits(&again)?,
            Err(error) => return Ok(Outcome::Wrong(format!("what was saved cannot be loaded: {error}"))),
        };
        Ok(match first == again {
            true => Outcome::Accepted,
            false => Outcome::Wrong(format!("logits {first:x?} before, {again:x?} after it was saved")),
        })
    }
}
