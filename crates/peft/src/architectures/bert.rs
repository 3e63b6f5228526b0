//! BERT (Devlin et al. 2019): the encoder as the others are told by (transformers' `modeling_bert.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::{Config, part};
use crate::architectures::layout::{
    Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, NormOrder, Numbering, PositionsLayout,
};
use crate::parameters::POOLER;

#[derive(Deserialize)]
struct Types {
    type_vocab_size: usize,
}

/// What BERT's class and its relatives have in common (`configuration_bert.py`).
pub(super) fn fields() -> Fields {
    Fields {
        used: json!({
            "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "classifier_dropout": null,
            "layer_norm_eps": 1e-12, "initializer_range": 0.02,
        }),
        without_effect: &[],
        only: json!({}),
    }
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let (config, types): (Config, Types) = (part(json)?, part(json)?);
    let layout = Layout {
        prefix: "bert",
        bare: &["embeddings.", "encoder.", "pooler."],
        embeddings: EmbeddingsLayout::bert(config.hidden_size, Numbering::FromZero, types.type_vocab_size),
        positions: PositionsLayout::Absolute,
        layers: LayersLayout::BERT,
        order: NormOrder::Last,
        norm_bias: true,
        dropout: Dropouts::bert(config.hidden_dropout_prob, config.attention_dropout()),
        head: HeadLayout::new(POOLER, Activation::Tanh, config.head_dropout(), config.initializer_range),
    };
    Ok((config, layout))
}
