//! Cayley's transform, which makes rotations of skew-symmetric matrices.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::products::gemm::{Cores, Into, Matrix, multiply};

/// `(I - Q) (I + Q)⁻¹` of each matrix of a batch, `(batch, n, n)`: orthogonal, since every Q is meant to be skew-symmetric (Cayley
/// 1846). No Q needs to be small.
///
/// # Errors
/// When the matrices are not square.
pub fn cayley(skew: &Tensor) -> Result<Tensor> {
    let (_, rows, columns) = skew.dims3()?;
    if rows != columns {
        bail!("cayley: {:?} are no square matrices", skew.dims())
    }
    apply(Cayley { size: rows }, &[skew])
}

struct Cayley {
    size: usize,
}

impl Cayley {
    /// Gives each matrix of a batch, with its number, to `change`.
    fn each<T: Float>(&self, matrices: &mut [T], change: impl Fn(usize, &mut [T]) + Sync) {
        let length = (self.size * self.size).max(1);
        matrices.par_chunks_exact_mut(length).enumerate().for_each(|(index, matrix)| change(index, matrix));
    }

    fn add_identity<T: Float>(&self, matrix: &mut [T], factor: T) {
        matrix.iter_mut().step_by(self.size + 1).for_each(|value| *value += factor);
    }

    /// Replaces a matrix by its inverse, by Gauss-Jordan elimination. Of `I + Q` every pivot is at least 1: what is left of it after
    /// each step is the identity, something positive semidefinite, and something skew-symmetric.
    fn invert<T: Float>(&self, matrix: &mut [T]) {
        let size = self.size;
        for pivot in 0..size {
            let inverse = matrix[pivot * size + pivot].recip();
            matrix[pivot * size + pivot] = T::one();
            let mut row = matrix[pivot * size..][..size].to_vec();
            row.iter_mut().for_each(|value| *value *= inverse);
            for (index, others) in matrix.chunks_exact_mut(size).enumerate() {
                if index == pivot {
                    others.copy_from_slice(&row);
                } else {
                    let factor = std::mem::replace(&mut others[pivot], T::zero());
                    others.iter_mut().zip(&row).for_each(|(value, &by)| *value += -factor * by);
                }
            }
        }
    }
}

impl Operation for Cayley {
    const NAME: &'static str = "cayley";

    /// `2 (I + Q)⁻¹ - I`, which is the same.
    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let mut matrices = inputs[0].data.to_vec();
        self.each(&mut matrices, |_, matrix| {
            self.add_identity(matrix, T::one());
            self.invert(matrix);
            matrix.iter_mut().for_each(|value| *value += *value);
            self.add_identity(matrix, -T::one());
        });
        Ok(Output::new(matrices, inputs[0].shape.to_vec()))
    }

    /// `-½ (I + R)ᵀ g (I + R)ᵀ` of the result R: `dR = -(I + R) dQ (I + Q)⁻¹`, and the inverse is `½ (I + R)`.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let (Backward { inputs, gradient, .. }, output) = (&pass, pass.output()?);
        let (size, length) = (self.size, self.size * self.size);
        let mut values = vec![T::zero(); inputs[0].data.len()];
        self.each(&mut values, |index, of_q| {
            let mut sum = output.data[index * length..][..length].to_vec();
            self.add_identity(&mut sum, T::one());
            let sum = Matrix::new(&sum, size, size).t();
            let gradient = Matrix::new(&gradient.data[index * length..][..length], size, size);
            let mut product = vec![T::zero(); length];
            multiply(&mut product, size, Into::Overwrite, 1.0, sum, gradient, Cores::One);
            let product = Matrix::new(&product, size, size);
            multiply(of_q, size, Into::Overwrite, -0.5, product, sum, Cores::One);
        });
        Ok(vec![Gradient::Values(values)])
    }
}
