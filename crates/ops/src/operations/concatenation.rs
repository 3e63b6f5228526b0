//! Columns of one matrix beside those of another, and a range of them alone.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::in_pieces;

/// Rows a thread takes at a time.
const ROWS: usize = 32;

/// The columns of `a` `(rows, m)`, then those of `b` `(rows, n)`: `(rows, m + n)`.
///
/// # Errors
/// When the two have different numbers of rows.
pub fn concatenate_columns(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims2()?.0 != b.dims2()?.0 {
        bail!("concatenate_columns: {:?} and {:?} have different numbers of rows", a.dims(), b.dims())
    }
    apply(ConcatenateColumns, &[a, b])
}

pub(crate) struct ConcatenateColumns;

/// Some columns of each row of a matrix of `width` columns.
fn columns_of<T: Float>(data: &[T], width: usize, columns: Range<usize>) -> Vec<T> {
    let length = data.len() / width * columns.len();
    in_pieces(length, ROWS * columns.len(), |first, values| {
        let rows = data[first / columns.len() * width..].chunks_exact(width);
        for (value, row) in values.chunks_exact_mut(columns.len()).zip(rows) {
            value.copy_from_slice(&row[columns.clone()]);
        }
    })
}

impl Operation for ConcatenateColumns {
    const NAME: &'static str = "concatenate_columns";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let ((rows, m), (_, n)) = (inputs[0].matrix(), inputs[1].matrix());
        let values = in_pieces(rows * (m + n), ROWS * (m + n), |first, values| {
            let first = first / (m + n);
            let parts = inputs[0].data[first * m..].chunks_exact(m).zip(inputs[1].data[first * n..].chunks_exact(n));
            for (row, (a, b)) in values.chunks_exact_mut(m + n).zip(parts) {
                row[..m].copy_from_slice(a);
                row[m..].copy_from_slice(b);
            }
        });
        Ok(Output::new(values, vec![rows, m + n]))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let (m, n) = (inputs[0].matrix().1, inputs[1].matrix().1);
        let part = |needed: bool, columns| match needed {
            true => Gradient::Values(columns_of(gradient.data, m + n, columns)),
            false => Gradient::None,
        };
        Ok(vec![part(needed[0], 0..m), part(needed[1], m..m + n)])
    }
}

/// The columns of that range: x `(rows, n)`, result `(rows, columns.len())`.
///
/// # Errors
/// When the range is empty or reaches beyond the columns.
pub fn narrow_columns(x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    if columns.is_empty() || columns.end > width {
        bail!("narrow_columns: columns {columns:?} of {:?}", x.dims())
    }
    apply(NarrowColumns(columns), &[x])
}

pub(crate) struct NarrowColumns(pub(crate) Range<usize>);

impl Operation for NarrowColumns {
    const NAME: &'static str = "narrow_columns";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (rows, width) = inputs[0].matrix();
        Ok(Output::new(columns_of(inputs[0].data, width, self.0.clone()), vec![rows, self.0.len()]))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let (rows, width) = inputs[0].matrix();
        let values = in_pieces(rows * width, ROWS * width, |first, values| {
            let gradients = gradient.data[first / width * self.0.len()..].chunks_exact(self.0.len());
            for (row, gradient) in values.chunks_exact_mut(width).zip(gradients) {
                row[self.0.clone()].copy_from_slice(gradient);
            }
        });
        Ok(vec![Gradient::Values(values)])
    }
}
