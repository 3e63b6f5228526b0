//! A transformer layer: self-attention and a feed-forward network, each with its residual and layer norm.

use std::sync::Arc;

use candle_core::Tensor;
use ops::Activation;

use super::attention::{SelfAttention, Shared, Wanted};
use crate::architectures::Config;
use crate::architectures::layout::{Dropouts, Layout, NormOrder};
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{ForwardPass, LayerNorm, Linear, Prefix, Sublayer, SublayerAdapter, SublayerOutput};
use crate::parameters::Initializer;

/// A layer norm of the checkpoint, as the layout says.
pub(super) fn norm(
    builder: &mut Builder,
    config: &Config,
    layout: &Layout,
    path: &str,
    width: usize,
) -> Result<LayerNorm> {
    builder.layer_norm(path, width, config.layer_norm_eps, layout.norm_bias, Initializer::Pretrained)
}

/// Self-attention and a feed-forward network, each with dropout, its residual and a layer norm.
#[derive(Clone)]
pub(super) struct Layer {
    attention: SelfAttention,
    attention_output: Linear,
    attention_adapter: Option<Arc<dyn SublayerAdapter>>,
    /// None where norms come first and the layer is the first: the embeddings are normed.
    attention_norm: Option<LayerNorm>,
    feed_forward: FeedForward,
    output_adapter: Option<Arc<dyn SublayerAdapter>>,
    output_norm: LayerNorm,
    order: NormOrder,
    dropout: Dropouts,
}

impl Layer {
    pub(super) fn new(
        builder: &mut Builder,
        config: &Config,
        layout: &Layout,
        shared: &Shared,
        index: usize,
    ) -> Result<Self> {
        let (names, hidden) = (&layout.layers, config.hidden_size);
        let path = |name: &str| layout.layer_path(index, name);
        let tuner = builder.tuner.clone();
        let norms_first = matches!(layout.order, NormOrder::First { .. });
        let (attention_output, output) = (path(names.attention_output), path(names.output));
        Ok(Self {
            attention: SelfAttention::new(builder, config, layout, shared, index)?,
            attention_output: builder.linear(
                &attention_output,
                hidden,
                hidden,
                names.attention_bias,
                Initializer::Pretrained,
            )?,
            attention_adapter: tuner.sublayer(builder, Sublayer::Attention, &attention_output, hidden)?,
            attention_norm: match norms_first && index == 0 {
                true => None,
                false => Some(norm(builder, config, layout, &path(names.attention_norm), hidden)?),
            },
            feed_forward: FeedForward::new(builder, config, layout, index)?,
            output_adapter: tuner.sublayer(builder, Sublayer::FeedForward, &output, hidden)?,
            output_norm: norm(builder, config, layout, &path(names.output_norm), hidden)?,
            order: layout.order,
            dropout: layout.dropout,
        })
    }

    pub(super) fn merge(self) -> Result<Self> {
        Ok(Self {
            attention: self.attention.merge()?,
            attention_output: self.attention_output.merge()?,
            feed_forward: self.feed_forward.merge()?,
            ..self
        })
    }

    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        prefix: Option<&Prefix>,
        pass: &ForwardPass,
        wanted: Wanted,
    ) -> Result<Tensor> {
        match self.order {
            NormOrder::Last => {
                let attended = self.attend(hidden, None, prefix, pass, wanted)?;
                self.feed(&attended, &attended, pass)
            }
            NormOrder::First { .. } => {
                let attended = self.attend(hidden, Some(&self.norm_attended(hidden)?), prefix, pass, wanted)?;
                self.feed(&attended, &self.output_norm.forward(&attended)?, pass)
            }
        }
    }

    fn norm_attended(&self, hidden: &Tensor) -> Result<Tensor> {
        self.attention_norm.as_ref().map_or_else(|| Ok(hidden.clone()), |norm| norm.forward(hidden))
    }

    /// `residual + dropout(attention(input))` and an adapter, normed where norms come last, of whom is wanted. The input is the
    /// residual where it is not normed.
    fn attend(
        &self,
        residual: &Tensor,
        normed: Option<&Tensor>,
        prefix: Option<&Prefix>,
        pass: &ForwardPass,
        wanted: Wanted,
    ) -> Result<Tensor> {
        let keys = self.attention.keys(normed.unwrap_or(residual), prefix, pass, wanted)?;
        let rows = wanted.of(residual, pass)?; // (tokens or sequences, hidden), as all that follow
        let queries = normed.map_or_else(|| Ok(rows.clone()), |normed| wanted.of(normed, pass))?;
        let context = self.attention.attend(keys, &queries, pass, wanted)?;
        let context = self.attention_output.forward(&context, pass)?;
        let dropout = pass.dropout(self.dropout.attention_output);
        let norm = self.behind(self.attention_norm.as_ref());
        let flow = SublayerOutput { input: &queries, output: &context, dropout, residual: &rows, norm };
        flow.add_residual(self.attention_adapter.as_ref(), pass)
    }

    /// `residual + dropout(feed_forward(input))` and an adapter, normed where norms come last.
    fn feed(&self, residual: &Tensor, input: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let output = self.feed_forward.forward(input, pass)?;
        let dropout = self.dropout.output.and_then(|probability| pass.dropout(probability));
        let flow =
            SublayerOutput { input, output: &output, dropout, residual, norm: self.behind(Some(&self.output_norm)) };
        flow.add_residual(self.output_adapter.as_ref(), pass)
    }

    /// What norms a sum with a residual: nothing where norms come first.
    fn behind<'a>(&self, norm: Option<&'a LayerNorm>) -> Option<&'a LayerNorm> {
        norm.filter(|_| matches!(self.order, NormOrder::Last))
    }
}

/// `output(activation(intermediate(x)))`, or with a gate `output(activation(a) * b)` for `[a, b] = intermediate(x)` (Shazeer 2020).
#[derive(Clone)]
struct FeedForward {
    intermediate: Linear,
    output: Linear,
    activation: Activation,
    /// The columns of each half, if there is a gate.
    gated: Option<usize>,
    dropout: Option<f64>,
}

impl FeedForward {
    fn new(builder: &mut Builder, config: &Config, layout: &Layout, index: usize) -> Result<Self> {
        let (names, hidden, inner) = (&layout.layers, config.hidden_size, config.intermediate_size);
        let mut linear = |name: &str, inputs, outputs| {
            let path = layout.layer_path(index, name);
            builder.linear(&path, inputs, outputs, names.feed_forward_bias, Initializer::Pretrained)
        };
        Ok(Self {
            intermediate: linear(names.intermediate, hidden, if names.gated { 2 * inner } else { inner })?,
            output: linear(names.output, inner, hidden)?,
            activation: config.hidden_act,
            gated: names.gated.then_some(inner),
            dropout: layout.dropout.intermediate,
        })
    }

    fn merge(self) -> Result<Self> {
        Ok(Self { intermediate: self.intermediate.merge()?, output: self.output.merge()?, ..self })
    }

    fn forward(&self, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let inner = self.intermediate.forward(x, pass)?; // (.., intermediate), or twice as wide
        let mut inner = match self.gated {
            Some(width) => {
                let activated = ops::activation(&ops::narrow_columns(&inner, 0..width)?, self.activation)?;
                ops::gate(&activated, &ops::narrow_columns(&inner, width..2 * width)?)?
            }
            None => ops::activation(&inner, self.activation)?,
        };
        if let Some(probability) = self.dropout {
            inner = ops::dropout(&inner, pass.dropout(probability))?;
        }
        self.output.forward(&inner, pass) // (.., hidden)
    }
}
