//! VeRA's branch, `y += λ_b ∘ B (λ_d ∘ A dropout(x))`: the two vectors of a layer, merging.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::projections::Projections;
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{BaseLayer, ForwardPass, LinearAdapter};

/// What one linear layer's vectors are made from.
pub(super) struct VeraBranch {
    pub(super) d_initial: f64,
    pub(super) dropout: f64,
    pub(super) projections: Arc<Projections>,
}

impl VeraBranch {
    /// The vectors of a layer with that weight, `(out, in)`.
    pub(super) fn build(self, builder: &mut Builder, path: &str, weight: &Tensor) -> Result<Box<dyn LinearAdapter>> {
        let (outputs, inputs) = weight.dims2()?;
        let Self { d_initial, dropout, projections } = self;
        let d_path = format!("{path}.vera_lambda_d");
        builder.allowance.check(&d_path, &[projections.r()])?;
        let lambda_d = builder.adapter_from(d_path, Tensor::full(d_initial, projections.r(), &Device::Cpu)?)?;
        let b = Tensor::zeros(outputs, DType::F64, &Device::Cpu)?;
        let lambda_b = builder.adapter_from(format!("{path}.vera_lambda_b"), b)?;
        projections.widen(inputs, outputs, builder.precision);
        Ok(Box::new(VeraLayer { lambda_d, lambda_b, inputs, outputs, dropout, projections }))
    }
}

struct VeraLayer {
    lambda_d: Tensor, // (r)
    lambda_b: Tensor, // (out)
    inputs: usize,
    outputs: usize,
    dropout: f64,
    projections: Arc<Projections>,
}

impl LinearAdapter for VeraLayer {
    /// `x Wᵀ + b + λ_b ∘ ((λ_d ∘ (dropout(x) Aᵀ)) Bᵀ)`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let input = ops::dropout(x, pass.dropout(self.dropout))?;
        let down = ops::linear(&input, &self.projections.a(self.inputs)?, None)?; // (tokens, r)
        let down = ops::scale_columns(&down, &self.lambda_d, None)?;
        let up = ops::linear(&down, &self.projections.b(self.outputs)?, None)?; // (tokens, out)
        let branch = ops::scale_columns(&up, &self.lambda_b, None)?;
        let y = base.forward(x)?;
        Ok(ops::add(&branch, &y)?)
    }

    /// `W + (λ_b ∘ B) (λ_d ∘ A)`, the vectors on the rows.
    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let (a, b) = self.projections.pair(self.inputs, self.outputs)?;
        let a = a.broadcast_mul(&self.lambda_d.detach().unsqueeze(1)?)?; // (r, in)
        let b = b.broadcast_mul(&self.lambda_b.detach().unsqueeze(1)?)?; // (out, r)
        Ok(BaseLayer { weight: base.weight.merge(&ops::Lora { a: &a, b: &b, scaling: 1.0, dropout: None })?, ..base })
    }
}
