//! One training step: forward and backward pass, in as few parts as the device's memory holds, and the optimizer's update.

use std::ops::Range;

use candle_core::Tensor;
use ops::{Gradients, Segments};
use peft::{Batch, ForwardPass, Model};

use crate::device;
use crate::error::{Error, Result};
use crate::evaluation::loss;
use crate::run::Settings;
use crate::training::Optimizer;

/// A model and its optimizer.
pub(crate) struct Learner {
    pub model: Model,
    pub optimizer: Optimizer,
}

/// The examples of a step that one device computes: a whole batch, or a part of one that several devices share.
pub(crate) struct Shard {
    pub batch: Batch,
    /// (sequences)
    pub targets: Tensor,
    /// Of dropout.
    pub seed: u64,
    /// The part of the step's sequences, from 0 to 1.
    pub weight: f64,
}

impl Shard {
    /// A whole batch.
    pub(crate) fn whole(batch: Batch, targets: Tensor, seed: u64) -> Self {
        Self { batch, targets, seed, weight: 1.0 }
    }
}

/// Which update of the parameters a step makes.
#[derive(Clone, Copy)]
pub(crate) struct Update {
    /// Counted from 0.
    pub index: usize,
    /// What multiplies the learning rates.
    pub factor: f64,
}

impl Learner {
    /// # Errors
    /// As [`Optimizer::new`].
    pub(crate) fn new(model: Model, settings: &Settings) -> Result<Self> {
        let optimizer = Optimizer::new(&model, settings)?;
        Ok(Self { model, optimizer })
    }

    /// Takes a step: the loss, a scalar on the model's device, and an update if it is finite. On a GPU nobody waits for it.
    ///
    /// Where memory does not suffice for the whole batch, its gradient is added up over parts of at most `part_tokens` tokens, which
    /// is lowered until they fit. Their dropout differs from that of the whole.
    ///
    /// # Errors
    /// When memory does not suffice for one sequence.
    pub(crate) fn step(&mut self, shard: &Shard, update: Update, part_tokens: &mut Option<usize>) -> Result<Tensor> {
        let device = self.model.device().clone();
        ops::on_workers(&device, || {
            let (loss, gradients) = self.gradients(shard, part_tokens)?;
            self.optimizer.step(&gradients, &loss, update)?;
            Ok(loss)
        })
    }

    /// What a shard adds to a step's loss, a scalar on the model's device, and to its gradients. Where memory does not suffice, in parts
    /// of `part_tokens`, as [`Learner::step`].
    ///
    /// # Errors
    /// When memory does not suffice for one sequence.
    pub(crate) fn gradients(&self, shard: &Shard, part_tokens: &mut Option<usize>) -> Result<(Tensor, Gradients)> {
        let segments = &shard.batch.segments;
        loop {
            let parts = parts(segments, *part_tokens);
            match gradients_in_parts(&self.model, shard, &parts) {
                Err(error) if device::is_out_of_memory(&error) => {
                    *part_tokens = Some(smaller(segments, &parts).ok_or_else(|| Error::OutOfMemory {
                        needed: format!("a step on one sequence of at most {} tokens", longest(segments)),
                        found: device::memory(self.model.device()),
                    })?);
                }
                other => return other,
            }
        }
    }
}

/// The loss and gradients of a shard, added up over these parts of its sequences.
fn gradients_in_parts(model: &Model, shard: &Shard, parts: &[Range<usize>]) -> Result<(Tensor, Gradients)> {
    let &Shard { ref batch, ref targets, seed, weight } = shard;
    let [first, others @ ..] = parts else {
        return Err(Error::Setting { name: "batch", found: "no sequence".into(), expected: "at least one".into() });
    };
    if others.is_empty() {
        let recorded = record(model, batch, targets, seed)?;
        return Ok((times(recorded.value(), weight)?, recorded.gradients_times(weight)?));
    }
    let part = |part: &Range<usize>| -> Result<(f64, Gradients)> {
        let places: Vec<usize> = part.clone().collect();
        let targets = targets.narrow(0, part.start, part.len())?;
        let recorded = record(model, &batch.select(&places)?, &targets, seed.wrapping_add(part.start as u64))?;
        let weight = weight * part.len() as f64 / batch.segments.len() as f64;
        Ok((weight * f64::from(recorded.value().to_scalar::<f32>()?), recorded.gradients_times(weight)?))
    };
    let (mut loss, mut sum) = part(first)?;
    for other in others {
        let (value, gradients) = part(other)?;
        loss += value;
        sum = sum.plus(gradients)?;
    }
    Ok((Tensor::new(loss as f32, model.device())?, sum))
}

/// A scalar times a number, on its device.
fn times(value: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 {
        return Ok(value.clone());
    }
    Ok(ops::without_gradients(|| ops::scale(value, factor))?)
}

/// The loss of one forward pass, recorded for the backward pass.
fn record(model: &Model, batch: &Batch, targets: &Tensor, seed: u64) -> Result<ops::Recorded> {
    ops::record(|| -> Result<Tensor> {
        let logits = model.forward(batch, &ForwardPass::training(&batch.segments, seed))?; // (sequences, num_labels)
        let loss = loss(&logits, targets)?;
        Ok(match model.regularization()? {
            Some(term) => ops::add(&loss, &term)?,
            None => loss,
        })
    })
}

/// The sequences in parts of at most so many tokens, or of one sequence.
fn parts(segments: &Segments, tokens: Option<usize>) -> Vec<Range<usize>> {
    let limit = tokens.unwrap_or(usize::MAX);
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (place, rows) in segments.ranges().enumerate() {
        match parts.last_mut() {
            Some(part) if held + rows.len() <= limit => {
                part.end = place + 1;
                held += rows.len();
            }
            _ => {
                parts.push(place..place + 1);
                held = rows.len();
            }
        }
    }
    parts
}

/// Half of the tokens that the largest part has; `None` if the largest is one sequence.
fn smaller(segments: &Segments, parts: &[Range<usize>]) -> Option<usize> {
    let lengths: Vec<usize> = segments.ranges().map(|rows| rows.len()).collect();
    let tokens = |part: &&Range<usize>| lengths[(*part).clone()].iter().sum::<usize>();
    let largest = parts.iter().max_by_key(tokens)?;
    (largest.len() > 1).then(|| tokens(&largest).div_ceil(2))
}

fn longest(segments: &Segments) -> usize {
    segments.ranges().map(|rows| rows.len()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)] // A test fails by panicking.

    use super::*;

    #[test]
    fn a_batch_is_one_part_without_a_limit_and_parts_hold_whole_sequences_within_one() {
        let segments = Segments::from_lengths(&[5, 3, 9, 2, 2]);
        assert_eq!(parts(&segments, None), [0..5]);
        assert_eq!(parts(&segments, Some(8)), [0..2, 2..3, 3..5]);
        assert_eq!(parts(&segments, Some(1)), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(parts(&segments, Some(21)), [0..5]);
    }

    #[test]
    fn the_limit_is_halved_until_the_largest_part_is_one_sequence() {
        let segments = Segments::from_lengths(&[5, 3, 9, 2, 2]);
        let (mut limit, mut limits) = (None, Vec::new());
        while let Some(next) = smaller(&segments, &parts(&segments, limit)) {
            limits.push(next);
            limit = Some(next);
        }
        assert_eq!(limits, [11, 6]);
        assert!(parts(&segments, limit).contains(&(2..3)));
    }
}
