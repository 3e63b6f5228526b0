//! One vector for each sequence: its first token's, or the mean over its tokens.

use candle_core::{Result, Tensor};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::segments::Segments;

/// Each sequence's first row: `(tokens, hidden)` to `(sequences, hidden)`.
pub fn first_tokens(hidden: &Tensor, segments: &Segments) -> Result<Tensor> {
    segments.check(hidden.dim(0)?, FirstTokens::NAME)?;
    apply(FirstTokens(segments.clone()), &[hidden])
}

pub(crate) struct FirstTokens(pub(crate) Segments);

impl Operation for FirstTokens {
    const NAME: &'static str = "first_tokens";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (_, hidden) = inputs[0].matrix();
        let rows = self.0.starts().iter().flat_map(|&start| &inputs[0].data[start * hidden..(start + 1) * hidden]);
        Ok(Output::new(rows.copied().collect(), vec![self.0.len(), hidden]))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let (_, hidden) = inputs[0].matrix();
        let mut values = vec![T::zero(); inputs[0].data.len()];
        for (&start, gradient) in self.0.starts().iter().zip(gradient.data.chunks_exact(hidden)) {
            values[start * hidden..(start + 1) * hidden].copy_from_slice(gradient);
        }
        Ok(vec![Gradient::Values(values)])
    }
}

/// The mean over each sequence's tokens: `(tokens, hidden)` to `(sequences, hidden)`.
pub fn segment_mean(hidden: &Tensor, segments: &Segments) -> Result<Tensor> {
    apply(SegmentMean(segments.clone()), &[hidden])
}

pub(crate) struct SegmentMean(pub(crate) Segments);

impl Operation for SegmentMean {
    const NAME: &'static str = "segment_mean";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (tokens, hidden) = inputs[0].matrix();
        self.0.check(tokens, Self::NAME)?;
        let mut means = vec![T::zero(); self.0.len() * hidden];
        for (mean, range) in means.chunks_exact_mut(hidden).zip(self.0.ranges()) {
            let share = T::of(1.0 / range.len() as f64);
            for row in inputs[0].data[range.start * hidden..range.end * hidden].chunks_exact(hidden) {
                for (sum, &value) in mean.iter_mut().zip(row) {
                    *sum += value * share;
                }
            }
        }
        Ok(Output::new(means, vec![self.0.len(), hidden]))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let (tokens, hidden) = inputs[0].matrix();
        let mut values = vec![T::zero(); tokens * hidden];
        for (row, range) in gradient.data.chunks_exact(hidden).zip(self.0.ranges()) {
            let share = T::of(1.0 / range.len() as f64);
            for token in values[range.start * hidden..range.end * hidden].chunks_exact_mut(hidden) {
                for (value, &upstream) in token.iter_mut().zip(row) {
                    *value = upstream * share;
                }
            }
        }
        Ok(vec![Gradient::Values(values)])
    }
}
