//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler, under other names (transformers'
//! `modeling_distilbert.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::{Architecture, Config, activation, part};
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
    #[serde(deserialize_with = "activation")]
    activation: Activation,
    max_position_embeddings: usize,
    dropout: f64,
    attention_dropout: f64,
    seq_classif_dropout: f64,
    initializer_range: f64,
}

/// `configuration_distilbert.py`. Its layer norms have a constant epsilon. Sinusoidal positions are a table in the checkpoint as well.
pub(super) fn fields() -> Fields {
    Fields {
        used: json!({
            "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "activation": "gelu",
            "max_position_embeddings": 512, "dropout": 0.1, "attention_dropout": 0.1, "seq_classif_dropout": 0.2,
            "initializer_range": 0.02,
        }),
        without_effect: &["qa_dropout", "sinusoidal_pos_embds", "tie_weights_"],
        only: json!({}),
    }
}

/// Fields that the class takes under BERT's names too (`attribute_map`).
pub(super) const ALIASES: &[(&str, &str)] =
    &[("hidden_size", "dim"), ("num_hidden_layers", "n_layers"), ("num_attention_heads", "n_heads")];

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
