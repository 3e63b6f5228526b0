//! The encoder (Vaswani et al. 2017; Devlin et al. 2019), under Hugging Face's parameter names. Every architecture is a
//! [`Layout`] of it.

mod attention;
mod embeddings;
mod head;
mod layer;

use candle_core::Tensor;
use ops::{Precision, Segments};

use crate::architectures::Config;
use crate::architectures::layout::{Layout, NormOrder};
use crate::batch::Batch;
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{ForwardPass, LayerNorm, Prefix, VirtualTokens};

pub(crate) use attention::Wanted;
pub(crate) use head::Head;

use attention::Shared;
use embeddings::Embeddings;
use layer::{Layer, norm};

/// Embeddings, then a stack of transformer layers.
#[derive(Clone)]
pub(crate) struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    /// After the last layer, where norms come first.
    last_norm: Option<LayerNorm>,
    /// The keys and values that the method puts before those of each layer, `(virtual tokens, layers * 2 * hidden)`.
    prefix: Option<VirtualTokens>,
    hidden_size: usize,
    precision: Precision,
}

impl Encoder {
    pub(crate) fn new(builder: &mut Builder, config: &Config, layout: &Layout) -> Result<Self> {
        let mut embeddings = Embeddings::new(builder, config, layout)?;
        let prefix = builder.tuner.clone().prefix(builder, config)?;
        if let Some(prefix) = &prefix {
            embeddings.count_virtual_tokens(prefix.count());
        }
        let shared = Shared::new(builder, config, layout)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(builder, config, layout, &shared, index))
            .collect::<Result<_>>()?;
        let last_norm = match layout.order {
            NormOrder::Last => None,
            NormOrder::First { last } => Some(norm(builder, config, layout, &layout.path(last), config.hidden_size)?),
        };
        let precision = builder.precision;
        Ok(Self { embeddings, layers, last_norm, prefix, hidden_size: config.hidden_size, precision })
    }

    /// Every branch merged into its layer's weight.
    pub(crate) fn merge(self) -> Result<Self> {
        let layers = self.layers.into_iter().map(Layer::merge).collect::<Result<_>>()?;
        Ok(Self { embeddings: self.embeddings.merge()?, layers, ..self })
    }

    /// The sequences of the hidden states, if the method puts virtual tokens at their beginning.
    pub(crate) fn lengthened(&self, segments: &Segments) -> Option<Segments> {
        self.embeddings.prompt().map(|_| segments.lengthened(self.embeddings.virtual_tokens()))
    }

    /// The columns of the embeddings.
    pub(crate) fn embedding_width(&self) -> usize {
        self.embeddings.width()
    }

    /// The tuner's virtual tokens.
    pub(crate) fn virtual_tokens(&self) -> Option<&VirtualTokens> {
        self.prefix.as_ref().or(self.embeddings.prompt())
    }

    /// The last hidden states: `(tokens, hidden)`, or `(sequences, hidden)` of the first tokens. The pass is over
    /// [`Encoder::lengthened`] sequences.
    pub(crate) fn forward(&self, batch: &Batch, pass: &ForwardPass, wanted: Wanted) -> Result<Tensor> {
        self.forward_observed(batch, pass, wanted, |_| ())
    }

    /// The same; `each` is given what goes into the first layer and what comes out of every layer but the last, `(tokens, hidden)`.
    pub(crate) fn forward_observed(
        &self,
        batch: &Batch,
        pass: &ForwardPass,
        wanted: Wanted,
        mut each: impl FnMut(&Tensor),
    ) -> Result<Tensor> {
        let embedded = self.embeddings.forward(batch, pass)?;
        let mut hidden = ops::to_precision(&embedded, self.precision)?; // (tokens, hidden)
        let prefix = self.prefix.as_ref().map(VirtualTokens::forward).transpose()?;
        for (index, layer) in self.layers.iter().enumerate() {
            let is_last = index + 1 == self.layers.len();
            let prefix = prefix.as_ref().map(|all| Prefix::of_layer(all, index, self.hidden_size)).transpose()?;
            let wanted = if is_last { wanted } else { Wanted::AllTokens };
            each(&hidden);
            hidden = layer.forward(&hidden, prefix.as_ref(), pass, wanted)?;
        }
        if let Some(norm) = &self.last_norm {
            hidden = norm.forward(&hidden)?;
        }
        Ok(ops::to_f32(&hidden)?)
    }
}
