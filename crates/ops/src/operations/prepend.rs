//! Rows that all sequences share, put before each sequence's own.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::{in_pieces, zeros};
use crate::cpu::reductions::add_rows;
use crate::segments::Segments;

/// Rows a thread takes at a time.
const ROWS: usize = 32;

/// The rows of `prefix` before those of each sequence of `x`: prefix `(n, hidden)`, x `(tokens, hidden)`, result
/// `(tokens + sequences * n, hidden)`, whose segments are [`Segments::lengthened`] by n. The prefix's gradient is a sum over the
/// sequences.
///
/// # Errors
/// When the shapes and the segments do not fit, or the prefix has no row.
pub fn prepend(prefix: &Tensor, x: &Tensor, segments: &Segments) -> Result<Tensor> {
    let ((count, hidden), (tokens, columns)) = (prefix.dims2()?, x.dims2()?);
    if columns != hidden || count == 0 {
        bail!("prepend: a prefix {:?} and rows {:?} do not fit", prefix.dims(), x.dims())
    }
    segments.check(tokens, Prepend::NAME)?;
    apply(Prepend(segments.clone()), &[prefix, x])
}

pub(crate) struct Prepend(pub(crate) Segments);

impl Operation for Prepend {
    const NAME: &'static str = "prepend";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let ((count, hidden), (tokens, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let mut sources: Vec<&[T]> = Vec::with_capacity(tokens + self.0.len() * count);
        for range in self.0.ranges() {
            sources.extend(inputs[0].data.chunks_exact(hidden));
            sources.extend(inputs[1].data[range.start * hidden..range.end * hidden].chunks_exact(hidden));
        }
        let values = in_pieces(sources.len() * hidden, ROWS * hidden, |first, values| {
            for (row, source) in values.chunks_exact_mut(hidden).zip(&sources[first / hidden..]) {
                row.copy_from_slice(source);
            }
        });
        Ok(Output::new(values, vec![sources.len(), hidden]))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let ((count, hidden), (tokens, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let mut gradients = vec![Gradient::None, Gradient::None];
        let lengthened = self.0.lengthened(count);
        if needed[0] {
            let mut sums = zeros(count * hidden);
            // Sequence by sequence in order, on any number of threads.
            for &start in lengthened.starts() {
                add_rows(&mut sums, &gradient.data[start * hidden..(start + count) * hidden]);
            }
            gradients[0] = Gradient::Values(sums);
        }
        if needed[1] {
            let rows: Vec<usize> = lengthened.ranges().flat_map(|range| range.skip(count)).collect();
            let values = in_pieces(tokens * hidden, ROWS * hidden, |first, values| {
                for (value, &row) in values.chunks_exact_mut(hidden).zip(&rows[first / hidden..]) {
                    value.copy_from_slice(&gradient.data[row * hidden..][..hidden]);
                }
            });
            gradients[1] = Gradient::Values(values);
        }
        Ok(gradients)
    }
}
