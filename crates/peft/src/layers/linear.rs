//! A linear layer, `x Wᵀ + b`, and the adapter that may stand beside or around it.

use std::sync::Arc;

use candle_core::Tensor;
use ops::Weight;

use super::forward::Pass;
use crate::error::Result;

/// The linear layer itself, in PEFT's word.
#[derive(Clone)]
pub(crate) struct BaseLayer {
    pub weight: Weight,       // (out, in)
    pub bias: Option<Tensor>, // (out)
}

impl BaseLayer {
    /// `x Wᵀ + b`, `(tokens, out)`, of x `(tokens, in)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, self.bias.as_ref())?)
    }

    /// The layer's output with a low-rank branch beside it, `x Wᵀ + b + scaling * dropout(x) Aᵀ Bᵀ`. The bias may be trained.
    pub(crate) fn forward_with_branch(&self, x: &Tensor, branch: ops::Lora) -> Result<Tensor> {
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.is_variable()) {
            let y = ops::lora_linear(x, &self.weight, None, branch)?;
            return Ok(ops::add_bias(&y, bias)?);
        }
        Ok(ops::lora_linear(x, &self.weight, self.bias.as_ref(), branch)?)
    }
}

/// What a tuner puts beside or around a linear layer.
pub(crate) trait LinearAdapter: Send + Sync {
    /// The adapted layer's output, `(tokens, out)`, of x `(tokens, in)`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &Pass) -> Result<Tensor>;

    /// A linear layer, frozen, that computes the same without dropout.
    fn merge(&self, base: BaseLayer) -> Result<BaseLayer>;
}

/// A linear layer that has an adapter, by its path.
#[derive(Clone)]
pub(crate) struct AdaptedLayer {
    pub path: String,
    pub base: BaseLayer,
    adapter: Arc<dyn LinearAdapter>,
}

impl AdaptedLayer {
    pub(crate) fn new(path: &str, base: BaseLayer, adapter: Arc<dyn LinearAdapter>) -> Self {
        Self { path: path.into(), base, adapter }
    }

    /// What layer and adapter compute together.
    pub(crate) fn merged(&self) -> Result<BaseLayer> {
        self.adapter.merge(self.base.clone())
    }
}

/// `x Wᵀ + b`, and what the tuner makes of it.
#[derive(Clone)]
pub(crate) enum Linear {
    Plain(BaseLayer),
    Adapted(AdaptedLayer),
}

impl Linear {
    /// The layer with its adapter merged into its weight, if it has one.
    pub(crate) fn merge(self) -> Result<Self> {
        match self {
            Self::Adapted(layer) => Ok(Self::Plain(layer.merged()?)),
            plain => Ok(plain),
        }
    }

    /// `(tokens, out)`, of x `(tokens, in)`.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self {
            Self::Plain(base) => base.forward(x),
            Self::Adapted(AdaptedLayer { path, base, adapter }) => {
                pass.observe(path, x);
                adapter.forward(base, x, pass)
            }
        }
    }
}
