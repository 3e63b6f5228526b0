//! Linear layers: plain, and with a LoRA branch.

mod layers;
pub(crate) mod lora;
mod precision;
mod shared;
mod weight;

use candle_core::{Result, Tensor, TensorId, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply, tape};
use crate::backend::{self, Prepared};
use crate::cpu::float::Float;
use crate::cpu::products::gemm::Matrix;
use crate::cpu::products::{Term, sum_of_products};
use crate::cpu::reductions::column_sums;

pub use layers::{LinearLayer, linear_layers};
pub use lora::{Lora, lora_linear};
pub use precision::Precision;
pub use shared::SharedWeights;
pub(crate) use weight::CpuWeight;
pub use weight::Weight;

/// `x Wᵀ + b`: x `(tokens, in)`, weight `(out, in)`, bias `(out)`, result `(tokens, out)`.
///
/// A frozen weight costs the backward pass nothing but its product with the gradient.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, &weight.tensor, bias)?;
    if let Some(outputs) = backend::linear_layers(x, &[LinearLayer { weight, bias, lora: None }])? {
        return Ok(outputs[0].clone());
    }
    let frozen_bias = bias.filter(|bias| !tape::is_trained(bias)).map(Tensor::id);
    let (operation, factor) = (Linear { weight: weight.prepared.clone(), frozen_bias }, weight.factor()?);
    match bias {
        Some(bias) => apply(operation, &[x, &factor, bias]),
        None => apply(operation, &[x, &factor]),
    }
}

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (_, columns) = x.dims2()?;
    let (outputs, inputs) = weight.dims2()?;
    if columns != inputs || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        let bias = bias.map(|bias| bias.dims());
        bail!("linear: input {:?}, weight {:?} and bias {bias:?} do not fit", x.dims(), weight.dims())
    }
    Ok(())
}

pub(crate) struct Linear {
    pub(crate) weight: Prepared,
    /// Which tensor the bias is, if it is frozen: a GPU rounds it once.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU rounds no bias"))]
    pub(crate) frozen_bias: Option<TensorId>,
}

impl Operation for Linear {
    const NAME: &'static str = "linear";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let ((tokens, columns), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let products: &CpuWeight = self.weight.of(Self::NAME)?;
        let x = Matrix::new(inputs[0].data, tokens, columns);
        let weight = Matrix::new(inputs[1].data, outputs, columns);
        let product = Term { a: x, b: weight.t(), packing: products.forward() };
        Ok(Output::new(sum_of_products(1.0, &[product], inputs.get(2).map(|bias| bias.data)), vec![tokens, outputs]))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let ((tokens, columns), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let products: &CpuWeight = self.weight.of(Self::NAME)?;
        let x = Matrix::new(inputs[0].data, tokens, columns);
        let weight = Matrix::new(inputs[1].data, outputs, columns);
        let upstream = Matrix::new(gradient.data, tokens, outputs);
        let mut gradients = vec![Gradient::None, Gradient::None, Gradient::None];
        if needed[0] {
            let product = Term { a: upstream, b: weight, packing: products.backward() };
            gradients[0] = Gradient::Values(sum_of_products(1.0, &[product], None)); // (tokens, in)
        }
        if needed[1] {
            let product = Term { a: upstream.t(), b: x, packing: products.anew() };
            gradients[1] = Gradient::Values(sum_of_products(1.0, &[product], None)); // (out, in)
        }
        if needed.get(2) == Some(&true) {
            gradients[2] = Gradient::Values(column_sums(gradient.data, outputs)); // (out)
        }
        gradients.truncate(inputs.len());
        Ok(gradients)
    }
}
