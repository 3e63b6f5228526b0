//! Cayley's transform by the first terms of a Neumann series.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::products::gemm::{Cores, Into, Matrix, multiply};

/// `I + 2 Q + 2 Q² + … + 2 Qᵏ⁻¹ + Qᵏ` of each matrix of a batch, `(batch, n, n)`: for small Q about `(I + Q) (I - Q)⁻¹`, which is
/// [`cayley`](crate::cayley)'s transform of -Q, with `(I - Q)⁻¹ ≈ I + Q + … + Qᵏ⁻¹` (Qiu et al. 2025, "Orthogonal finetuning made
/// scalable").
///
/// `terms` are counted as PEFT does (`tuners/oft/layer.py`, `_cayley_batch`): k is one less, but 3 where there are 3; 2 terms are
/// `I + 2 Q`, and fewer `I`.
///
/// # Errors
/// When the matrices are not square.
pub fn cayley_neumann(skew: &Tensor, terms: usize) -> Result<Tensor> {
    let (_, rows, columns) = skew.dims3()?;
    if rows != columns {
        bail!("cayley_neumann: {:?} are no square matrices", skew.dims())
    }
    let (highest, last) = match terms {
        0 | 1 => (0, 1.0),
        2 => (1, 2.0),
        _ => (3.max(terms - 1), 1.0),
    };
    apply(CayleyNeumann { size: rows, highest, last }, &[skew])
}

struct CayleyNeumann {
    size: usize,
    /// The highest power of Q.
    highest: usize,
    /// What it is multiplied by.
    last: f64,
}

impl CayleyNeumann {
    /// Horner's scheme, `Pₖ = cₖ I` and `Pᵢ = cᵢ I + Q Pᵢ₊₁`; the last of it, P₀, is the whole sum.
    fn horner<T: Float>(&self, q: Matrix<T>) -> Vec<Vec<T>> {
        let size = self.size;
        let mut sums: Vec<Vec<T>> = Vec::with_capacity(self.highest + 1);
        for power in (0..=self.highest).rev() {
            let mut next = vec![T::zero(); size * size];
            if let Some(sum) = sums.last() {
                multiply(&mut next, size, Into::Overwrite, 1.0, q, Matrix::new(sum, size, size), Cores::One);
            }
            let coefficient = match power {
                0 => 1.0,
                power if power == self.highest => self.last,
                _ => 2.0,
            };
            next.iter_mut().step_by(size + 1).for_each(|value| *value += T::of(coefficient));
            sums.push(next);
        }
        sums
    }

    /// What `change` makes of each matrix of a batch, which it is given with its number.
    fn of_each<T: Float>(&self, input: &View<T>, change: impl Fn(usize, Matrix<T>, &mut [T]) + Sync) -> Vec<T> {
        let mut values = vec![T::zero(); input.data.len()];
        let length = (self.size * self.size).max(1);
        let matrices = input.data.par_chunks_exact(length);
        values.par_chunks_exact_mut(length).zip(matrices).enumerate().for_each(|(index, (values, matrix))| {
            change(index, Matrix::new(matrix, self.size, self.size), values);
        });
        values
    }
}

impl Operation for CayleyNeumann {
    const NAME: &'static str = "cayley_neumann";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let values = self.of_each(&inputs[0], |_, q, values| {
            if let Some(sum) = self.horner(q).last() {
                values.copy_from_slice(sum);
            }
        });
        Ok(Output::new(values, inputs[0].shape.to_vec()))
    }

    /// The sum of `gᵢ Pᵢ₊₁ᵀ`, where `g₀ = g` and `gᵢ₊₁ = Qᵀ gᵢ`.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let (size, length) = (self.size, self.size * self.size);
        let values = self.of_each(&inputs[0], |index, q, of_q| {
            let mut g = gradient.data[index * length..][..length].to_vec();
            for sum in self.horner(q).iter().rev().skip(1) {
                let sum = Matrix::new(sum, size, size);
                multiply(of_q, size, Into::Add, 1.0, Matrix::new(&g, size, size), sum.t(), Cores::One);
                let mut next = vec![T::zero(); length];
                multiply(&mut next, size, Into::Overwrite, 1.0, q.t(), Matrix::new(&g, size, size), Cores::One);
                g = next;
            }
        });
        Ok(vec![Gradient::Values(values)])
    }
}
