//! The embeddings: the sum of word, position and token type tables, normed, after virtual tokens if the tuner has any.

use candle_core::{Device, Tensor};

use super::layer::norm;
use crate::architectures::Config;
use crate::architectures::layout::{EmbeddingsLayout, Layout, Numbering};
use crate::batch::Batch;
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{ForwardPass, LayerNorm, Linear, VirtualTokens};
use crate::parameters::Initializer;

#[derive(Clone)]
pub(super) struct Embeddings {
    words: Tensor,       // (vocabulary, width)
    positions: Tensor,   // (positions, width)
    token_types: Tensor, // (types, width)
    norm: LayerNorm,
    projection: Option<Linear>, // width to hidden
    /// The vectors that the method puts before those of a sequence's words, `(virtual tokens, width)`.
    prompt: Option<VirtualTokens>,
    /// How many positions the method's virtual tokens take, here or in the layers.
    virtual_tokens: usize,
    dropout: f64,
    layout: EmbeddingsLayout,
}

impl Embeddings {
    pub(super) fn new(builder: &mut Builder, config: &Config, layout: &Layout) -> Result<Self> {
        let EmbeddingsLayout { words, norm: name, positions, token_types, width, projection } = layout.embeddings;
        // A table that the architecture lacks is a row of zeros, so that the sum is one operation for all.
        let mut table = |name: &str, rows: usize| match rows {
            0 => Ok(Tensor::zeros((1, width), builder.dtype, builder.device)?),
            rows => builder.parameter(&layout.path(name), "weight", &[rows, width], Initializer::Pretrained),
        };
        let rows = positions.map_or(0, |_| config.max_position_embeddings);
        let words = table(words, config.vocab_size)?;
        let positions = table("embeddings.position_embeddings", rows)?;
        let token_types = table("embeddings.token_type_embeddings", token_types)?;
        let prompt = builder.tuner.clone().prompt(builder, &words)?;
        Ok(Self {
            virtual_tokens: prompt.as_ref().map_or(0, VirtualTokens::count),
            prompt,
            words,
            positions,
            token_types,
            norm: norm(builder, config, layout, &layout.path(name), width)?,
            projection: match projection {
                Some(name) => {
                    let path = layout.path(name);
                    Some(builder.linear(&path, width, config.hidden_size, true, Initializer::Pretrained)?)
                }
                None => None,
            },
            dropout: layout.dropout.embeddings,
            layout: layout.embeddings,
        })
    }

    /// The tuner's virtual tokens before the words', if it has any.
    pub(super) fn prompt(&self) -> Option<&VirtualTokens> {
        self.prompt.as_ref()
    }

    /// How many positions virtual tokens take.
    pub(super) fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }

    /// Notes virtual tokens that stand in the layers: they take the first positions.
    pub(super) fn count_virtual_tokens(&mut self, count: usize) {
        self.virtual_tokens = count;
    }

    /// The columns of the tables.
    pub(super) fn width(&self) -> usize {
        self.layout.width
    }

    pub(super) fn merge(self) -> Result<Self> {
        Ok(Self { projection: self.projection.map(Linear::merge).transpose()?, ..self })
    }

    pub(super) fn forward(&self, batch: &Batch, pass: &ForwardPass) -> Result<Tensor> {
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
    fn prompt_sum(&self, prompt: &VirtualTokens) -> Result<Tensor> {
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
