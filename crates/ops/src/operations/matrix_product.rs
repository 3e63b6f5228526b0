//! Products of matrices that are both trained: plain ones, in batches, and Kronecker's.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::in_pieces;
use crate::cpu::products::gemm::{Cores, Into, Matrix, multiply};

/// `scale * a b`: a `(m, k)`, b `(k, n)`, result `(m, n)`; or of each pair in a batch: a `(batch, m, k)`, b `(batch, k, n)`, result
/// `(batch, m, n)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn matrix_product(a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let fits = match (a.dims(), b.dims()) {
        ([_, k], [rows, _]) => k == rows,
        ([batch, _, k], [others, rows, _]) => batch == others && k == rows,
        _ => false,
    };
    if !fits {
        bail!("matrix_product: {:?} and {:?} do not fit", a.dims(), b.dims())
    }
    apply(MatrixProduct { scale }, &[a, b])
}

/// `scale * a ⊗ b`, the matrix of blocks `scale * a[i, k] * b`: a `(p, q)`, b `(r, s)`, result `(p r, q s)`; or the sum of such products
/// over a batch: a `(batch, p, q)`, b `(batch, r, s)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn kronecker(a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let fits = match (a.dims(), b.dims()) {
        ([_, _], [_, _]) => true,
        ([batch, _, _], [others, _, _]) => batch == others,
        _ => false,
    };
    if !fits {
        bail!("kronecker: {:?} and {:?} do not fit", a.dims(), b.dims())
    }
    apply(Kronecker { scale }, &[a, b])
}

/// The matrices of a batch, in its order; of a plain matrix itself.
fn matrices<'a, T>(view: &View<'a, T>) -> Vec<Matrix<'a, T>> {
    let [.., rows, columns] = *view.shape else { return Vec::new() };
    view.data.chunks_exact((rows * columns).max(1)).map(|data| Matrix::new(data, rows, columns)).collect()
}

struct MatrixProduct {
    scale: f64,
}

impl MatrixProduct {
    /// The product of each pair, one after another.
    fn of<'a, T: Float>(&self, pairs: impl Iterator<Item = (Matrix<'a, T>, Matrix<'a, T>)>) -> Vec<T> {
        let mut products = Vec::new();
        for (a, b) in pairs {
            let mut product = vec![T::zero(); a.rows * b.columns];
            multiply(&mut product, b.columns, Into::Overwrite, self.scale, a, b, Cores::All);
            products.append(&mut product);
        }
        products
    }
}

impl Operation for MatrixProduct {
    const NAME: &'static str = "matrix_product";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let mut shape = inputs[0].shape.to_vec();
        shape.pop();
        shape.extend(inputs[1].shape.last());
        Ok(Output::new(self.of(matrices(&inputs[0]).into_iter().zip(matrices(&inputs[1]))), shape))
    }

    /// `scale * g bᵀ` for a and `scale * aᵀ g` for b.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let [a, b, g] = [inputs[0], inputs[1], gradient].map(|view| matrices(&view));
        let mut gradients = vec![Gradient::None, Gradient::None];
        if needed[0] {
            gradients[0] = Gradient::Values(self.of(g.iter().copied().zip(b.iter().map(|b| b.t()))));
        }
        if needed[1] {
            gradients[1] = Gradient::Values(self.of(a.iter().map(|a| a.t()).zip(g.iter().copied())));
        }
        Ok(gradients)
    }
}

struct Kronecker {
    scale: f64,
}

impl Operation for Kronecker {
    const NAME: &'static str = "kronecker";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let [a, b] = [inputs[0], inputs[1]].map(|view| matrices(&view));
        let (Some(first), Some(second)) = (a.first(), b.first()) else { bail!("{}: no matrix", Self::NAME) };
        let (rows, columns) = (first.rows * second.rows, first.columns * second.columns);
        let product = in_pieces(rows * columns, columns, |first, output| {
            let row = first / columns;
            for (a, b) in a.iter().zip(&b) {
                let (factors, values) = (row_of(a, row / b.rows), row_of(b, row % b.rows));
                for (block, &factor) in output.chunks_exact_mut(b.columns).zip(factors) {
                    let factor = T::of(self.scale) * factor;
                    block.iter_mut().zip(values).for_each(|(sum, &value)| *sum += factor * value);
                }
            }
        });
        Ok(Output::new(product, vec![rows, columns]))
    }

    /// Of a's number at `(i, k)` the sum of `scale * g ∘ b` over its block, and of b the sum of `scale * a[i, k] * g` over all blocks.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let [a, b] = [inputs[0], inputs[1]].map(|view| matrices(&view));
        let (Some(first), Some(second)) = (a.first(), b.first()) else { bail!("{}: no matrix", Self::NAME) };
        let ((p, q), (r, s)) = ((first.rows, first.columns), (second.rows, second.columns));
        let scale = T::of(self.scale);
        // Row j of the block at (i, k).
        let block = |i: usize, k: usize, j: usize| &gradient.data[(i * r + j) * q * s + k * s..][..s];
        let mut gradients = vec![Gradient::None, Gradient::None];
        if needed[0] {
            let mut of_a = vec![T::zero(); inputs[0].data.len()];
            of_a.par_chunks_mut(q).enumerate().for_each(|(row, of_row)| {
                for (k, sum) in of_row.iter_mut().enumerate() {
                    for j in 0..r {
                        let values = row_of(&b[row / p], j).iter().zip(block(row % p, k, j));
                        *sum += scale * values.map(|(&b, &g)| b * g).sum::<T>();
                    }
                }
            });
            gradients[0] = Gradient::Values(of_a);
        }
        if needed[1] {
            let mut of_b = vec![T::zero(); inputs[1].data.len()];
            of_b.par_chunks_mut(s).enumerate().for_each(|(row, of_row)| {
                for i in 0..p {
                    for (k, &a) in row_of(&a[row / r], i).iter().enumerate() {
                        of_row.iter_mut().zip(block(i, k, row % r)).for_each(|(sum, &g)| *sum += scale * a * g);
                    }
                }
            });
            gradients[1] = Gradient::Values(of_b);
        }
        Ok(gradients)
    }
}

/// A row of a row-major matrix.
fn row_of<'a, T>(matrix: &Matrix<'a, T>, row: usize) -> &'a [T] {
    &matrix.data[row * matrix.columns..][..matrix.columns]
}
