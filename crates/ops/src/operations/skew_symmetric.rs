//! Skew-symmetric matrices from the numbers above their diagonals.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;

/// The matrices Q with `Q = -Qᵀ`, `(batch, n, n)`, whose numbers above the diagonal, row by row, are those of each row of `vectors`,
/// `(batch, n (n - 1) / 2)`.
///
/// # Errors
/// When there is no n of which a row has so many numbers.
///
/// ```
/// # fn main() -> candle_core::Result<()> {
/// let vectors = candle_core::Tensor::new(&[[1f32, 2.0, 3.0]], &candle_core::Device::Cpu)?;
/// let expected = [[[0f32, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]]];
/// assert_eq!(ops::skew_symmetric(&vectors)?.to_vec3::<f32>()?, expected);
/// # Ok(())
/// # }
/// ```
pub fn skew_symmetric(vectors: &Tensor) -> Result<Tensor> {
    let (_, count) = vectors.dims2()?;
    let size = (1 + 8 * count).isqrt().div_ceil(2);
    if size * (size - 1) / 2 != count {
        bail!("skew_symmetric: no square matrix has {count} numbers above its diagonal")
    }
    apply(SkewSymmetric { size }, &[vectors])
}

struct SkewSymmetric {
    size: usize,
}

impl SkewSymmetric {
    /// Rows and columns of the numbers above the diagonal, in their order.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let size = self.size;
        (0..size).flat_map(move |row| (row + 1..size).map(move |column| (row, column)))
    }
}

impl Operation for SkewSymmetric {
    const NAME: &'static str = "skew_symmetric";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (size, batch) = (self.size, inputs[0].shape[0]);
        let mut matrices = vec![T::zero(); batch * size * size];
        let vectors = inputs[0].data.chunks_exact(inputs[0].matrix().1.max(1));
        for (matrix, vector) in matrices.chunks_exact_mut(size * size).zip(vectors) {
            for ((row, column), &value) in self.places().zip(vector) {
                matrix[row * size + column] = value;
                matrix[column * size + row] = -value;
            }
        }
        Ok(Output::new(matrices, vec![batch, size, size]))
    }

    /// `g[i, j] - g[j, i]`.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let size = self.size;
        let mut values = Vec::with_capacity(inputs[0].data.len());
        for g in gradient.data.chunks_exact(size * size) {
            values.extend(self.places().map(|(row, column)| g[row * size + column] - g[column * size + row]));
        }
        Ok(vec![Gradient::Values(values)])
    }
}
