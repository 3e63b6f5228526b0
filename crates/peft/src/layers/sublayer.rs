//! The end of a sublayer, `LN(residual + dropout(output))`, and the adapter that may stand there.

use std::sync::Arc;

use candle_core::Tensor;
use ops::Dropout;

use super::forward_pass::ForwardPass;
use super::layer_norm::LayerNorm;
use crate::error::Result;

/// A part of a transformer layer that ends in a sum with a residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sublayer {
    Attention,
    FeedForward,
}

/// What a tuner puts at the end of a sublayer.
pub(crate) trait SublayerAdapter: Send + Sync {
    /// The adapter's own output and what it is added to, `residual + dropout(output)`: `(tokens, hidden)` each.
    fn terms(&self, flow: &SublayerOutput) -> Result<(Tensor, Tensor)>;

    /// The probability of dropout on the adapter's output.
    fn dropout(&self) -> f64;
}

/// What flows through a sublayer, each `(tokens, hidden)`.
pub(crate) struct SublayerOutput<'a> {
    pub input: &'a Tensor,
    pub output: &'a Tensor,
    /// On the output, before the sum.
    pub dropout: Option<Dropout>,
    pub residual: &'a Tensor,
    /// What norms the sum; `None` where norms come first.
    pub norm: Option<&'a LayerNorm>,
}

impl SublayerOutput<'_> {
    /// `residual + dropout(output)`, and what an adapter adds to it, normed if there is a norm; `(tokens, hidden)`.
    pub(crate) fn add_residual(
        &self,
        adapter: Option<&Arc<dyn SublayerAdapter>>,
        pass: &ForwardPass,
    ) -> Result<Tensor> {
        let sum = |x: &Tensor, residual: &Tensor, dropout| match self.norm {
            Some(norm) => norm.of_sum(x, residual, dropout),
            None => Ok(ops::add_dropout(x, residual, dropout)?),
        };
        match adapter {
            Some(adapter) => {
                let (branch, residual) = adapter.terms(self)?;
                sum(&branch, &residual, pass.dropout(adapter.dropout()))
            }
            None => sum(self.output, self.residual, self.dropout),
        }
    }
}
