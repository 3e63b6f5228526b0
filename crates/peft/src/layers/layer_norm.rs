//! Layer normalization, `γ ∘ (x - mean) / deviation + β` over the hidden dimension, also of a sum with a residual.

use candle_core::Tensor;
use ops::Dropout;

use crate::error::Result;

/// Layer normalization over the hidden dimension.
#[derive(Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor, // (hidden)
    bias: Tensor,   // (hidden); zeros, and no parameter, where the norm has none
    epsilon: f64,
}

impl LayerNorm {
    /// From a weight and a bias, `(hidden)` each, and the number that keeps a variance above zero.
    pub(crate) fn new(weight: Tensor, bias: Tensor, epsilon: f64) -> Self {
        Self { weight, bias, epsilon }
    }

    /// Whether training changes it.
    pub(crate) fn is_trained(&self) -> bool {
        self.weight.track_op() || self.bias.track_op()
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, &self.bias, self.epsilon)?)
    }

    /// Of `dropout(x) + residual`.
    pub(crate) fn of_sum(&self, x: &Tensor, residual: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        Ok(ops::add_norm(x, residual, dropout, &self.weight, &self.bias, self.epsilon)?)
    }
}
