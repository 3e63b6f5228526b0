//! Rows whose norm is bounded, for values that are projected after each step.

use candle_core::{Result, Tensor};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::{Float, sum};

/// Each row of x `(rows, columns)` as it is, or made shorter where its norm is more than `bound`.
///
/// The gradient passes as it comes, as that of the rows that are given back: whoever trains x puts these in its place, as projected
/// gradient descent does.
///
/// # Errors
/// When x is no matrix.
pub fn bounded_rows(x: &Tensor, bound: f64) -> Result<Tensor> {
    x.dims2()?;
    apply(BoundedRows { bound }, &[x])
}

struct BoundedRows {
    bound: f64,
}

impl Operation for BoundedRows {
    const NAME: &'static str = "bounded_rows";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (mut values, bound) = (inputs[0].data.to_vec(), T::of(self.bound));
        for row in values.chunks_exact_mut(inputs[0].matrix().1.max(1)) {
            let norm = sum(row, |_, value| value * value).sqrt();
            if norm > bound {
                row.iter_mut().for_each(|value| *value *= bound / norm);
            }
        }
        Ok(Output::new(values, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { .. } = pass;
        Ok(vec![Gradient::Upstream])
    }
}
