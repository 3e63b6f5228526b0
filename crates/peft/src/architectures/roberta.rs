//! RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): BERT with positions counted from behind the padding token's id,
//! one token type, and a head of its own (transformers' `modeling_roberta.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::{Fields, with};
use super::{Config, bert, part};
use crate::architectures::layout::{EmbeddingsLayout, HeadLayout, Layout, Numbering};

#[derive(Deserialize)]
struct Tables {
    type_vocab_size: usize,
    pad_token_id: u32,
}

/// `configuration_roberta.py`.
pub(super) fn fields() -> Fields {
    Fields { used: with(bert::fields().used, json!({ "vocab_size": 50265, "pad_token_id": 1 })), ..bert::fields() }
}

/// `configuration_xlm_roberta.py`.
pub(super) fn fields_of_xlm() -> Fields {
    Fields { used: with(fields().used, json!({ "vocab_size": 30522 })), ..fields() }
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let (config, bert) = bert::read(json)?;
    let Tables { type_vocab_size, pad_token_id } = part(json)?;
    let positions = Numbering::AfterPadding(pad_token_id);
    let layout = Layout {
        prefix: "roberta",
        embeddings: EmbeddingsLayout::bert(config.hidden_size, positions, type_vocab_size),
        head: HeadLayout::roberta(Activation::Tanh, config.head_dropout(), config.initializer_range),
        ..bert
    };
    Ok((config, layout))
}
