//! A linear layer, `x Wᵀ + b`, and the adapter that may stand beside or around it.

use std::sync::Arc;

use candle_core::Tensor;
use ops::{LinearLayer, Lora, Weight};

use super::forward_pass::ForwardPass;
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
        Ok(self.operation(None).forward(x)?)
    }

    /// The layer's output with a low-rank branch beside it, `x Wᵀ + b + scaling * dropout(x) Aᵀ Bᵀ`. The bias may be trained.
    pub(crate) fn forward_with_branch(&self, x: &Tensor, branch: Lora) -> Result<Tensor> {
        Ok(self.operation(Some(branch)).forward(x)?)
    }

    fn operation<'a>(&'a self, lora: Option<Lora<'a>>) -> LinearLayer<'a> {
        LinearLayer { weight: &self.weight, bias: self.bias.as_ref(), lora }
    }
}

/// What a tuner puts beside or around a linear layer.
pub(crate) trait LinearAdapter: Send + Sync {
    /// The adapted layer's output, `(tokens, out)`, of x `(tokens, in)`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &ForwardPass) -> Result<Tensor>;

    /// The adapter, if it is nothing but a low-rank branch beside the layer.
    fn branch(&self) -> Option<&dyn LowRankBranch> {
        None
    }

    /// A linear layer, frozen, that computes the same without dropout.
    fn merge(&self, base: BaseLayer) -> Result<BaseLayer>;
}

/// `scaling * dropout(x) Aᵀ Bᵀ`.
pub(crate) trait LowRankBranch {
    /// The branch as it is in this pass.
    fn operation(&self, pass: &ForwardPass) -> Lora<'_>;
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

    /// What each of several layers makes of one input: `(tokens, out)`, of x `(tokens, in)`. Where all of them are plain or have a
    /// low-rank branch, their device may compute them together.
    pub(crate) fn forward_together<'a, const N: usize>(
        layers: [&'a Self; N],
        x: &Tensor,
        pass: &ForwardPass,
    ) -> Result<Vec<Tensor>> {
        let is_linear = |layer: &&Self| match layer {
            Self::Plain(_) => true,
            Self::Adapted(layer) => layer.adapter.branch().is_some(),
        };
        if !layers.iter().all(is_linear) {
            return layers.into_iter().map(|layer| layer.forward(x, pass)).collect();
        }
        let operation = |layer: &'a Self| match layer {
            Self::Plain(base) => base.operation(None),
            Self::Adapted(AdaptedLayer { path, base, adapter }) => {
                pass.observe(path, x);
                base.operation(adapter.branch().map(|branch| branch.operation(pass)))
            }
        };
        Ok(ops::linear_layers(x, &layers.map(operation))?)
    }

    /// `(tokens, out)`, of x `(tokens, in)`.
    pub(crate) fn forward(&self, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        match self {
            Self::Plain(base) => base.forward(x),
            Self::Adapted(AdaptedLayer { path, base, adapter }) => {
                pass.observe(path, x);
                adapter.forward(base, x, pass)
            }
        }
    }
}
