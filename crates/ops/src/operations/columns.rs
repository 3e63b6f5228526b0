//! Vectors over the columns of hidden states: a bias added, a scale multiplied.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::in_pieces;
use crate::cpu::reductions::column_sums;
use crate::cpu::with_views;

/// Rows a thread takes at a time. Sums over tokens are first taken within such a block, so that they do not depend on the
/// number of threads.
const ROWS: usize = 32;

/// `x + bias` in each row: x `(tokens, hidden)`, bias `(hidden)`. For a bias that is trained where the layer before it takes a
/// frozen one only.
///
/// # Errors
/// When the shapes do not fit.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    check("add_bias", x, bias)?;
    apply(AddBias, &[x, bias])
}

/// `x * scale / over` in each row: x `(tokens, hidden)`, over `(hidden)`, scale `(hidden)` or any shape of as many numbers, such
/// as the `(hidden, 1)` of PEFT's files; without `over`, `x * scale`.
///
/// No gradient reaches `over`, which may depend on parameters: DoRA's norm is taken for a constant.
///
/// # Errors
/// When the shapes do not fit.
pub fn scale_columns(x: &Tensor, scale: &Tensor, over: Option<&Tensor>) -> Result<Tensor> {
    check("scale_columns", x, scale)?;
    let over = over.map(|over| over.detach().contiguous()).transpose()?;
    if let Some(over) = &over {
        check("scale_columns", x, over)?;
    }
    apply(ScaleColumns { over }, &[x, scale])
}

fn check(name: &str, x: &Tensor, vector: &Tensor) -> Result<()> {
    let (_, hidden) = x.dims2()?;
    if vector.elem_count() != hidden {
        bail!("{name}: input {:?} and vector {:?} do not fit", x.dims(), vector.dims())
    }
    Ok(())
}

pub(crate) struct AddBias;

impl Operation for AddBias {
    const NAME: &'static str = "add_bias";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (x, bias) = (inputs[0].data, inputs[1].data);
        let y = in_pieces(x.len(), ROWS * bias.len(), |first, y| {
            for (y, x) in y.chunks_exact_mut(bias.len()).zip(x[first..].chunks_exact(bias.len())) {
                y.iter_mut().zip(x).zip(bias).for_each(|((y, &x), &bias)| *y = x + bias);
            }
        });
        Ok(Output::new(y, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let x = if needed[0] { Gradient::Upstream } else { Gradient::None };
        let hidden = inputs[1].data.len();
        let bias = if needed[1] { Gradient::Values(column_sums(gradient.data, hidden)) } else { Gradient::None };
        Ok(vec![x, bias])
    }
}

pub(crate) struct ScaleColumns {
    pub(crate) over: Option<Tensor>, // (hidden)
}

impl ScaleColumns {
    /// What each column of `values` is multiplied by: `values / over`.
    fn factors<T: Float>(&self, values: &[T]) -> Result<Vec<T>> {
        let Some(over) = &self.over else { return Ok(values.to_vec()) };
        with_views::<T, _>(&[over], Self::NAME, |views| {
            Ok(values.iter().zip(views[0].data).map(|(&value, &over)| value / over).collect())
        })
    }
}

/// Each row of `x` times `factors`.
fn multiply<T: Float>(x: &[T], factors: &[T]) -> Vec<T> {
    in_pieces(x.len(), ROWS * factors.len(), |first, y| {
        for (y, x) in y.chunks_exact_mut(factors.len()).zip(x[first..].chunks_exact(factors.len())) {
            y.iter_mut().zip(x).zip(factors).for_each(|((y, &x), &factor)| *y = x * factor);
        }
    })
}

/// The sum over rows of `a * b`.
fn column_products<T: Float>(a: &[T], b: &[T], columns: usize) -> Vec<T> {
    let blocks: Vec<Vec<T>> = a
        .par_chunks(ROWS * columns)
        .zip(b.par_chunks(ROWS * columns))
        .map(|(a, b)| {
            let mut sums = vec![T::zero(); columns];
            for (a, b) in a.chunks_exact(columns).zip(b.chunks_exact(columns)) {
                sums.iter_mut().zip(a).zip(b).for_each(|((sum, &a), &b)| *sum += a * b);
            }
            sums
        })
        .collect(); // (blocks, columns)
    column_sums(&blocks.concat(), columns)
}

impl Operation for ScaleColumns {
    const NAME: &'static str = "scale_columns";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        Ok(Output::new(multiply(inputs[0].data, &self.factors(inputs[1].data)?), inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let (x, scale) = (inputs[0].data, inputs[1].data);
        let mut gradients = vec![Gradient::None, Gradient::None];
        if needed[0] {
            gradients[0] = Gradient::Values(multiply(gradient.data, &self.factors(scale)?)); // (tokens, hidden)
        }
        if needed[1] {
            let sums = column_products(gradient.data, x, scale.len());
            gradients[1] = Gradient::Values(self.factors(&sums)?); // (hidden)
        }
        Ok(gradients)
    }
}
