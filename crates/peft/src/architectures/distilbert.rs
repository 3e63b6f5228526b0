//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler, under other names (transformers'
//! `modeling_distilbert.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::Value;

use super::{Architecture, Config, part};
use crate::architectures::layout::{
    Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, NormOrder, Numbering, PositionsLayout,
    ProjectionNames,
};

#[derive(Deserialize)]
struct Sizes {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    activation: Activation,
    max_position_embeddings: usize,
    dropout: f64,
    attention_dropout: f64,
    #[serde(default = "head_dropout")]
    seq_classif_dropout: f64,
    initializer_range: f64,
}

fn head_dropout() -> f64 {
    0.2
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let sizes: Sizes = part(json)?;
    let config = Config {
        architecture: Architecture::DistilBert,
        vocab_size: sizes.vocab_size,
        hidden_size: sizes.dim,
        num_hidden_layers: sizes.n_layers,
        num_attention_heads: sizes.n_heads,
        intermediate_size: sizes.hidden_dim,
        hidden_act: sizes.activation,
        max_position_embeddings: sizes.max_position_embeddings,
        hidden_dropout_prob: sizes.dropout,
        attention_probs_dropout_prob: Some(sizes.attention_dropout),
        classifier_dropout: Some(sizes.seq_classif_dropout),
        layer_norm_eps: 1e-12,
        initializer_range: sizes.initializer_range,
    };
    let layout = Layout {
        prefix: "distilbert",
        bare: &["embeddings.", "transformer."],
        embeddings: EmbeddingsLayout::bert(config.hidden_size, Numbering::FromZero, 0),
        positions: PositionsLayout::Absolute,
        layers: LayersLayout {
            path: "transformer.layer",
            projections: ProjectionNames::Separate {
                query: "attention.q_lin",
                key: "attention.k_lin",
                value: "attention.v_lin",
            },
            attention_output: "attention.out_lin",
            attention_norm: "sa_layer_norm",
            intermediate: "ffn.lin1",
            output: "ffn.lin2",
            output_norm: "output_layer_norm",
            ..LayersLayout::BERT
        },
        order: NormOrder::Last,
        norm_bias: true,
        dropout: Dropouts::bert(config.hidden_dropout_prob, config.attention_dropout()),
        head: HeadLayout::new("pre_classifier", Activation::Relu, config.head_dropout(), config.initializer_range),
    };
    Ok((config, layout))
}
