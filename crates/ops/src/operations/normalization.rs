//! Layer normalization.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::autograd::tape;
use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::{Float, sum};
use crate::cpu::memory::{changed, in_pairs_of_pieces, in_pieces};
use crate::cpu::reductions::column_sums;
use crate::operations::dropout::{Dropout, add_dropout, add_masked_piece, mask_piece};

/// `gamma * (x - mean) / sqrt(variance + epsilon) + beta` over each row of x `(tokens, hidden)` (Ba et al. 2016), with the
/// population variance; gamma and beta `(hidden)`.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, epsilon: f64) -> Result<Tensor> {
    check(LayerNorm::NAME, x, gamma, beta)?;
    apply(LayerNorm { epsilon }, &[x, gamma, beta])
}

/// The [`layer_norm`] of `dropout(x) + residual`, all three `(tokens, hidden)`: "Add & Norm" (Vaswani et al. 2017, figure 1). The sum
/// is not kept: the backward pass computes it again.
///
/// # Errors
/// When the shapes do not fit.
pub fn add_norm(
    x: &Tensor,
    residual: &Tensor,
    dropout: Option<Dropout>,
    gamma: &Tensor,
    beta: &Tensor,
    epsilon: f64,
) -> Result<Tensor> {
    check(AddNorm::NAME, x, gamma, beta)?;
    if x.dims() != residual.dims() {
        bail!("add_norm: shapes {:?} and {:?} differ", x.dims(), residual.dims())
    }
    if tape::is_candles() {
        return layer_norm(&add_dropout(x, residual, dropout)?, gamma, beta, epsilon);
    }
    apply(AddNorm { dropout, epsilon }, &[residual, x, gamma, beta])
}

fn check(name: &str, x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<()> {
    let (_, hidden) = x.dims2()?;
    if gamma.dims() != [hidden] || beta.dims() != [hidden] {
        bail!("{name}: input {:?}, gamma {:?} and beta {:?} do not fit", x.dims(), gamma.dims(), beta.dims())
    }
    Ok(())
}

/// Rows a thread takes at a time: what it writes is to be in its nearest cache.
const ROWS: usize = 4;
/// Sums over tokens are first taken within blocks of so many, so that they do not depend on the number of threads.
const SUMMED_ROWS: usize = 32;

pub(crate) struct LayerNorm {
    pub(crate) epsilon: f64,
}

/// `(mean, 1 / sqrt(variance + epsilon))` of a row.
#[inline(always)]
fn moments<T: Float>(row: &[T], epsilon: f64) -> (T, T) {
    let mean = sum(row, |_, x| x) / T::of(row.len() as f64);
    let variance = sum(row, |_, x| (x - mean) * (x - mean)) / T::of(row.len() as f64);
    (mean, T::one() / (variance + T::of(epsilon)).sqrt())
}

/// Rows, in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn forward<T: Float>(rows: &mut [T], gamma: &[T], beta: &[T], epsilon: f64) {
    for row in rows.chunks_exact_mut(gamma.len()) {
        let (mean, scale) = moments(row, epsilon);
        for ((x, &gamma), &beta) in row.iter_mut().zip(gamma).zip(beta) {
            *x = (*x - mean) * scale * gamma + beta;
        }
    }
}

/// With `n = (x - mean) * scale` and `d = gradient * gamma`: `dx = scale * (d - mean(d) - n * mean(d n))`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn backward<T: Float>(values: &mut [T], x: &[T], gamma: &[T], gradient: &[T], epsilon: f64) {
    let hidden = gamma.len();
    let share = T::of(1.0 / hidden as f64);
    let rows = values.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)).zip(gradient.chunks_exact(hidden));
    for ((dx, x), gradient) in rows {
        let (mean, scale) = moments(x, epsilon);
        for ((d, &gradient), &gamma) in dx.iter_mut().zip(gradient).zip(gamma) {
            *d = gradient * gamma;
        }
        let mean_d = sum(dx, |_, d| d) * share;
        let mean_dn = sum(dx, |i, d| d * (x[i] - mean)) * scale * share;
        for (d, &x) in dx.iter_mut().zip(x) {
            *d = scale * (*d - mean_d - (x - mean) * scale * mean_dn);
        }
    }
}

/// `a b + c`, as many as there are of the first.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn multiply_add<T: Float>(a: &[T], b: &[T], c: &[T]) -> Vec<T> {
    a.iter().zip(b).zip(c).map(|((&a, &b), &c)| b * a + c).collect()
}

/// The sum of `gradient * n` over rows: their part of gamma's gradient.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn gamma_gradient<T: Float>(x: &[T], gradient: &[T], hidden: usize, epsilon: f64) -> Vec<T> {
    let mut sums = vec![T::zero(); hidden];
    for (x, gradient) in x.chunks_exact(hidden).zip(gradient.chunks_exact(hidden)) {
        let (mean, scale) = moments(x, epsilon);
        for ((sum, &x), &gradient) in sums.iter_mut().zip(x).zip(gradient) {
            *sum += gradient * ((x - mean) * scale);
        }
    }
    sums
}

impl Operation for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (gamma, beta, block) = (inputs[1].data, inputs[2].data, ROWS * inputs[1].data.len());
        let x = inputs[0].data;
        let y = changed(x, block, |_, rows| forward(rows, gamma, beta, self.epsilon));
        Ok(Output::new(y, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let (x, gamma) = (inputs[0].data, inputs[1].data);
        let (hidden, block) = (gamma.len(), ROWS * gamma.len());
        let mut gradients = vec![Gradient::None, Gradient::None, Gradient::None];
        if needed[0] {
            gradients[0] = Gradient::Values(in_pieces(x.len(), block, |first, values| {
                backward(values, &x[first..], gamma, &gradient.data[first..], self.epsilon);
            }));
        }
        if needed[1] {
            let block = SUMMED_ROWS * hidden;
            let blocks = x.par_chunks(block).zip(gradient.data.par_chunks(block));
            let sums: Vec<_> = blocks.map(|(x, gradient)| gamma_gradient(x, gradient, hidden, self.epsilon)).collect();
            gradients[1] = Gradient::Values(column_sums(&sums.concat(), hidden));
        }
        if needed[2] {
            gradients[2] = Gradient::Values(column_sums(gradient.data, hidden));
        }
        Ok(gradients)
    }
}

pub(crate) struct AddNorm {
    pub(crate) dropout: Option<Dropout>,
    pub(crate) epsilon: f64,
}

impl AddNorm {
    /// Some rows of `dropout(x) + residual`, from a position on, on the calling thread.
    fn sums<T: Float>(&self, inputs: &[View<T>], first: usize, count: usize) -> Vec<T> {
        let mut sums = vec![T::zero(); count];
        let [residual, x] = [0, 1].map(|index| &inputs[index].data[first..first + count]);
        add_masked_piece(&mut sums, x, residual, self.dropout, first as u32);
        sums
    }
}

impl Operation for AddNorm {
    const NAME: &'static str = "add_norm";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (x, gamma, beta) = (&inputs[1], inputs[2].data, inputs[3].data);
        let y = in_pieces(x.data.len(), ROWS * gamma.len(), |first, rows| {
            add_masked_piece(rows, &x.data[first..], &inputs[0].data[first..], self.dropout, first as u32);
            forward(rows, gamma, beta, self.epsilon);
        });
        Ok(Output::new(y, x.shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let (count, gamma, gradient) = (gradient.data.len(), inputs[2].data, gradient.data);
        let (hidden, block) = (gamma.len(), ROWS * gamma.len());
        let mut gradients: Vec<_> = needed.iter().map(|_| Gradient::None).collect();
        if needed[0] || needed[1] {
            let (of_sums, of_x) = match self.dropout.filter(|_| needed[1]) {
                Some(dropout) => {
                    let (of_sums, of_x) = in_pairs_of_pieces(count, block, |first, of_sums, of_x| {
                        // First the mask, which is then needed twice.
                        of_x.fill(T::one());
                        mask_piece(of_x, dropout, first as u32);
                        let sums: Vec<T> = multiply_add(of_x, &inputs[1].data[first..], &inputs[0].data[first..]);
                        backward(of_sums, &sums, gamma, &gradient[first..], self.epsilon);
                        of_x.iter_mut().zip(of_sums).for_each(|(of_x, &mut of_sum)| *of_x *= of_sum);
                    });
                    (of_sums, Some(of_x))
                }
                None => {
                    let of_sums = in_pieces(count, block, |first, values| {
                        let sums = self.sums(inputs, first, values.len());
                        backward(values, &sums, gamma, &gradient[first..], self.epsilon);
                    });
                    (of_sums, None)
                }
            };
            (gradients[0], gradients[1]) = match (needed[0], needed[1]) {
                (true, false) => (Gradient::Values(of_sums), Gradient::None),
                (true, true) => (Gradient::Values(of_sums), of_x.map_or(Gradient::Same(0), Gradient::Values)),
                (false, _) => (Gradient::None, Gradient::Values(of_x.unwrap_or(of_sums))),
            };
        }
        if needed[2] {
            let block = SUMMED_ROWS * hidden;
            let of_block = |(index, gradient): (usize, &[T])| {
                let sums = self.sums(inputs, index * block, gradient.len());
                gamma_gradient(&sums, gradient, hidden, self.epsilon)
            };
            let sums: Vec<_> = gradient.par_chunks(block).enumerate().map(of_block).collect();
            gradients[2] = Gradient::Values(column_sums(&sums.concat(), hidden));
        }
        if needed[3] {
            gradients[3] = Gradient::Values(column_sums(gradient, hidden));
        }
        Ok(gradients)
    }
}
