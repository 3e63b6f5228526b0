//! Where the sequences of a packed batch begin and end.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::float::Float;
use crate::operation::{Gradient, Operation, View, apply};

/// The sequences of a packed batch: sequence `i` is the rows `offsets[i]..offsets[i + 1]` of a `(tokens, hidden)` matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    offsets: Arc<[usize]>,
    #[cfg(feature = "cuda")]
    uploaded: crate::cuda::Uploaded,
}

impl Segments {
    fn new(offsets: Arc<[usize]>) -> Self {
        Self {
            offsets,
            #[cfg(feature = "cuda")]
            uploaded: Default::default(),
        }
    }

    /// The offsets, `(sequences + 1)`, on that GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self, gpu: &crate::cuda::Gpu) -> Result<Arc<crate::cuda::Indices>> {
        self.uploaded.or_upload(gpu, &self.offsets)
    }

    /// Segments of these lengths, one after the other.
    pub fn from_lengths(lengths: &[usize]) -> Self {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        Self::new(std::iter::once(0).chain(ends).collect())
    }

    /// The same with so many rows more before each sequence's own.
    pub fn lengthened(&self, rows: usize) -> Self {
        Self::new(self.offsets.iter().enumerate().map(|(index, offset)| offset + index * rows).collect())
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens all sequences have together.
    pub fn tokens(&self) -> usize {
        self.offsets[self.len()]
    }

    /// The row of each sequence's first token.
    pub fn starts(&self) -> &[usize] {
        &self.offsets[..self.len()]
    }

    /// The rows of each sequence.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }

    pub(crate) fn check(&self, tokens: usize, operation: &str) -> Result<()> {
        if self.tokens() != tokens {
            bail!("{operation}: the segments hold {} tokens, the tensor has {tokens}", self.tokens());
        }
        if self.ranges().any(|range| range.is_empty()) {
            bail!("{operation}: a sequence of the batch has no token");
        }
        Ok(())
    }
}

/// Each sequence's first row: `(tokens, hidden)` to `(sequences, hidden)`.
pub fn first_tokens(hidden: &Tensor, segments: &Segments) -> Result<Tensor> {
    segments.check(hidden.dim(0)?, FirstTokens::NAME)?;
    apply(FirstTokens(segments.clone()), &[hidden])
}

pub(crate) struct FirstTokens(pub(crate) Segments);

impl Operation for FirstTokens {
    const NAME: &'static str = "first_tokens";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let (_, hidden) = inputs[0].matrix();
        let rows = self.0.starts().iter().flat_map(|&start| &inputs[0].data[start * hidden..(start + 1) * hidden]);
        Ok((rows.copied().collect(), vec![self.0.len(), hidden]))
    }

    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        _needed: &[bool],
        _output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>> {
        let (_, hidden) = inputs[0].matrix();
        let mut values = vec![T::zero(); inputs[0].data.len()];
        for (&start, gradient) in self.0.starts().iter().zip(gradient.data.chunks_exact(hidden)) {
            values[start * hidden..(start + 1) * hidden].copy_from_slice(gradient);
        }
        Ok(vec![Gradient::Values(values)])
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Option<&dyn crate::cuda::GpuOperation> {
        Some(self)
    }
}

/// The mean over each sequence's tokens: `(tokens, hidden)` to `(sequences, hidden)`.
pub fn segment_mean(hidden: &Tensor, segments: &Segments) -> Result<Tensor> {
    apply(SegmentMean(segments.clone()), &[hidden])
}

pub(crate) struct SegmentMean(pub(crate) Segments);

impl Operation for SegmentMean {
    const NAME: &'static str = "segment_mean";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
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
        Ok((means, vec![self.0.len(), hidden]))
    }

    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        _needed: &[bool],
        _output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>> {
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

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Option<&dyn crate::cuda::GpuOperation> {
        Some(self)
    }
}
