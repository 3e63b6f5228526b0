//! ELECTRA (Clark et al. 2020): BERT with embeddings that may be narrower than the hidden states, and a head of its own
//! (transformers' `modeling_electra.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::Value;

use super::{Config, bert, part};
use crate::architectures::layout::{EmbeddingsLayout, HeadLayout, Layout};

#[derive(Deserialize)]
struct Embeddings {
    embedding_size: usize,
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let (config, bert) = bert::read(json)?;
    let Embeddings { embedding_size: width } = part(json)?;
    let projection = (width != config.hidden_size).then_some("embeddings_project");
    let layout = Layout {
        prefix: "electra",
        bare: &["embeddings.", "embeddings_project.", "encoder."],
        embeddings: EmbeddingsLayout { width, projection, ..bert.embeddings },
        head: HeadLayout::roberta(Activation::Gelu, config.head_dropout(), config.initializer_range),
        ..bert
    };
    Ok((config, layout))
}
