//! The encoder (Vaswani et al. 2017; Devlin et al. 2019), under Hugging Face's parameter names. Every architecture is a
//! [`Layout`] of it.

use candle_core::Tensor;
use ops::Activation;

use crate::architectures::Config;
use crate::batch::Batch;
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, Pass};
use crate::layout::{EmbeddingsLayout, Layout, Numbering};
use crate::parameters::{Builder, Start};

/// Embeddings, then a stack of transformer layers.
pub(crate) struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Layer>,
}

impl Encoder {
    pub fn new(builder: &mut Builder, config: &Config, layout: &Layout) -> Result<Self> {
        let embeddings = Embeddings::new(builder, config, layout)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(builder, config, layout, index))
            .collect::<Result<_>>()?;
        Ok(Self { embeddings, layers })
    }

    /// Every branch merged into its layer's weight.
    pub fn merge(self) -> Result<Self> {
        let layers = self.layers.into_iter().map(Layer::merge).collect::<Result<_>>()?;
        Ok(Self { embeddings: self.embeddings.merge()?, layers })
    }

    /// The last hidden states: `(tokens, hidden)`, or `(sequences, hidden)` of the first tokens.
    pub fn forward(&self, batch: &Batch, pass: &Pass, wanted: Wanted) -> Result<Tensor> {
        let mut hidden = self.embeddings.forward(batch, pass)?; // (tokens, hidden)
        for (index, layer) in self.layers.iter().enumerate() {
            let is_last = index + 1 == self.layers.len();
            hidden = layer.forward(&hidden, pass, if is_last { wanted } else { Wanted::AllTokens })?;
        }
        Ok(hidden)
    }
}

/// Whose hidden states a layer works out. Of the last layer a head may read the first token's only.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    AllTokens,
    FirstTokens,
}

struct Embeddings {
    words: Tensor,       // (vocabulary, width)
    positions: Tensor,   // (positions, width)
    token_types: Tensor, // (types, width)
    norm: LayerNorm,
    projection: Option<Linear>, // width to hidden
    dropout: f64,
    layout: EmbeddingsLayout,
}

impl Embeddings {
    fn new(builder: &mut Builder, config: &Config, layout: &Layout) -> Result<Self> {
        let EmbeddingsLayout { words, norm, positions, token_types, width, projection } = layout.embeddings;
        // A table that the architecture lacks is a row of zeros, so that the sum is one operation for all.
        let mut table = |name: &str, rows: usize| match rows {
            0 => Ok(Tensor::zeros((1, width), builder.dtype, builder.device)?),
            rows => builder.parameter(&layout.path(name), "weight", &[rows, width], Start::Pretrained),
        };
        let rows = positions.map_or(0, |_| config.max_position_embeddings);
        Ok(Self {
            words: table(words, config.vocab_size)?,
            positions: table("embeddings.position_embeddings", rows)?,
            token_types: table("embeddings.token_type_embeddings", token_types)?,
            norm: LayerNorm::new(builder, &layout.path(norm), width, config.layer_norm_eps)?,
            projection: match projection {
                Some(name) => {
                    let path = layout.path(name);
                    Some(Linear::new(builder, &path, width, config.hidden_size, Start::Pretrained)?)
                }
                None => None,
            },
            dropout: layout.dropout.embeddings,
            layout: layout.embeddings,
        })
    }

    fn merge(self) -> Result<Self> {
        Ok(Self { projection: self.projection.map(Linear::merge).transpose()?, ..self })
    }

    fn forward(&self, batch: &Batch, pass: &Pass) -> Result<Tensor> {
        let positions = match self.layout.positions {
            Some(Numbering::FromZero) => batch.position_ids.clone(),
            Some(Numbering::AfterPadding(padding)) => batch.position_ids_after(padding)?,
            None => batch.position_ids.zeros_like()?,
        };
        let token_types = match self.layout.token_types {
            // A tokenizer may tell two sentences apart where the model does not.
            0 | 1 => batch.token_type_ids.zeros_like()?,
            _ => batch.token_type_ids.clone(),
        };
        let tables = [&self.words, &self.token_types, &self.positions];
        let sum = ops::embedding_sum(tables, [&batch.input_ids, &token_types, &positions])?; // (tokens, width)
        let hidden = ops::dropout(&self.norm.forward(&sum)?, pass.dropout(self.dropout))?;
        match &self.projection {
            Some(projection) => projection.forward(&hidden, pass), // (tokens, hidden)
            None => Ok(hidden),
        }
    }
}

/// Self-attention and a feed-forward network, each followed by dropout, its residual and a layer norm.
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    activation: Activation,
    heads: usize,
    attention_dropout: f64,
    attention_output_dropout: f64,
    output_dropout: f64,
}

impl Layer {
    fn new(builder: &mut Builder, config: &Config, layout: &Layout, index: usize) -> Result<Self> {
        let (hidden, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let (names, dropout) = (&layout.layers, &layout.dropout);
        let path = |name: &str| layout.path(&format!("{}.{index}.{name}", names.path));
        let mut linear =
            |name: &str, inputs, outputs| Linear::new(builder, &path(name), inputs, outputs, Start::Pretrained);
        Ok(Self {
            query: linear(names.query, hidden, hidden)?,
            key: linear(names.key, hidden, hidden)?,
            value: linear(names.value, hidden, hidden)?,
            attention_output: linear(names.attention_output, hidden, hidden)?,
            intermediate: linear(names.intermediate, hidden, inner)?,
            output: linear(names.output, inner, hidden)?,
            attention_norm: LayerNorm::new(builder, &path(names.attention_norm), hidden, epsilon)?,
            output_norm: LayerNorm::new(builder, &path(names.output_norm), hidden, epsilon)?,
            activation: config.hidden_act,
            heads: config.num_attention_heads,
            attention_dropout: dropout.attention,
            attention_output_dropout: dropout.attention_output,
            output_dropout: dropout.output,
        })
    }

    fn merge(self) -> Result<Self> {
        Ok(Self {
            query: self.query.merge()?,
            key: self.key.merge()?,
            value: self.value.merge()?,
            attention_output: self.attention_output.merge()?,
            intermediate: self.intermediate.merge()?,
            output: self.output.merge()?,
            ..self
        })
    }

    fn forward(&self, hidden: &Tensor, pass: &Pass, wanted: Wanted) -> Result<Tensor> {
        let key = self.key.forward(hidden, pass)?; // (tokens, hidden)
        let value = self.value.forward(hidden, pass)?;
        let hidden = &match wanted {
            Wanted::AllTokens => hidden.clone(),
            Wanted::FirstTokens => ops::first_tokens(hidden, pass.segments)?,
        };
        let query = self.query.forward(hidden, pass)?; // (tokens or sequences, hidden), as all that follow
        let dropout = pass.dropout(self.attention_dropout);
        let context = ops::attention(&query, &key, &value, pass.segments, self.heads, dropout)?;
        let context = self.attention_output.forward(&context, pass)?;
        let dropout = pass.dropout(self.attention_output_dropout);
        let attended = self.attention_norm.forward(&ops::add_dropout(&context, hidden, dropout)?)?;

        let inner = self.intermediate.forward(&attended, pass)?; // (.., intermediate)
        let inner = ops::activation(&inner, self.activation)?;
        let inner = self.output.forward(&inner, pass)?; // (.., hidden)
        let dropout = pass.dropout(self.output_dropout);
        self.output_norm.forward(&ops::add_dropout(&inner, &attended, dropout)?)
    }
}
