//! Evaluation and prediction: a model's loss, metrics and predictions on examples, without dropout.

use candle_core::{DType, Device, Tensor};
use glue::{Scores, Targets, Task};
use peft::{Batch, Model, Sequence};

use crate::data::Labeled;
use crate::error::{Error, Result};

/// Sequences of one forward pass.
const BATCH_SIZE: usize = 64;

/// The mean loss of a batch: cross-entropy over classes, or the mean squared error of a score on its own scale (0 to 5 for
/// STS-B), as transformers computes it. logits `(sequences, num_labels)`, targets `(sequences)`.
pub(crate) fn loss(logits: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
    match targets.dtype() {
        DType::U32 => ops::cross_entropy(logits, targets),
        _ => ops::mean_squared_error(logits, &targets.to_dtype(logits.dtype())?),
    }
}

/// Indices in order of length, so that a pass holds sequences of like lengths.
fn by_length(sequences: &[Sequence]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(sequences[index].len()));
    order
}

/// The model's mean loss on labeled examples, and the task's metrics. Where an output of the model is not finite, neither loss nor metrics
/// are numbers.
///
/// # Errors
/// When memory does not suffice or a device fails.
pub fn evaluate(model: &Model, task: Task, data: &Labeled) -> Result<(f64, Scores)> {
    let Measured { loss, scores, .. } = measure(model, task, data)?;
    Ok((loss, scores))
}

/// What a model does on labeled examples.
pub(crate) struct Measured {
    /// The mean over the examples.
    pub loss: f64,
    pub scores: Scores,
    /// In the order of the examples; none where an output of the model is not finite, and neither loss nor scores are numbers.
    pub predicted: Option<Targets>,
}

/// The same as [`evaluate`], and the model's predictions.
pub(crate) fn measure(model: &Model, task: Task, data: &Labeled) -> Result<Measured> {
    let mut rows = vec![Vec::new(); data.len()];
    let mut total = 0.0;
    for indices in by_length(&data.sequences).chunks(BATCH_SIZE) {
        let (batch, targets) = data.batch(indices)?;
        let logits = model.predict(&batch)?;
        total += to_f64(&loss(&logits, &targets)?)?.to_scalar::<f64>()? * indices.len() as f64;
        for (&index, row) in indices.iter().zip(to_f64(&logits)?.to_vec2::<f64>()?) {
            rows[index] = row;
        }
    }
    if undecided(&rows) > 0 {
        let scores = Scores(task.metrics().iter().map(|&metric| (metric, f64::NAN)).collect());
        return Ok(Measured { loss: f64::NAN, scores, predicted: None });
    }
    let predicted = decide(task, &rows);
    let scores = task.score(&predicted, &data.targets)?;
    Ok(Measured { loss: total / data.len() as f64, scores, predicted: Some(predicted) })
}

/// The model's predictions for unlabeled examples, in their order.
///
/// # Errors
/// When an output of the model is not finite; the message says of how many examples. When memory does not suffice or a device fails.
pub fn predict(model: &Model, task: Task, sequences: &[Sequence]) -> Result<Targets> {
    let mut rows = vec![Vec::new(); sequences.len()];
    for indices in by_length(sequences).chunks(BATCH_SIZE) {
        let batch = Batch::new(indices.iter().map(|&index| &sequences[index]))?;
        let logits = to_f64(&model.predict(&batch)?)?.to_vec2::<f64>()?;
        for (&index, row) in indices.iter().zip(logits) {
            rows[index] = row;
        }
    }
    match undecided(&rows) {
        0 => Ok(decide(task, &rows)),
        count => Err(Error::NoPrediction { task: task.to_string(), count, of: rows.len() }),
    }
}

/// The same numbers in f64 on the CPU.
fn to_f64(numbers: &Tensor) -> candle_core::Result<Tensor> {
    numbers.to_device(&Device::Cpu)?.to_dtype(DType::F64)
}

/// How many examples have an output that is not finite, which decides nothing.
fn undecided(rows: &[Vec<f64>]) -> usize {
    rows.iter().filter(|row| !row.iter().all(|output| output.is_finite())).count()
}

/// The class of the highest logit (the first of equals), or the score itself.
fn decide(task: Task, rows: &[Vec<f64>]) -> Targets {
    if task.is_regression() {
        return Targets::Values(rows.iter().map(|row| row.first().copied().unwrap_or(f64::NAN)).collect());
    }
    let highest = |row: &Vec<f64>| {
        row.iter().enumerate().fold((0, f64::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best }).0
    };
    Targets::Classes(rows.iter().map(highest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_with_an_output_that_is_not_finite_is_undecided() {
        let rows = [vec![0.5, -0.5], vec![f64::NAN, 0.0], vec![0.0, f64::INFINITY], vec![f64::NEG_INFINITY, 0.0]];
        assert_eq!(undecided(&rows), 3);
        assert_eq!(undecided(&rows[..1]), 0);
        assert_eq!(decide(Task::Rte, &rows[..1]), Targets::Classes(vec![0]));
    }
}
