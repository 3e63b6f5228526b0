//! The encoder (Vaswani et al. 2017; Devlin et al. 2019), under Hugging Face's parameter names. Every architecture is a
//! [`Layout`] of it.

use candle_core::{Device, Tensor};
use ops::{Activation, Precision, Segments};

use crate::architectures::Config;
use crate::attention::{SelfAttention, Shared, Wanted};
use crate::batch::Batch;
use crate::error::Result;
use crate::layers::{LayerNorm, Linear, Pass};
use crate::layout::{Dropouts, EmbeddingsLayout, Layout, NormOrder, Numbering};
use crate::method::{BottleneckAdapter, Flow, Prefix, PromptEncoder, Sublayer, VirtualTokens};
use crate::parameters::{Builder, Start};

/// Embeddings, then a stack of transformer layers.
#[derive(Clone)]
pub(crate) struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    /// After the last layer, where norms come first.
    last_norm: Option<LayerNorm>,
    /// The keys and values that the method puts before those of each layer, `(virtual tokens, layers * 2 * hidden)`.
    prefix: Option<PromptEncoder>,
    hidden_size: usize,
    precision: Precision,
}

impl Encoder {
    pub fn new(builder: &mut Builder, config: &Config, layout: &Layout) -> Result<Self> {
        let embeddings = Embeddings::new(builder, config, layout)?;
        let prefix = match builder.tuner.virtual_tokens() {
            Some(VirtualTokens::Prefix(prefix)) => Some(prefix.build(builder, config)?),
            _ => None,
        };
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
    pub fn merge(self) -> Result<Self> {
        let layers = self.layers.into_iter().map(Layer::merge).collect::<Result<_>>()?;
        Ok(Self { embeddings: self.embeddings.merge()?, layers, ..self })
    }

    /// The sequences of the hidden states, if the method puts virtual tokens at their beginning.
    pub fn lengthened(&self, segments: &Segments) -> Option<Segments> {
        self.embeddings.prompt.as_ref().map(|_| segments.lengthened(self.embeddings.virtual_tokens))
    }

    /// The columns of the embeddings.
    pub fn embedding_width(&self) -> usize {
        self.embeddings.layout.width
    }

    /// What makes the method's virtual tokens.
    pub fn prompt_encoder(&self) -> Option<&PromptEncoder> {
        self.prefix.as_ref().or(self.embeddings.prompt.as_ref())
    }

    /// The last hidden states: `(tokens, hidden)`, or `(sequences, hidden)` of the first tokens. The pass is over
    /// [`Encoder::lengthened`] sequences.
    pub fn forward(&self, batch: &Batch, pass: &Pass, wanted: Wanted) -> Result<Tensor> {
        let embedded = self.embeddings.forward(batch, pass)?;
        let mut hidden = ops::to_precision(&embedded, self.precision)?; // (tokens, hidden)
        let prefix = self.prefix.as_ref().map(PromptEncoder::forward).transpose()?;
        for (index, layer) in self.layers.iter().enumerate() {
            let is_last = index + 1 == self.layers.len();
            let prefix = prefix.as_ref().map(|all| Prefix::of_layer(all, index, self.hidden_size)).transpose()?;
            let wanted = if is_last { wanted } else { Wanted::AllTokens };
            hidden = layer.forward(&hidden, prefix.as_ref(), pass, wanted)?;
        }
        if let Some(norm) = &self.last_norm {
            hidden = norm.forward(&hidden)?;
        }
        Ok(ops::to_exact(&hidden)?)
    }
}

fn norm(builder: &mut Builder, config: &Config, layout: &Layout, path: &str, width: usize) -> Result<LayerNorm> {
    LayerNorm::new(builder, path, width, config.layer_norm_eps, layout.norm_bias, Start::Pretrained)
}

#[derive(Clone)]
struct Embeddings {
    words: Tensor,       // (vocabulary, width)
    positions: Tensor,   // (positions, width)
    token_types: Tensor, // (types, width)
    norm: LayerNorm,
    projection: Option<Linear>, // width to hidden
    /// The vectors that the method puts before those of a sequence's words, `(virtual tokens, width)`.
    prompt: Option<PromptEncoder>,
    /// How many positions the method's virtual tokens take, here or in the layers.
    virtual_tokens: usize,
    dropout: f64,
    layout: EmbeddingsLayout,
}

impl Embeddings {
    fn new(builder: &mut Builder, config: &Config, layout: &Layout) -> Result<Self> {
        let EmbeddingsLayout { words, norm: name, positions, token_types, width, projection } = layout.embeddings;
        // A table that the architecture lacks is a row of zeros, so that the sum is one operation for all.
        let mut table = |name: &str, rows: usize| match rows {
            0 => Ok(Tensor::zeros((1, width), builder.dtype, builder.device)?),
            rows => builder.parameter(&layout.path(name), "weight", &[rows, width], Start::Pretrained),
        };
        let rows = positions.map_or(0, |_| config.max_position_embeddings);
        let words = table(words, config.vocab_size)?;
        let positions = table("embeddings.position_embeddings", rows)?;
        let token_types = table("embeddings.token_type_embeddings", token_types)?;
        let asked = builder.tuner.virtual_tokens();
        Ok(Self {
            prompt: match &asked {
                Some(VirtualTokens::Prompt(prompt)) => Some(prompt.build(builder, &words)?),
                Some(VirtualTokens::PTuning(prompt)) => Some(prompt.build(builder, width)?),
                Some(VirtualTokens::Prefix(_)) | None => None,
            },
            virtual_tokens: asked.map_or(0, |virtual_tokens| virtual_tokens.count()),
            words,
            positions,
            token_types,
            norm: norm(builder, config, layout, &layout.path(name), width)?,
            projection: match projection {
                Some(name) => {
                    let path = layout.path(name);
                    Some(Linear::new(builder, &path, width, config.hidden_size, true, Start::Pretrained)?)
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
        let first = self.virtual_tokens as u32;
        let positions = match self.layout.positions {
            Some(Numbering::AfterPadding(padding)) if self.prompt.is_none() => {
                batch.position_ids_after(padding, first)?
            }
            // Behind a prompt, transformers is given embeddings and knows of no padding token: it counts all.
            Some(numbering) => batch.position_ids(numbering.first() + first)?,
            None => batch.position_ids(0)?.zeros_like()?,
        };
        let token_types = match self.layout.token_types {
            // A tokenizer may tell two sentences apart where the model does not.
            0 | 1 => batch.token_type_ids.zeros_like()?,
            _ => batch.token_type_ids.clone(),
        };
        let tables = [&self.words, &self.token_types, &self.positions];
        let mut sum = ops::embedding_sum(tables, [&batch.input_ids, &token_types, &positions])?; // (tokens, width)
        if let Some(prompt) = &self.prompt {
            sum = ops::prepend(&self.prompt_sum(prompt)?, &sum, &batch.segments)?; // (lengthened tokens, width), as all that follow
        }
        let hidden = ops::dropout(&self.norm.forward(&sum)?, pass.dropout(self.dropout))?;
        match &self.projection {
            Some(projection) => projection.forward(&hidden, pass), // (tokens, hidden)
            None => Ok(hidden),
        }
    }

    /// The sum of the virtual tokens' embeddings, one for all sequences: `(virtual tokens, width)`.
    fn prompt_sum(&self, prompt: &PromptEncoder) -> Result<Tensor> {
        let vectors = prompt.forward()?;
        let count = self.virtual_tokens as u32;
        let rows = Tensor::arange(0, count, &Device::Cpu)?;
        let types = rows.zeros_like()?;
        let positions = match self.layout.positions {
            Some(numbering) => Tensor::arange(numbering.first(), numbering.first() + count, &Device::Cpu)?,
            None => types.clone(),
        };
        Ok(ops::embedding_sum([&vectors, &self.token_types, &self.positions], [&rows, &types, &positions])?)
    }
}

/// Self-attention and a feed-forward network, each with dropout, its residual and a layer norm.
#[derive(Clone)]
struct Layer {
    attention: SelfAttention,
    attention_output: Linear,
    attention_adapter: Option<BottleneckAdapter>,
    /// None where norms come first and the layer is the first: the embeddings are normed.
    attention_norm: Option<LayerNorm>,
    feed_forward: FeedForward,
    output_adapter: Option<BottleneckAdapter>,
    output_norm: LayerNorm,
    order: NormOrder,
    dropout: Dropouts,
}

impl Layer {
    fn new(builder: &mut Builder, config: &Config, layout: &Layout, shared: &Shared, index: usize) -> Result<Self> {
        let (names, hidden) = (&layout.layers, config.hidden_size);
        let path = |name: &str| layout.layer_path(index, name);
        let norms_first = matches!(layout.order, NormOrder::First { .. });
        let (attention_output, output) = (path(names.attention_output), path(names.output));
        Ok(Self {
            attention: SelfAttention::new(builder, config, layout, shared, index)?,
            attention_output: Linear::new(
                builder,
                &attention_output,
                hidden,
                hidden,
                names.attention_bias,
                Start::Pretrained,
            )?,
            attention_adapter: BottleneckAdapter::new(builder, Sublayer::Attention, &attention_output, hidden)?,
            attention_norm: match norms_first && index == 0 {
                true => None,
                false => Some(norm(builder, config, layout, &path(names.attention_norm), hidden)?),
            },
            feed_forward: FeedForward::new(builder, config, layout, index)?,
            output_adapter: BottleneckAdapter::new(builder, Sublayer::FeedForward, &output, hidden)?,
            output_norm: norm(builder, config, layout, &path(names.output_norm), hidden)?,
            order: layout.order,
            dropout: layout.dropout,
        })
    }

    fn merge(self) -> Result<Self> {
        Ok(Self {
            attention: self.attention.merge()?,
            attention_output: self.attention_output.merge()?,
            feed_forward: self.feed_forward.merge()?,
            ..self
        })
    }

    fn forward(&self, hidden: &Tensor, prefix: Option<&Prefix>, pass: &Pass, wanted: Wanted) -> Result<Tensor> {
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
        pass: &Pass,
        wanted: Wanted,
    ) -> Result<Tensor> {
        let keys = self.attention.keys(normed.unwrap_or(residual), prefix, pass)?;
        let rows = wanted.of(residual, pass)?; // (tokens or sequences, hidden), as all that follow
        let queries = normed.map_or_else(|| Ok(rows.clone()), |normed| wanted.of(normed, pass))?;
        let context = self.attention.attend(keys, &queries, pass, wanted)?;
        let context = self.attention_output.forward(&context, pass)?;
        let dropout = pass.dropout(self.dropout.attention_output);
        let norm = self.behind(self.attention_norm.as_ref());
        let flow = Flow { input: &queries, output: &context, dropout, residual: &rows, norm };
        flow.end(self.attention_adapter.as_ref(), pass)
    }

    /// `residual + dropout(feed_forward(input))` and an adapter, normed where norms come last.
    fn feed(&self, residual: &Tensor, input: &Tensor, pass: &Pass) -> Result<Tensor> {
        let output = self.feed_forward.forward(input, pass)?;
        let dropout = self.dropout.output.and_then(|probability| pass.dropout(probability));
        let flow = Flow { input, output: &output, dropout, residual, norm: self.behind(Some(&self.output_norm)) };
        flow.end(self.output_adapter.as_ref(), pass)
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
            Linear::new(builder, &path, inputs, outputs, names.feed_forward_bias, Start::Pretrained)
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

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
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
