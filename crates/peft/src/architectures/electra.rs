//! ELECTRA (Clark et al. 2020): BERT with embeddings that may be narrower than the hidden states, and a head of its own
//! (transformers' `modeling_electra.py`).

use ops::Activation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::{Fields, with};
use super::{Config, bert, part};
use crate::architectures::layout::{EmbeddingsLayout, HeadLayout, Layout};

#[derive(Deserialize)]
struct Embeddings {
    embedding_size: usize,
}

/// `configuration_electra.py`.
pub(super) fn fields() -> Fields {
    let sizes = json!({
        "embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
    });
    Fields {
        used: with(bert::fields().used, sizes),
        // Of multiple choice.
        without_effect: &[
            "summary_activation",
            "summary_first_dropout",
            "summary_last_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ],
        ..bert::fields()
    }
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
