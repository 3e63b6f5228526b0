//! What tells one encoder from another: the names of its parameters, and a few choices.

use ops::{Activation, RelativeRows};

use crate::parameters::{CLASSIFIER, is_head};
use crate::pooling::Pooling;

/// An architecture as a reading of the one [`Encoder`](crate::encoder::Encoder). The names are Hugging Face's; those of the
/// encoder stand without its prefix.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// What the encoder's paths begin with: `bert`.
    pub prefix: &'static str,
    /// What they begin with in the checkpoint of a bare encoder, where the prefix is left out.
    pub bare: &'static [&'static str],
    pub embeddings: EmbeddingsLayout,
    pub positions: PositionsLayout,
    pub layers: LayersLayout,
    pub order: NormOrder,
    /// Whether layer norms have a bias.
    pub norm_bias: bool,
    pub dropout: Dropouts,
    pub head: HeadLayout,
}

impl Layout {
    /// With one probability for every dropout, if there is one.
    pub(crate) fn with_dropout(mut self, probability: Option<f64>) -> Self {
        if let Some(probability) = probability {
            let Dropouts { intermediate, output, .. } = self.dropout;
            self.dropout = Dropouts {
                embeddings: probability,
                positions: probability,
                attention: probability,
                attention_output: probability,
                intermediate: intermediate.and(Some(probability)),
                output: output.and(Some(probability)),
            };
            self.head.dropout = probability;
            self.head.first_dropout = self.head.first_dropout.and(Some(probability));
        }
        self
    }

    /// A path of the encoder.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// A path of a layer.
    pub(crate) fn layer_path(&self, index: usize, name: &str) -> String {
        format!("{}.{}.{index}.{name}", self.prefix, self.layers.path)
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
    /// BERT's, with so many columns and token types, and positions that are counted so.
    pub(crate) fn bert(width: usize, positions: Numbering, token_types: usize) -> Self {
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
    /// The row of the first token.
    pub(crate) fn first(self) -> u32 {
        match self {
            Self::FromZero => 0,
            Self::AfterPadding(padding) => padding + 1,
        }
    }

    /// The longest sequence that a table of so many rows serves.
    pub(crate) fn longest(self, rows: usize) -> usize {
        rows.saturating_sub(self.first() as usize)
    }
}

/// What attention knows of positions, besides what the embeddings do.
#[derive(Clone, Debug)]
pub(crate) enum PositionsLayout {
    /// Nothing.
    Absolute,
    /// A bias by distance, from one table for all layers.
    Bias { table: &'static str, buckets: usize, rows: RelativeRows },
    /// Scores between contents and positions.
    Disentangled(DisentangledLayout),
    /// Queries and keys turned by their positions, in each layer so.
    Rotary(Vec<RotaryLayout>),
}

/// DeBERTa's positions.
#[derive(Clone, Debug)]
pub(crate) struct DisentangledLayout {
    /// The table of relative positions, one for all layers.
    pub table: &'static str,
    /// Its rows.
    pub count: usize,
    /// What norms it.
    pub norm: Option<&'static str>,
    pub rows: RelativeRows,
    /// Whether a query meets the position of a key, `c2p`.
    pub to_position: bool,
    /// Whether a key meets the position of a query, `p2c`.
    pub to_content: bool,
    /// A layer's projection of positions as keys; `None`: that of its keys.
    pub key: Option<&'static str>,
    /// A layer's projection of positions as queries; `None`: that of its queries.
    pub query: Option<&'static str>,
}

/// A layer's rotary embedding, and how far it sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RotaryLayout {
    pub theta: f64,
    /// Tokens to either side; `None`: all of the sequence.
    pub window: Option<usize>,
}

/// A layer: self-attention, then a feed-forward network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayersLayout {
    /// What stands before a layer's number.
    pub path: &'static str,
    pub projections: ProjectionNames,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    /// Whether the linear layers of attention have a bias.
    pub attention_bias: bool,
    pub intermediate: &'static str,
    pub output: &'static str,
    pub output_norm: &'static str,
    /// Whether the linear layers of the feed-forward network have a bias.
    pub feed_forward_bias: bool,
    /// Whether the feed-forward network has a gate.
    pub gated: bool,
}

impl LayersLayout {
    pub(crate) const BERT: Self = Self {
        path: "encoder.layer",
        projections: ProjectionNames::Separate {
            query: "attention.self.query",
            key: "attention.self.key",
            value: "attention.self.value",
        },
        attention_output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        attention_bias: true,
        intermediate: "intermediate.dense",
        output: "output.dense",
        output_norm: "output.LayerNorm",
        feed_forward_bias: true,
        gated: false,
    };
}

/// What gives queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ProjectionNames {
    Separate { query: &'static str, key: &'static str, value: &'static str },
    Fused(&'static str),
}

/// Where a layer's norms stand (Xiong et al. 2020).
#[derive(Clone, Copy, Debug)]
pub(crate) enum NormOrder {
    /// After each residual.
    Last,
    /// Before attention and before the feed-forward network, and one after the last layer.
    First { last: &'static str },
}

/// The probabilities of dropout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropouts {
    pub embeddings: f64,
    /// Of the table of relative positions.
    pub positions: f64,
    /// Of the attention probabilities.
    pub attention: f64,
    /// Of what attention adds to the hidden states.
    pub attention_output: f64,
    /// Within the feed-forward network.
    pub intermediate: Option<f64>,
    /// Of what the feed-forward network adds to the hidden states.
    pub output: Option<f64>,
}

impl Dropouts {
    /// BERT's: one for all hidden states, one for the attention probabilities.
    pub(crate) fn bert(hidden: f64, attention: f64) -> Self {
        Self {
            embeddings: hidden,
            positions: hidden,
            attention,
            attention_output: hidden,
            intermediate: None,
            output: Some(hidden),
        }
    }
}

/// From a sequence's vector to its logits: a dense layer with an activation, dropout, and the output layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLayout {
    /// What the architecture's own class makes the vector by.
    pub pooling: Pooling,
    /// Dropout on the vector itself.
    pub first_dropout: Option<f64>,
    pub dense: &'static str,
    /// Whether the dense layer has a bias.
    pub dense_bias: bool,
    /// The standard deviation of its new weights.
    pub dense_deviation: f64,
    pub activation: Activation,
    /// What norms the activations.
    pub norm: Option<&'static str>,
    /// Whether that norm has a bias.
    pub norm_bias: bool,
    pub dropout: f64,
    pub output: &'static str,
    /// The standard deviation of its new weights.
    pub output_deviation: f64,
}

impl HeadLayout {
    /// A dense layer of that name with an activation, dropout, and `classifier`; new weights of that standard deviation.
    pub(crate) fn new(dense: &'static str, activation: Activation, dropout: f64, deviation: f64) -> Self {
        Self {
            pooling: Pooling::Cls,
            first_dropout: None,
            dense,
            dense_bias: true,
            dense_deviation: deviation,
            activation,
            norm: None,
            norm_bias: true,
            dropout,
            output: CLASSIFIER,
            output_deviation: deviation,
        }
    }

    /// RoBERTa's head: dropout, `classifier.dense`, an activation, dropout, `classifier.out_proj`.
    pub(crate) fn roberta(activation: Activation, dropout: f64, deviation: f64) -> Self {
        let head = Self::new("classifier.dense", activation, dropout, deviation);
        Self { first_dropout: Some(dropout), output: "classifier.out_proj", ..head }
    }

    /// BERT's dense layer is its pooler, a part of the encoder, and goes with the first token; the others' belong to the head.
    pub(crate) fn has_dense(&self, pooling: Pooling) -> bool {
        pooling == Pooling::Cls || is_head(self.dense)
    }
}
