//! Activation functions, element by element.

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::in_pieces;

/// A function of one number. In JSON it is called as transformers calls it (`activations.py`, `ACT2FN`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Φ(x)` with the exact normal distribution function (Hendrycks and Gimpel 2016; BERT's "gelu").
    Gelu,
    /// `x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2`, their approximation of it ("gelu_new").
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluApproximate,
    /// `max(x, 0)`.
    Relu,
    /// The hyperbolic tangent.
    Tanh,
    /// `x / (1 + e^-x)` (Ramachandran et al. 2017; "silu" too).
    #[serde(alias = "silu")]
    Swish,
}

/// `activation(x)`.
pub fn activation(x: &Tensor, activation: Activation) -> Result<Tensor> {
    apply(activation, &[x])
}

/// Elements are handed to threads in pieces of this many.
const PIECE: usize = 1 << 11;

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

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn logistic<T: Float>(x: T) -> T {
    T::one() / (T::one() + (-x).exponential())
}

/// `sqrt(2/π)`.
const SLOPE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
const CUBIC: f64 = 0.044715;

/// `(1 + tanh(u)) / 2`, and the derivative of `u`, for [`Activation::GeluApproximate`].
#[inline(always)]
fn approximate_cdf<T: Float>(x: T) -> (T, T) {
    let tanh = (T::of(SLOPE) * (x + T::of(CUBIC) * x * x * x)).tanh();
    (T::of(0.5) * (T::one() + tanh), T::of(SLOPE) * (T::one() + T::of(3.0 * CUBIC) * x * x))
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn forward<T: Float>(activation: Activation, y: &mut [T], x: &[T]) {
    let values = y.iter_mut().zip(x);
    match activation {
        Activation::Gelu => values.for_each(|(y, &x)| *y = x * normal_cdf(x)),
        Activation::GeluApproximate => values.for_each(|(y, &x)| *y = x * approximate_cdf(x).0),
        Activation::Relu => values.for_each(|(y, &x)| *y = if x > T::zero() { x } else { T::zero() }),
        Activation::Tanh => values.for_each(|(y, &x)| *y = x.tanh()),
        Activation::Swish => values.for_each(|(y, &x)| *y = x * logistic(x)),
    }
}

/// `gradient * activation'(x)`, where `y` is `activation(x)`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn backward<T: Float>(activation: Activation, values: &mut [T], x: &[T], y: &[T], gradient: &[T]) {
    let values = values.iter_mut().zip(x).zip(y).zip(gradient);
    match activation {
        Activation::Gelu => {
            values.for_each(|(((value, &x), _), &gradient)| *value = gradient * (normal_cdf(x) + x * normal_pdf(x)));
        }
        Activation::GeluApproximate => values.for_each(|(((value, &x), _), &gradient)| {
            let (cdf, slope) = approximate_cdf(x);
            *value = gradient * (cdf + T::of(2.0) * x * cdf * (T::one() - cdf) * slope);
        }),
        Activation::Relu => values.for_each(|(((value, &x), _), &gradient)| {
            *value = if x > T::zero() { gradient } else { T::zero() };
        }),
        Activation::Tanh => values.for_each(|(((value, _), &y), &gradient)| *value = gradient * (T::one() - y * y)),
        Activation::Swish => values.for_each(|(((value, &x), &y), &gradient)| {
            *value = gradient * (y + logistic(x) * (T::one() - y));
        }),
    }
}

impl Operation for Activation {
    const NAME: &'static str = "activation";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let x = inputs[0].data;
        let y = in_pieces(x.len(), PIECE, |first, y| forward(*self, y, &x[first..]));
        Ok(Output::new(y, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let (x, y, gradient) = (inputs[0].data, pass.output()?.data, gradient.data);
        Ok(vec![Gradient::Values(in_pieces(x.len(), PIECE, |first, values| {
            backward(*self, values, &x[first..], &y[first..], &gradient[first..]);
        }))])
    }
}
