//! Sums, differences and multiples, element by element.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::in_pieces;

/// `a + b`, the two of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check("add", a, b)?;
    apply(AddScaled { factor: 1.0 }, &[a, b])
}

/// `a - b`, the two of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check("sub", a, b)?;
    apply(AddScaled { factor: -1.0 }, &[a, b])
}

/// `factor * x`.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    apply(Scale { factor }, &[x])
}

fn check(name: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() != b.dims() {
        bail!("{name}: shapes {:?} and {:?} differ", a.dims(), b.dims())
    }
    Ok(())
}

/// Elements are handed to threads in pieces of this many.
const PIECE: usize = 1 << 13;

fn scaled<T: Float>(x: &[T], factor: T) -> Vec<T> {
    in_pieces(x.len(), PIECE, |first, values| {
        values.iter_mut().zip(&x[first..]).for_each(|(value, &x)| *value = factor * x);
    })
}

/// `a + factor * b`.
pub(crate) struct AddScaled {
    pub(crate) factor: f64,
}

impl Operation for AddScaled {
    const NAME: &'static str = "add";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let ([a, b], factor) = ([inputs[0].data, inputs[1].data], T::of(self.factor));
        let sums = in_pieces(a.len(), PIECE, |first, sums| {
            sums.iter_mut().zip(&a[first..]).zip(&b[first..]).for_each(|((sum, &a), &b)| *sum = a + factor * b);
        });
        Ok(Output::new(sums, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let a = if pass.needed[0] { Gradient::Upstream } else { Gradient::None };
        let b = match pass.needed[1] {
            false => Gradient::None,
            true if self.factor == 1.0 => Gradient::Upstream,
            true => Gradient::Values(scaled(pass.gradient.data, T::of(self.factor))),
        };
        Ok(vec![a, b])
    }
}

pub(crate) struct Scale {
    pub(crate) factor: f64,
}

impl Operation for Scale {
    const NAME: &'static str = "scale";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        Ok(Output::new(scaled(inputs[0].data, T::of(self.factor)), inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        Ok(vec![Gradient::Values(scaled(pass.gradient.data, T::of(self.factor)))])
    }
}
