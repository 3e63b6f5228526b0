//! What tells one encoder from another: the names of its parameters, and a few choices.

use ops::Activation;

use crate::model::Pooling;
use crate::parameters::is_head;

/// An architecture as a reading of the one [`Encoder`](crate::encoder::Encoder). The names are Hugging Face's; those of the
/// encoder stand without its prefix.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// What the encoder's paths begin with: `bert`.
    pub prefix: &'static str,
    /// What they begin with in the checkpoint of a bare encoder, where the prefix is left out.
    pub bare: &'static [&'static str],
    pub embeddings: EmbeddingsLayout,
    pub layers: LayersLayout,
    pub dropout: Dropouts,
    pub head: HeadLayout,
}

impl Layout {
    /// With one probability for every dropout, if there is one.
    pub fn with_dropout(mut self, probability: Option<f64>) -> Self {
        if let Some(probability) = probability {
            self.dropout = Dropouts::bert(probability, probability);
            self.head.dropout = probability;
            self.head.first_dropout = self.head.first_dropout.and(Some(probability));
        }
        self
    }

    /// A path of the encoder.
    pub fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
}

/// The sum of a token's embeddings, normed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbeddingsLayout {
    pub words: &'static str,
    pub norm: &'static str,
    /// The table of absolute positions is `embeddings.position_embeddings`, where there is one.
    pub positions: Option<Numbering>,
    /// How many token types there are; the table of one row or more is `embeddings.token_type_embeddings`.
    pub token_types: usize,
    /// The columns of the tables.
    pub width: usize,
    /// The layer that brings them to the hidden size, after the norm.
    pub projection: Option<&'static str>,
}

impl EmbeddingsLayout {
    /// BERT's, with so many token types, `width` columns, and positions that are counted so.
    pub fn bert(width: usize, positions: Numbering, token_types: usize) -> Self {
        Self {
            words: "embeddings.word_embeddings",
            norm: "embeddings.LayerNorm",
            positions: Some(positions),
            token_types,
            width,
            projection: None,
        }
    }
}

/// Which row of the table of positions a token looks up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Numbering {
    /// The first token of a sequence the first row.
    FromZero,
    /// The first token the row after that of the padding token's id, since fairseq's tables begin so; a padding token itself
    /// that row, and it is not counted (transformers' `create_position_ids_from_input_ids`).
    AfterPadding(u32),
}

impl Numbering {
    /// The longest sequence that a table of so many rows serves.
    pub fn longest(self, rows: usize) -> usize {
        match self {
            Self::FromZero => rows,
            Self::AfterPadding(padding) => rows.saturating_sub(padding as usize + 1),
        }
    }
}

/// A layer: self-attention, then a feed-forward network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayersLayout {
    /// What stands before a layer's number.
    pub path: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub intermediate: &'static str,
    pub output: &'static str,
    pub output_norm: &'static str,
}

impl LayersLayout {
    pub const BERT: Self = Self {
        path: "encoder.layer",
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        attention_output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        intermediate: "intermediate.dense",
        output: "output.dense",
        output_norm: "output.LayerNorm",
    };
}

/// The probabilities of dropout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropouts {
    pub embeddings: f64,
    /// Of the attention probabilities.
    pub attention: f64,
    /// Of what attention adds to the hidden states.
    pub attention_output: f64,
    /// Of what the feed-forward network adds to them.
    pub output: f64,
}

impl Dropouts {
    /// BERT's: one for all hidden states, one for the attention probabilities.
    pub fn bert(hidden: f64, attention: f64) -> Self {
        Self { embeddings: hidden, attention, attention_output: hidden, output: hidden }
    }
}

/// From a sequence's vector to its logits: a dense layer with an activation, dropout, and the output layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLayout {
    /// Dropout on the vector itself.
    pub first_dropout: Option<f64>,
    pub dense: &'static str,
    pub activation: Activation,
    pub dropout: f64,
    pub output: &'static str,
}

impl HeadLayout {
    /// BERT's dense layer is its pooler, a part of the encoder, and goes with the first token; the others' belong to the head.
    pub fn has_dense(&self, pooling: Pooling) -> bool {
        pooling == Pooling::Cls || is_head(self.dense)
    }

    /// RoBERTa's head: dropout, `classifier.dense`, an activation, dropout, `classifier.out_proj`.
    pub fn roberta(dropout: f64, activation: Activation) -> Self {
        Self {
            first_dropout: Some(dropout),
            dense: "classifier.dense",
            activation,
            dropout,
            output: "classifier.out_proj",
        }
    }
}
