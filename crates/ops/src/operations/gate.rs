//! The product within gated linear units.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::in_pieces;

/// `x * gate`, element by element, the two of one shape. With an activated x it is a gated linear unit (Dauphin et al. 2017;
/// Shazeer 2020: GeGLU for gelu).
///
/// # Errors
/// When the shapes differ.
pub fn gate(x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    if x.dims() != gate.dims() {
        bail!("gate: shapes {:?} and {:?} differ", x.dims(), gate.dims())
    }
    apply(Gate, &[x, gate])
}

pub(crate) struct Gate;

/// Elements are handed to threads in pieces of this many.
const PIECE: usize = 1 << 13;

fn product<T: Float>(a: &[T], b: &[T]) -> Vec<T> {
    in_pieces(a.len(), PIECE, |first, products| {
        for ((product, &a), &b) in products.iter_mut().zip(&a[first..]).zip(&b[first..]) {
            *product = a * b;
        }
    })
}

impl Operation for Gate {
    const NAME: &'static str = "gate";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        Ok(Output::new(product(inputs[0].data, inputs[1].data), inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let times = |needed: bool, other: &View<T>| match needed {
            true => Gradient::Values(product(gradient.data, other.data)),
            false => Gradient::None,
        };
        Ok(vec![times(needed[0], &inputs[1]), times(needed[1], &inputs[0])])
    }
}
