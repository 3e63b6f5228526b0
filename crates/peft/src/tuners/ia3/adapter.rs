//! A linear layer whose output or input is scaled by a trained vector, `l ∘ (x Wᵀ + b)`.

use candle_core::Tensor;
use ops::{Precision, Weight};

use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{BaseLayer, ForwardPass, LinearAdapter};
use crate::parameters::Initializer;

/// `l ∘ (x Wᵀ + b)`, or `(l ∘ x) Wᵀ + b`.
pub(super) struct Scaled {
    scale: Tensor, // (out, 1) or (1, in)
    is_feedforward: bool,
    precision: Precision,
}

impl Scaled {
    /// The vector of a layer with that weight, `(out, in)`. Its shape is that of PEFT's files: `(out, 1)` or `(1, in)`.
    pub(super) fn new(builder: &mut Builder, path: &str, weight: &Tensor, is_feedforward: bool) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let shape = if is_feedforward { [1, inputs] } else { [outputs, 1] };
        let scale = builder.adapter(format!("{path}.ia3_l"), &shape, Initializer::Ones)?;
        Ok(Self { scale, is_feedforward, precision: builder.precision })
    }
}

impl LinearAdapter for Scaled {
    /// `l ∘ (x Wᵀ + b)`, or `(l ∘ x) Wᵀ + b`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, _pass: &ForwardPass) -> Result<Tensor> {
        if self.is_feedforward {
            let x = ops::scale_columns(x, &self.scale, None)?;
            return base.forward(&x);
        }
        Ok(ops::scale_columns(&base.forward(x)?, &self.scale, None)?)
    }

    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let scale = self.scale.detach();
        let weight = Weight::new(base.weight.unrounded()?.broadcast_mul(&scale)?, self.precision)?;
        let bias = match base.bias {
            Some(bias) if !self.is_feedforward => Some((bias * scale.flatten_all()?)?),
            bias => bias,
        };
        Ok(BaseLayer { weight, bias })
    }
}
