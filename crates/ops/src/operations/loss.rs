//! What training makes small.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::{Float, highest};

/// The mean over sequences of `-log softmax(logits)[class]`: logits `(sequences, classes)`, classes `(sequences)` in u32; a scalar.
///
/// # Errors
/// When there is no sequence, or a class lies beyond the logits.
pub fn cross_entropy(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    let (sequences, count) = logits.dims2()?;
    let classes = classes.to_vec1::<u32>()?;
    if sequences == 0 || classes.len() != sequences {
        bail!("cross_entropy: {} classes for logits of shape {:?}", classes.len(), logits.dims())
    }
    if let Some(class) = classes.iter().find(|&&class| class as usize >= count) {
        bail!("cross_entropy: class {class} of {count} logits")
    }
    apply(CrossEntropy { classes }, &[logits])
}

pub(crate) struct CrossEntropy {
    pub(crate) classes: Vec<u32>,
}

/// The highest logit of a row, and the sum of `e^(logit - highest)`.
fn exponential_sum<T: Float>(row: &[T]) -> (T, T) {
    let highest = highest(row);
    (highest, row.iter().map(|&logit| (logit - highest).exp()).sum())
}

impl Operation for CrossEntropy {
    const NAME: &'static str = "cross_entropy";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (rows, columns) = inputs[0].matrix();
        let losses = inputs[0].data.chunks_exact(columns).zip(&self.classes).map(|(row, &class)| {
            let (highest, sum) = exponential_sum(row);
            sum.ln() + highest - row[class as usize]
        });
        Ok(Output::new(vec![losses.sum::<T>() / T::of(rows as f64)], Vec::new()))
    }

    /// `(softmax(logits) - [1 at the class]) / sequences`.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let (rows, columns) = inputs[0].matrix();
        let share = gradient.data[0] / T::of(rows as f64);
        let mut values = inputs[0].data.to_vec();
        for (row, &class) in values.chunks_exact_mut(columns).zip(&self.classes) {
            let (highest, sum) = exponential_sum(row);
            row.iter_mut().for_each(|value| *value = share * (*value - highest).exp() / sum);
            row[class as usize] += -share;
        }
        Ok(vec![Gradient::Values(values)])
    }
}

/// The mean of `(scores - targets)²`: scores `(sequences, 1)`, targets `(sequences)` of the same type, on any device; a
/// scalar.
///
/// # Errors
/// When the sizes differ, or there is no sequence.
pub fn mean_squared_error(scores: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if scores.dims() != [targets.elem_count(), 1] || targets.elem_count() == 0 {
        bail!("mean_squared_error: scores {:?} and targets {:?} do not fit", scores.dims(), targets.dims())
    }
    apply(MeanSquaredError, &[scores, &targets.to_device(scores.device())?])
}

pub(crate) struct MeanSquaredError;

impl Operation for MeanSquaredError {
    const NAME: &'static str = "mean_squared_error";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let squares = inputs[0].data.iter().zip(inputs[1].data).map(|(&score, &target)| (score - target).powi(2));
        Ok(Output::new(vec![squares.sum::<T>() / T::of(inputs[0].data.len() as f64)], Vec::new()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let share = T::of(2.0) * gradient.data[0] / T::of(inputs[0].data.len() as f64);
        let values = inputs[0].data.iter().zip(inputs[1].data).map(|(&score, &target)| share * (score - target));
        Ok(vec![Gradient::Values(values.collect()), Gradient::None])
    }
}
