//! Replays the training steps or forward passes of another implementation, such as PEFT's: its batches from a file, its initial values.

use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use peft::{Adapter, Batch, Model, ModelOptions, Pretrained, Sequence};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, State};
use crate::device;
use crate::environment::peak_memory;
use crate::error::{Error, Result};
use crate::evaluation::loss;
use crate::events::Silent;
use crate::job::build_model;
use crate::npz::{Array, Npz};
use crate::record::Stop;
use crate::run::Run;
use crate::scheduler::Slot;
use crate::trainer::Trainer;
use crate::training::replicas::Replicas;
use crate::training::step::{Learner, Shard};
use crate::training::{StepPlan, Training};

/// What a replay does with each batch: its step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passes {
    /// Forward and backward with dropout, and an update.
    #[default]
    Training,
    /// Forward, without dropout and without an optimizer.
    Forward {
        /// With LoRA's branches merged into the weights before the first batch ([`peft::Model::merge_and_unload`]).
        merged: bool,
    },
}

/// Which values the parameters of a replay's model have before its first step.
#[derive(Clone, Copy, Debug, Default)]
pub enum InitialValues<'a> {
    /// As a run's.
    #[default]
    New,
    /// With those in a safetensors file, one for each new parameter: classifier, LoRA's A and B.
    File(&'a Path),
    /// From the adapter in a folder.
    Adapter(&'a Path),
}

/// What a replay measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Replayed {
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// The time of each step in seconds: from the batch in memory to the updated parameters, or to the loss where nothing is
    /// trained. A GPU works on while the next step is prepared: there a step may wait for those before it, and only the sum says
    /// how fast it is.
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
/// `(sequences, padded length)`), `s{s}.token_type_ids` if there are types, and `s{s}.labels`. Padding stands at the right. The schedule
/// runs over just these steps. What was trained is written to `save_adapter`, if that is given.
///
/// # Errors
/// When a file lacks a tensor or has one of another shape, a number of it is none that it can be, the model is missing, or a loss is not finite.
pub fn replay(
    trainer: &mut Trainer,
    run: &Run,
    batches: &Path,
    start: InitialValues,
    passes: Passes,
    save_adapter: Option<&Path>,
) -> Result<Replayed> {
    let batches = read_batches(run, batches)?;
    let run = &Run { method: run.method.clone().over(batches.len()), ..run.clone() };
    let (pretrained, options) = (trainer.pretrained(&run.model)?, trainer.options(run, Slot::ALONE)?);
    let mut warnings = Vec::new();
    let mut build = |device: &Device| {
        let options = ModelOptions { device: device.clone(), ..options.clone() };
        let (model, passed_over) = initial_model(run, &pretrained, &options, start, &batches)?;
        warnings = passed_over;
        Ok(model)
    };
    let model = build(&options.device)?;
    let (model, replayed) = match passes {
        Passes::Training => {
            let others = trainer.devices()?.iter().skip(1).map(build).collect::<Result<_>>()?;
            train(run, model, others, &batches)?
        }
        Passes::Forward { merged } => {
            let model = if merged { model.merge_and_unload()? } else { model };
            let replayed = predict(&model, &batches)?;
            (model, replayed)
        }
    };
    let peak_memory = device::peak_memory(model.device()).unwrap_or_else(peak_memory);
    if let Some(folder) = save_adapter {
        model.save_adapter(folder)?;
    }
    Ok(Replayed {
        examples: batches.iter().map(|(sequences, _)| sequences.len()).collect(),
        tokens: batches.iter().map(|(sequences, _)| sequences.iter().map(Sequence::len).sum()).collect(),
        peak_memory,
        warnings,
        ..replayed
    })
}

/// The sequences of a step, and their labels.
type Examples = (Vec<Sequence>, Tensor);

/// The model as it starts, and what of the adapter that it starts from was passed over.
fn initial_model(
    run: &Run,
    pretrained: &Pretrained,
    options: &ModelOptions,
    start: InitialValues,
    batches: &[Examples],
) -> Result<(Model, Vec<String>)> {
    if let InitialValues::Adapter(folder) = start {
        let adapter = Adapter::read(folder)?;
        let new_numbers = Some(adapter.new_numbers(pretrained));
        let options = ModelOptions { passes_over_names: true, new_numbers, ..options.clone() };
        let model = Model::new(pretrained, &options)?;
        let warnings = model.load(&adapter)?.iter().map(ToString::to_string).collect();
        return Ok((model, warnings));
    }
    // A start from data that has not settled by then goes over the batches again.
    let again = batches.iter().cycle().take(10 * batches.len());
    let model = build_model(run, pretrained, options, again.map(|(sequences, _)| Ok(Batch::new(sequences)?)))?;
    if let InitialValues::File(file) = start {
        checkpoint::load_initial_values(file, model.parameters())?;
    }
    Ok((model, Vec::new()))
}

/// The training loop on these batches.
fn train(run: &Run, model: Model, others: Vec<Model>, batches: &[Examples]) -> Result<(Model, Replayed)> {
    let learner = Learner::new(model, &run.settings)?;
    let replicas = Replicas::start(&learner, others, &run.settings, None)?;
    let plan = StepPlan::new(&run.settings, batches.len(), batches.len());
    let mut silent = Silent;
    let mut training = Training::new(learner, replicas, plan, State::default(), &mut silent);
    let mut began = Vec::with_capacity(batches.len() + 1);
    let batch = |step: usize| {
        began.push(Instant::now());
        let (sequences, targets) = &batches[step];
        Ok(Shard::whole(Batch::new(sequences)?, targets.clone(), run.seed + step as u64))
    };
    let stop = training.run(batch, &mut [])?;
    began.push(Instant::now());
    if stop == Stop::Diverged {
        return Err(Error::Diverged { step: training.state.step + 1 });
    }
    let losses = training.state.losses.iter().map(|step| step.loss).collect();
    let step_seconds = began.windows(2).map(|times| (times[1] - times[0]).as_secs_f64()).collect();
    Ok((training.learner.model, Replayed { losses, step_seconds, ..Replayed::default() }))
}

/// A forward pass over each batch.
fn predict(model: &Model, batches: &[Examples]) -> Result<Replayed> {
    let mut replayed = Replayed::default();
    for (sequences, targets) in batches {
        let began = Instant::now();
        let logits = model.predict(&Batch::new(sequences)?)?;
        replayed.logits.push(logits.to_vec2()?);
        replayed.losses.push(f64::from(loss(&logits, targets)?.to_scalar::<f32>()?));
        replayed.step_seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(replayed)
}

/// Each step's sequences without their padding, and their labels.
fn read_batches(run: &Run, path: &Path) -> Result<Vec<Examples>> {
    let content = |found: String| Error::Batches { path: path.into(), found };
    let mut file = Npz::open(path).map_err(content)?;
    let steps = required(&mut file, "steps").map_err(content)?;
    let steps = match steps.whole(u32::MAX).map_err(content)?.as_slice() {
        &[steps] if steps > 0 => steps,
        _ => return Err(content(format!("steps of the shape {:?}, expected one number above 0", steps.shape))),
    };
    (0..steps).map(|step| read_step(run, &mut file, &format!("s{step}")).map_err(content)).collect()
}

/// The sequences and the labels of one step.
fn read_step(run: &Run, file: &mut Npz, step: &str) -> std::result::Result<Examples, String> {
    let ids = required(file, &format!("{step}.input_ids"))?;
    let &[rows, width] = ids.shape.as_slice() else {
        return Err(format!("{step}.input_ids has the shape {:?}, expected (sequences, padded length)", ids.shape));
    };
    if rows == 0 || width == 0 {
        return Err(format!("{step}.input_ids has the shape {:?}, expected one token at least", ids.shape));
    }
    let mask = required(file, &format!("{step}.attention_mask"))?;
    let types = file.get(&format!("{step}.token_type_ids"))?;
    for (name, array) in [("attention_mask", Some(&mask)), ("token_type_ids", types.as_ref())] {
        if let Some(Array { shape, .. }) = array.filter(|array| array.shape != ids.shape) {
            return Err(format!("{step}.{name} has the shape {shape:?}, expected {:?} as the input_ids", ids.shape));
        }
    }
    let lengths = lengths(&mask, width)?;
    let (ids, types) = (ids.whole(u32::MAX)?, types.map(|types| types.whole(u32::MAX)).transpose()?);
    let row = |numbers: &[u32], row: usize, length: usize| numbers[row * width..][..length].to_vec();
    let sequences = lengths.iter().enumerate().map(|(index, &length)| Sequence {
        input_ids: row(&ids, index, length),
        token_type_ids: types.as_ref().map_or_else(|| vec![0; length], |types| row(types, index, length)),
    });
    let (sequences, labels) = (sequences.collect(), required(file, &format!("{step}.labels"))?);
    if labels.shape != [rows] {
        return Err(format!(
            "{step}.labels has the shape {:?}, expected [{rows}], one for each sequence",
            labels.shape
        ));
    }
    let labels = match run.task.is_regression() {
        true => Tensor::new(labels.finite()?, &Device::Cpu),
        false => Tensor::new(labels.whole(run.task.num_labels().saturating_sub(1) as u32)?, &Device::Cpu),
    };
    Ok((sequences, labels.map_err(|error| format!("{step}.labels: {error}"))?))
}

fn required(file: &mut Npz, name: &str) -> std::result::Result<Array, String> {
    file.get(name)?.ok_or_else(|| format!("no {name}"))
}

/// How many tokens the sequences of a mask have: in each row the ones, which stand first, before zeros for the padding.
fn lengths(mask: &Array, width: usize) -> std::result::Result<Vec<usize>, String> {
    let rows = mask.numbers.chunks(width).enumerate();
    rows.map(|(index, row)| {
        let length = row.iter().take_while(|&&there| there == 1.0).count();
        let first = index * width;
        match row[length..].iter().position(|&there| there != 0.0) {
            Some(place) => {
                Err(mask.wrong(first + length + place, "ones from the left, then zeros: padding goes to the right"))
            }
            None if length == 0 => Err(mask.wrong(first, "1: a sequence has a token at least")),
            None => Ok(length),
        }
    })
    .collect()
}
