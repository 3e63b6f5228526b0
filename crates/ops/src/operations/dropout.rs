//! Dropout whose mask is a function of a seed and a position, so that it repeats, and the backward pass need not store it.

use candle_core::{Result, Tensor};
use multiversion::multiversion;

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::{changed, in_pieces};
use crate::operations::add::add;

/// The mask of one application of dropout (Srivastava et al. 2014): element `i` is dropped or kept by a hash of `seed` and
/// `i`, on any number of threads; what is kept is scaled by `1 / (1 - probability)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Elements whose hash is below this are dropped.
    pub(crate) dropped_below: u32,
    /// What is kept is multiplied by this.
    pub(crate) scale: f64,
    pub(crate) seed: u64,
}

impl Dropout {
    /// `None` when nothing would be dropped. `probability` is clamped to `0..1`.
    pub fn new(probability: f64, seed: u64) -> Option<Self> {
        let probability = probability.min(1.0 - f64::EPSILON);
        let dropped_below = (probability * 4_294_967_296.0) as u32;
        (probability > 0.0).then_some(Self { dropped_below, scale: 1.0 / (1.0 - probability), seed })
    }

    /// What is kept is multiplied by this.
    pub(crate) fn scale<T: Float>(&self) -> T {
        T::of(self.scale)
    }

    /// What element `position` is multiplied by: 0 or `scale`.
    #[inline(always)]
    pub(crate) fn factor<T: Float>(&self, position: u32) -> T {
        let hash = mix(mix(position ^ self.seed as u32).wrapping_add((self.seed >> 32) as u32));
        if hash < self.dropped_below { T::zero() } else { self.scale() }
    }
}

/// The finaliser "lowbias32" (C. Wellons, <https://nullprogram.com/blog/2018/07/31/>): each input bit flips each output bit
/// with a probability within 0.2 % of one half.
#[inline(always)]
fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Rows are handed to threads in pieces of this many elements.
const PIECE: usize = 1 << 11;

/// `mask * values`, in place, on the calling thread, for values that begin at position `first`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
pub(crate) fn mask_piece<T: Float>(values: &mut [T], dropout: Dropout, first: u32) {
    for (i, value) in values.iter_mut().enumerate() {
        *value *= dropout.factor::<T>(first.wrapping_add(i as u32));
    }
}

/// `mask * values`.
pub(crate) fn masked<T: Float>(values: &[T], dropout: Dropout) -> Vec<T> {
    changed(values, PIECE, |first, piece| mask_piece(piece, dropout, first as u32))
}

/// `mask * x + others`, on the calling thread, for values that begin at position `first`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
pub(crate) fn add_masked_piece<T: Float>(sums: &mut [T], x: &[T], others: &[T], dropout: Option<Dropout>, first: u32) {
    let terms = sums.iter_mut().zip(x).zip(others);
    match dropout {
        Some(dropout) => terms.enumerate().for_each(|(i, ((sum, &x), &other))| {
            *sum = x * dropout.factor::<T>(first.wrapping_add(i as u32)) + other;
        }),
        None => terms.for_each(|((sum, &x), &other)| *sum = x + other),
    }
}

/// `mask * x + others`.
pub(crate) fn add_masked<T: Float>(x: &[T], others: &[T], dropout: Dropout) -> Vec<T> {
    in_pieces(x.len(), PIECE, |first, sums| {
        add_masked_piece(sums, &x[first..], &others[first..], Some(dropout), first as u32);
    })
}

/// `dropout(x)`; with `None` the tensor itself.
pub fn dropout(x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    match dropout {
        Some(dropout) => apply(Mask(dropout), &[x]),
        None => Ok(x.clone()),
    }
}

pub(crate) struct Mask(pub(crate) Dropout);

impl Operation for Mask {
    const NAME: &'static str = "dropout";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        Ok(Output::new(masked(inputs[0].data, self.0), inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        Ok(vec![Gradient::Values(masked(pass.gradient.data, self.0))])
    }
}

/// `dropout(x) + residual`, the two of one shape.
pub fn add_dropout(x: &Tensor, residual: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    if x.dims() != residual.dims() {
        candle_core::bail!("add_dropout: shapes {:?} and {:?} differ", x.dims(), residual.dims());
    }
    match dropout {
        Some(dropout) => apply(AddDropout(dropout), &[x, residual]),
        None => add(x, residual),
    }
}

pub(crate) struct AddDropout(pub(crate) Dropout);

impl Operation for AddDropout {
    const NAME: &'static str = "add_dropout";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        Ok(Output::new(add_masked(inputs[0].data, inputs[1].data, self.0), inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { needed, gradient, .. } = pass;
        let x = if needed[0] { Gradient::Values(masked(gradient.data, self.0)) } else { Gradient::None };
        Ok(vec![x, if needed[1] { Gradient::Upstream } else { Gradient::None }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(probability: f64, seed: u64, count: u32) -> f64 {
        let dropout = Dropout::new(probability, seed).unwrap();
        let kept = (0..count).filter(|&i| dropout.factor::<f64>(i) > 0.0).count();
        kept as f64 / count as f64
    }

    #[test]
    fn the_share_kept_is_within_five_standard_errors_of_the_probability() {
        let count = 1_000_000;
        for (probability, seed) in [(0.1, 1), (0.5, 2), (0.9, u64::MAX), (0.1, 1 << 40)] {
            let error = (kept(probability, seed, count) - (1.0 - probability)).abs();
            let standard_error = (probability * (1.0 - probability) / count as f64).sqrt();
            assert!(error < 5.0 * standard_error, "p {probability} seed {seed}: off by {error}");
        }
    }

    #[test]
    fn masks_of_neighboring_seeds_are_uncorrelated() {
        let count = 1_000_000;
        for (a, b) in [(7, 8), (7, 7 + (1 << 32)), (0, 1)] {
            let (first, second) = (Dropout::new(0.5, a).unwrap(), Dropout::new(0.5, b).unwrap());
            let equal = (0..count).filter(|&i| first.factor::<f64>(i) == second.factor::<f64>(i)).count();
            let error = (equal as f64 / count as f64 - 0.5).abs();
            assert!(error < 5.0 * 0.5 / (count as f64).sqrt(), "seeds {a} and {b}: {error}");
        }
    }

    #[test]
    fn the_expected_value_of_what_is_kept_is_the_input() {
        let values = masked(&[1f32; 1_000_000], Dropout::new(0.1, 3).unwrap());
        let mean = values.iter().map(|&v| v as f64).sum::<f64>() / values.len() as f64;
        assert!((mean - 1.0).abs() < 2e-3, "{mean}");
    }
}
