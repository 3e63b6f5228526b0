//! BERT (Devlin et al. 2019): the encoder as the others are told by.

use ops::Activation;
use serde::Deserialize;
use serde_json::Value;

use super::{Config, part};
use crate::layout::{Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, Numbering};
use crate::method::{CLASSIFIER, POOLER};

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
        layers: LayersLayout::BERT,
        dropout: Dropouts::bert(config.hidden_dropout_prob, config.attention_dropout()),
        head: HeadLayout {
            first_dropout: None,
            dense: POOLER,
            activation: Activation::Tanh,
            dropout: config.head_dropout(),
            output: CLASSIFIER,
        },
    };
    Ok((config, layout))
}
