//! Batches of a replay. What is counted of a file that is taken must be what candle's own reader, to which the sizes then do no harm, counts.

use anyhow::Result;
use candle_core::npy::NpzTensors;
use candle_core::{DType, Device, Tensor};
use glue::{Glue, Task};
use peft::Method;
use tempfile::TempDir;
use trainer::{InitialValues, Passes, Replayed, Run, Trainer, replay};

use super::{Outcome, Target};
use crate::input::{Input, repository};

const FILE: &str = "batches.npz";

pub(super) struct Batches {
    seeds: Vec<Input>,
    folder: TempDir,
    trainer: Trainer,
    run: Run,
}

impl Batches {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let seeds = [false, true].into_iter().map(|has_types| seed(&folder, has_types)).collect::<Result<_>>()?;
        let trainer = Trainer::new(Glue::synthetic("fuzzing"), folder.path().join("runs"));
        let model = repository("crates/peft/tests/oracle/tiny-bert");
        let run = Run::new(Task::Mrpc, &model.to_string_lossy(), Method::Head);
        Ok(Self { seeds, folder, trainer, run })
    }
}

/// Two steps of three sequences, in types of eight bytes as numpy has them.
fn seed(folder: &TempDir, has_types: bool) -> Result<Input> {
    let path = folder.path().join(FILE);
    let whole = |values: &[i64], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
    let mut arrays = vec![("steps".to_string(), whole(&[2], &[])?)];
    for step in 0..2 {
        let ids = whole(&[2, 8, 9, 3, 2, 10, 3, 0, 2, 11, 3, 0], &[3, 4])?;
        let mask = whole(&[1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0], &[3, 4])?;
        let labels = whole(&[0, 1, 1], &[3])?;
        arrays.extend(
            [("input_ids", ids), ("attention_mask", mask), ("labels", labels)]
                .map(|(name, array)| (format!("s{step}.{name}"), array)),
        );
        if has_types {
            let types = whole(&[0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0], &[3, 4])?.to_dtype(DType::F64)?;
            arrays.push((format!("s{step}.token_type_ids"), types));
        }
    }
    Tensor::write_npz(&arrays, &path)?;
    Ok(Input::file(FILE, std::fs::read(path)?))
}

impl Target for Batches {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        input.put_into(self.folder.path())?;
        let path = self.folder.path().join(FILE);
        let passes = Passes::Forward { merged: false };
        let replayed = match replay(&mut self.trainer, &self.run, &path, InitialValues::New, passes, None) {
            Ok(replayed) => replayed,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        // What candle's reader takes for no archive or no array is not compared.
        let compared = NpzTensors::new(&path).map_err(anyhow::Error::from).and_then(|file| wrong(&replayed, &file));
        Ok(compared.ok().flatten().map_or(Outcome::Accepted, Outcome::Wrong))
    }
}

/// What differs from what candle reads.
fn wrong(replayed: &Replayed, file: &NpzTensors) -> Result<Option<String>> {
    let numbers = |name: &str| -> Result<Option<Vec<f64>>> {
        let Some(tensor) = file.get(name)? else { return Ok(None) };
        Ok(Some(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?))
    };
    if numbers("steps")? != Some(vec![replayed.losses.len() as f64]) {
        return Ok(Some(format!("{} steps", replayed.losses.len())));
    }
    for (step, (&tokens, &examples)) in replayed.tokens.iter().zip(&replayed.examples).enumerate() {
        let mask = numbers(&format!("s{step}.attention_mask"))?.unwrap_or_default();
        let labels = numbers(&format!("s{step}.labels"))?.unwrap_or_default();
        let ones = mask.iter().sum::<f64>();
        if ones != tokens as f64 || labels.len() != examples || labels.iter().any(|label| ![0.0, 1.0].contains(label)) {
            return Ok(Some(format!(
                "step {step}: {tokens} tokens of {ones}, {examples} sequences with the labels {labels:?}"
            )));
        }
    }
    Ok(None)
}
