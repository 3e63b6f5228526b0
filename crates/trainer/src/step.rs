//! One training step: gradients, taken in as few parts as the device's memory holds, and an update.

use std::ops::Range;

use candle_core::{Device, Tensor};
use ops::{Gradients, Segments};
use peft::{Batch, Model, Pass};

use crate::device;
use crate::error::{Error, Result};
use crate::evaluation::loss;
use crate::optimizer::Optimizer;

/// Which step it is.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// From 0.
    pub index: usize,
    /// Of dropout.
    pub seed: u64,
    /// What multiplies the learning rates.
    pub factor: f64,
}

/// The loss, a scalar on the model's device, and an update if it is finite. On a GPU nobody waits for it.
///
/// Where memory does not suffice for the whole batch, its gradient is added up over parts of at most `part_tokens` tokens, which
/// is lowered until they fit. Their dropout differs from that of the whole.
///
/// # Errors
/// When memory does not suffice for one sequence.
pub(crate) fn take_step(
    model: &Model,
    optimizer: &mut Optimizer,
    batch: &Batch,
    targets: &Tensor,
    step: Step,
    part_tokens: &mut Option<usize>,
) -> Result<Tensor> {
    ops::on_workers(|| {
        let whole = Share { batch, targets, seed: step.seed, share: 1.0 };
        let (loss, gradients) = gradients(model, whole, part_tokens)?;
        optimizer.step(&gradients, &loss, step.factor, step.index)?;
        Ok(loss)
    })
}

/// What one model computes of a step: a batch, or the share of one that a device among several has.
#[derive(Clone, Copy)]
pub(crate) struct Share<'a> {
    pub batch: &'a Batch,
    /// (sequences)
    pub targets: &'a Tensor,
    /// Of dropout.
    pub seed: u64,
    /// The share of the step's sequences.
    pub share: f64,
}

/// What a batch adds to a step's loss, a scalar on the model's device, and to its gradients. Where memory does not suffice, in parts of
/// `part_tokens`, as [`take_step`].
///
/// # Errors
/// When memory does not suffice for one sequence.
pub(crate) fn gradients(model: &Model, share: Share, part_tokens: &mut Option<usize>) -> Result<(Tensor, Gradients)> {
    let segments = &share.batch.segments;
    loop {
        let parts = parts(segments, *part_tokens);
        match from_parts(model, share, &parts) {
            Err(error) if device::is_out_of_memory(&error) => {
                *part_tokens = Some(smaller(segments, &parts).ok_or_else(|| Error::OutOfMemory {
                    needed: format!("a step on one sequence of at most {} tokens", longest(segments)),
                    found: device::memory(model.device()),
                })?);
            }
            other => return other,
        }
    }
}

/// The same from these parts.
fn from_parts(model: &Model, share: Share, parts: &[Range<usize>]) -> Result<(Tensor, Gradients)> {
    let Share { batch, targets, seed, share } = share;
    let [first, others @ ..] = parts else {
        return Err(Error::Setting { name: "batch", found: "no sequence".into(), expected: "at least one".into() });
    };
    if others.is_empty() {
        let recorded = record(model, batch, targets, seed)?;
        return Ok((times(recorded.value(), share)?, recorded.gradients_times(share)?));
    }
    let part = |part: &Range<usize>| -> Result<(f64, Gradients)> {
        let places: Vec<usize> = part.clone().collect();
        let targets = targets.narrow(0, part.start, part.len())?;
        let recorded = record(model, &batch.select(&places)?, &targets, seed.wrapping_add(part.start as u64))?;
        let share = share * part.len() as f64 / batch.segments.len() as f64;
        Ok((share * f64::from(recorded.value().to_scalar::<f32>()?), recorded.gradients_times(share)?))
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
    let factor = Tensor::full(factor as f32, value.shape(), &Device::Cpu)?.to_device(value.device())?;
    Ok(ops::without_gradients(|| ops::gate(value, &factor))?)
}

/// The loss of one pass.
fn record(model: &Model, batch: &Batch, targets: &Tensor, seed: u64) -> Result<ops::Recorded> {
    ops::record(|| -> Result<Tensor> {
        let logits = model.forward(batch, &Pass::training(&batch.segments, seed))?; // (sequences, num_labels)
        let loss = loss(&logits, targets)?;
        Ok(match model.regularization()? {
            Some(term) => ops::add_dropout(&loss, &term, None)?,
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
