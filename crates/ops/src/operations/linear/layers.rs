//! Several linear layers of one input.

use candle_core::{Result, Tensor};

use super::{Lora, Weight, linear, lora_linear};
use crate::backend;
use crate::operations::columns::add_bias;

/// A linear layer, `x Wᵀ + b`, and the low-rank branch that may stand beside it.
pub struct LinearLayer<'a> {
    /// `(out, in)`.
    pub weight: &'a Weight,
    /// `(out)`.
    pub bias: Option<&'a Tensor>,
    /// Beside a frozen weight.
    pub lora: Option<Lora<'a>>,
}

impl LinearLayer<'_> {
    /// `x Wᵀ + b`, and what the branch adds to it: `(tokens, out)` of x `(tokens, in)`. The bias may be trained.
    ///
    /// # Errors
    /// When the shapes do not fit, or a trained weight has a branch.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(lora) = &self.lora else { return linear(x, self.weight, self.bias) };
        match self.bias.filter(|bias| bias.is_variable()) {
            Some(bias) => add_bias(&lora_linear(x, self.weight, None, lora.clone())?, bias),
            None => lora_linear(x, self.weight, self.bias, lora.clone()),
        }
    }
}

/// [`LinearLayer::forward`] of several layers, in their order. On a GPU, those that are frozen, of one shape and of bf16 products are
/// computed together while a [tape](crate::record) records or nobody does, with their branches, if these have one rank and scale and no
/// dropout.
///
/// # Errors
/// As [`LinearLayer::forward`].
pub fn linear_layers(x: &Tensor, layers: &[LinearLayer]) -> Result<Vec<Tensor>> {
    for LinearLayer { weight, bias, lora } in layers {
        super::check(x, &weight.tensor, *bias)?;
        lora.as_ref().map_or(Ok(()), |lora| super::lora::check_branch(&weight.tensor, lora))?;
    }
    match backend::linear_layers(x, layers)? {
        Some(outputs) => Ok(outputs),
        None => layers.iter().map(|layer| layer.forward(x)).collect(),
    }
}
