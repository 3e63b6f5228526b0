//! BERT (Devlin et al. 2019): the encoder as the others are told by (transformers' `modeling_bert.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::Value;

use super::{Config, part};
use crate::architectures::layout::{
    Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, NormOrder, Numbering, PositionsLayout,
};
use crate::parameters::POOLER;

#[derive(Deserialize)]
struct Types {
    type_vocab_size: usize,
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
