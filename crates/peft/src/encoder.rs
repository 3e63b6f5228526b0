//! The BERT encoder (Devlin et al. 2019), under Hugging Face's parameter names: BERT, MiniLM, bge and e5 are all of it.

use candle_core::Tensor;
use candle_transformers::models::bert::{Config, HiddenAct};
use ops::Activation;

use crate::batch::Batch;
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, Pass};
use crate::parameters::{Builder, Start};

/// Embeddings, then a stack of transformer layers.
pub(crate) struct Bert {
    embeddings: Embeddings,
    layers: Vec<Layer>,
}

impl Bert {
    /// `dropout` holds the probabilities for hidden states and for attention.
    pub fn new(builder: &mut Builder, config: &Config, dropout: (f64, f64)) -> Result<Self> {
        let embeddings = Embeddings::new(builder, config, dropout.0)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(builder, config, &format!("bert.encoder.layer.{index}"), dropout))
            .collect::<Result<_>>()?;
        Ok(Self { embeddings, layers })
    }

    /// Every branch merged into its layer's weight.
    pub fn merge(self) -> Result<Self> {
        let layers = self.layers.into_iter().map(Layer::merge).collect::<Result<_>>()?;
        Ok(Self { layers, ..self })
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

/// Whose hidden states a layer works out. Of the last layer BERT's pooler reads the first token's only.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    AllTokens,
    FirstTokens,
}

struct Embeddings {
    words: Tensor,       // (vocabulary, hidden)
    positions: Tensor,   // (positions, hidden)
    token_types: Tensor, // (types, hidden)
    norm: LayerNorm,
    dropout: f64,
}

impl Embeddings {
    fn new(builder: &mut Builder, config: &Config, dropout: f64) -> Result<Self> {
        let hidden = config.hidden_size;
        let mut table = |name: &str, rows| {
            builder.parameter(&format!("bert.embeddings.{name}"), "weight", &[rows, hidden], Start::Pretrained)
        };
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            token_types: table("token_type_embeddings", config.type_vocab_size)?,
            norm: LayerNorm::new(builder, "bert.embeddings.LayerNorm", hidden, config.layer_norm_eps)?,
            dropout,
        })
    }

    fn forward(&self, batch: &Batch, pass: &Pass) -> Result<Tensor> {
        let tables = [&self.words, &self.token_types, &self.positions];
        let rows = [&batch.input_ids, &batch.token_type_ids, &batch.position_ids];
        let sum = ops::embedding_sum(tables, rows)?; // (tokens, hidden)
        Ok(ops::dropout(&self.norm.forward(&sum)?, pass.dropout(self.dropout))?)
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
    dropout: f64,
    attention_dropout: f64,
}

impl Layer {
    fn new(
        builder: &mut Builder,
        config: &Config,
        path: &str,
        (dropout, attention_dropout): (f64, f64),
    ) -> Result<Self> {
        let (hidden, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let mut linear = |name: &str, inputs, outputs| {
            Linear::new(builder, &format!("{path}.{name}"), inputs, outputs, Start::Pretrained)
        };
        Ok(Self {
            query: linear("attention.self.query", hidden, hidden)?,
            key: linear("attention.self.key", hidden, hidden)?,
            value: linear("attention.self.value", hidden, hidden)?,
            attention_output: linear("attention.output.dense", hidden, hidden)?,
            intermediate: linear("intermediate.dense", hidden, inner)?,
            output: linear("output.dense", inner, hidden)?,
            attention_norm: LayerNorm::new(builder, &format!("{path}.attention.output.LayerNorm"), hidden, epsilon)?,
            output_norm: LayerNorm::new(builder, &format!("{path}.output.LayerNorm"), hidden, epsilon)?,
            activation: match config.hidden_act {
                HiddenAct::Gelu => Activation::Gelu,
                HiddenAct::GeluApproximate => Activation::GeluApproximate,
                HiddenAct::Relu => Activation::Relu,
            },
            heads: config.num_attention_heads,
            dropout,
            attention_dropout,
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
        let attended = self.attention_norm.forward(&ops::add_dropout(&context, hidden, pass.dropout(self.dropout))?)?;

        let inner = self.intermediate.forward(&attended, pass)?; // (.., intermediate)
        let inner = ops::activation(&inner, self.activation)?;
        let inner = self.output.forward(&inner, pass)?; // (.., hidden)
        self.output_norm.forward(&ops::add_dropout(&inner, &attended, pass.dropout(self.dropout))?)
    }
}
