//! RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): BERT with positions counted from behind the padding token's id,
//! one token type, and a head of its own (transformers' `modeling_roberta.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::Value;

use super::{Config, part};
use crate::layout::{Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, Numbering};

#[derive(Deserialize)]
struct Tables {
    type_vocab_size: usize,
    #[serde(default = "padding")]
    pad_token_id: u32,
}

fn padding() -> u32 {
    1
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let (config, tables): (Config, Tables) = (part(json)?, part(json)?);
    let positions = Numbering::AfterPadding(tables.pad_token_id);
    let layout = Layout {
        prefix: "roberta",
        bare: &["embeddings.", "encoder.", "pooler."],
        embeddings: EmbeddingsLayout::bert(config.hidden_size, positions, tables.type_vocab_size),
        layers: LayersLayout::BERT,
        dropout: Dropouts::bert(config.hidden_dropout_prob, config.attention_dropout()),
        head: HeadLayout::roberta(config.head_dropout(), Activation::Tanh),
    };
    Ok((config, layout))
}
