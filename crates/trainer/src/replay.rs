//! The steps or forward passes that another implementation took, taken again: on its batches, from its start.

use std::path::Path;
use std::time::Instant;

use candle_core::npy::NpzTensors;
use candle_core::{DType, Device, Tensor};
use peft::{Batch, Model, ModelOptions, Sequence};
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::device;
use crate::environment::peak_memory;
use crate::error::{Error, Result};
use crate::evaluation::loss;
use crate::optimizer::Optimizer;
use crate::replicas::Replicas;
use crate::run::Run;
use crate::schedule::Schedule;
use crate::several::Seat;
use crate::sitting;
use crate::step::Step;
use crate::trainer::Trainer;

/// What a replay does with each batch: its step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passes {
    /// Forward and backward with dropout, and an update.
    #[default]
    Training,
    /// Forward, without dropout and without an optimiser.
    Forward {
        /// With LoRA's branches merged into the weights before the first batch ([`peft::Model::merge_and_unload`]).
        merged: bool,
    },
}

/// Where a replay's model starts.
#[derive(Clone, Copy, Debug, Default)]
pub enum Start<'a> {
    /// As a run's.
    #[default]
    New,
    /// With the values in a safetensors file, one for each new parameter: classifier, LoRA's A and B.
    Values(&'a Path),
    /// From the adapter in a folder.
    Adapter(&'a Path),
}

/// What a replay measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replayed {
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// The time of each step in seconds: from the batch in memory to the updated parameters, or to the loss where nothing is
    /// trained. A GPU works on while the next step is prepared: there the last one has what was left to wait for, and only the
    /// sum says how fast it is.
    pub step_seconds: Vec<f64>,
    /// The sequences of each step.
    pub examples: Vec<usize>,
    /// The tokens of each step, padding not counted.
    pub tokens: Vec<usize>,
    /// The most memory the process has held, in bytes; on a GPU, of the card's.
    pub peak_memory: u64,
    /// The logits of each forward pass, `(steps, sequences, labels)`; empty where the model is trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logits: Vec<Vec<Vec<f32>>>,
    /// What of the adapter that it starts from was passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Passes over the batches in an npz file: `steps`, and for each step `s` from 0 `s{s}.input_ids`, `s{s}.attention_mask` (both
/// `(sequences, padded length)`), `s{s}.token_type_ids` if there are types, and `s{s}.labels`. The schedule runs over just these
/// steps. What was trained is written to `save_adapter`, if that is given.
///
/// # Errors
/// When a file lacks a tensor or has one of another shape, or the model is missing.
pub fn replay(
    trainer: &mut Trainer,
    run: &Run,
    batches: &Path,
    start: Start,
    passes: Passes,
    save_adapter: Option<&Path>,
) -> Result<Replayed> {
    let batches = read_batches(run, batches)?;
    let run = &Run { method: run.method.clone().over(batches.len()), ..run.clone() };
    let (pretrained, options) = (trainer.pretrained(&run.model)?, trainer.options(run, Seat::ALONE)?);
    let mut warnings = Vec::new();
    let mut built = |device: &Device| -> Result<Model> {
        let options = ModelOptions { device: device.clone(), ..options.clone() };
        if let Start::Adapter(folder) = start {
            let model = Model::new(&pretrained, &options)?;
            warnings = model.load_adapter(folder)?.iter().map(ToString::to_string).collect();
            return Ok(model);
        }
        // A start from data that has not settled by then goes over the batches again.
        let again = batches.iter().cycle().take(10 * batches.len());
        let model = sitting::start(run, &pretrained, &options, again.map(|(sequences, _)| Ok(Batch::new(sequences)?)))?;
        if let Start::Values(file) = start {
            checkpoint::load_start(file, model.parameters())?;
        }
        Ok(model)
    };
    let model = built(&options.device)?;
    let cards = if passes == Passes::Training { trainer.devices()?.split_off(1) } else { Vec::new() };
    let others = cards.iter().map(built).collect::<Result<_>>()?;
    let replicas = Replicas::start(&model, others, &run.settings, None)?;
    let schedule = Schedule::new(batches.len(), run.settings.warmup_ratio);
    let model = if passes == (Passes::Forward { merged: true }) { model.merge_and_unload()? } else { model };
    let mut optimizer = (passes == Passes::Training).then(|| Optimizer::new(&model, &run.settings)).transpose()?;
    let mut replayed = Replayed {
        losses: Vec::new(),
        step_seconds: Vec::new(),
        examples: Vec::new(),
        tokens: Vec::new(),
        peak_memory: 0,
        logits: Vec::new(),
        warnings,
    };
    let mut losses = Vec::with_capacity(batches.len()); // Unread: on a GPU, reading one is to wait for its step.
    for (step, (sequences, targets)) in batches.iter().enumerate() {
        let began = Instant::now();
        let batch = Batch::new(sequences)?;
        losses.push(match &mut optimizer {
            Some(optimizer) => {
                let this = Step { index: step, seed: run.seed + step as u64, factor: schedule.factor(step) };
                replicas.step(&model, optimizer, &batch, targets, this, &mut None)?
            }
            None => {
                let logits = model.predict(&batch)?;
                replayed.logits.push(logits.to_vec2()?);
                loss(&logits, targets)?
            }
        });
        replayed.step_seconds.push(began.elapsed().as_secs_f64());
        replayed.examples.push(sequences.len());
        replayed.tokens.push(batch.tokens());
    }
    let began = Instant::now();
    replicas.wait(&model)?;
    for loss in losses {
        replayed.losses.push(f64::from(loss.to_scalar::<f32>()?));
    }
    if let Some(last) = replayed.step_seconds.last_mut() {
        *last += began.elapsed().as_secs_f64();
    }
    replayed.peak_memory = device::peak_memory(model.device()).unwrap_or_else(peak_memory);
    if let Some(folder) = save_adapter {
        model.save_adapter(folder)?;
    }
    Ok(replayed)
}

/// Each step's sequences without their padding, and their labels.
fn read_batches(run: &Run, path: &Path) -> Result<Vec<(Vec<Sequence>, Tensor)>> {
    let content = |found: String| Error::Batches { path: path.into(), found };
    let file = NpzTensors::new(path).map_err(|error| content(error.to_string()))?;
    let read = |name: &str| file.get(name).map_err(|error| content(format!("{name}: {error}")));
    let required = |name: &str| read(name)?.ok_or_else(|| content(format!("no {name}")));
    let rows = |tensor: Tensor, name: &str| {
        tensor
            .to_dtype(DType::U32)
            .and_then(|t| t.to_vec2::<u32>())
            .map_err(|error| content(format!("{name}: {error}")))
    };
    let steps = required("steps")?.to_dtype(DType::U32)?.to_scalar::<u32>()?;
    (0..steps)
        .map(|step| {
            let matrix = |key: &str| {
                let name = format!("s{step}.{key}");
                rows(required(&name)?, &name)
            };
            let (ids, mask) = (matrix("input_ids")?, matrix("attention_mask")?);
            let types = match read(&format!("s{step}.token_type_ids"))? {
                Some(types) => rows(types, "token_type_ids")?,
                None => ids.iter().map(|ids| vec![0; ids.len()]).collect(),
            };
            let sequences = ids
                .into_iter()
                .zip(mask)
                .zip(types)
                .map(|((mut input_ids, mask), mut token_type_ids)| {
                    let length = mask.iter().filter(|&&there| there == 1).count();
                    input_ids.truncate(length);
                    token_type_ids.truncate(length);
                    Sequence { input_ids, token_type_ids }
                })
                .collect();
            let labels = required(&format!("s{step}.labels"))?;
            let labels = labels.to_dtype(if run.task.is_regression() { DType::F32 } else { DType::U32 })?;
            Ok((sequences, labels))
        })
        .collect()
}
