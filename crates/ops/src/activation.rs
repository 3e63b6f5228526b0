//! GELU.

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::float::Float;
use crate::operation::{Gradient, Operation, View, apply};

/// `x Φ(x)` with the exact normal distribution function (Hendrycks and Gimpel 2016; BERT's "gelu"), element by element.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply(Gelu, &[x])
}

/// Elements are handed to threads in pieces of this many.
const PIECE: usize = 1 << 13;

struct Gelu;

/// `Φ(x)`, the distribution function of the standard normal.
#[inline(always)]
fn normal_cdf<T: Float>(x: T) -> T {
    T::of(0.5) * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).error_function())
}

/// `φ(x)`, its density.
#[inline(always)]
fn normal_pdf<T: Float>(x: T) -> T {
    T::of(0.398_942_280_401_432_7) * (T::of(-0.5) * x * x).exponential()
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn forward<T: Float>(y: &mut [T], x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * normal_cdf(x);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn backward<T: Float>(values: &mut [T], x: &[T], gradient: &[T]) {
    for ((value, &x), &gradient) in values.iter_mut().zip(x).zip(gradient) {
        *value = gradient * (normal_cdf(x) + x * normal_pdf(x));
    }
}

impl Operation for Gelu {
    const NAME: &'static str = "gelu";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let mut y = vec![T::zero(); inputs[0].data.len()];
        y.par_chunks_mut(PIECE).zip(inputs[0].data.par_chunks(PIECE)).for_each(|(y, x)| forward(y, x));
        Ok((y, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        _needed: &[bool],
        _output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>> {
        let mut values = vec![T::zero(); gradient.data.len()];
        values
            .par_chunks_mut(PIECE)
            .zip(inputs[0].data.par_chunks(PIECE))
            .zip(gradient.data.par_chunks(PIECE))
            .for_each(|((values, x), gradient)| backward(values, x, gradient));
        Ok(vec![Gradient::Values(values)])
    }
}
