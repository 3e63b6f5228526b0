//! MPNet (Song et al. 2020): RoBERTa without token types, and with a bias by distance in all layers' scores (transformers'
//! `modeling_mpnet.py`).

use ops::{Activation, RelativeRows};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::Fields;
use super::{Config, at_least, part};
use crate::architectures::layout::{
    Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, NormOrder, Numbering, PositionsLayout,
    ProjectionNames,
};

#[derive(Deserialize)]
struct Buckets {
    relative_attention_num_buckets: usize,
}

/// `configuration_mpnet.py`.
pub(super) fn fields() -> Fields {
    Fields {
        used: json!({
            "vocab_size": 30527, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-12,
            "initializer_range": 0.02, "relative_attention_num_buckets": 32,
        }),
        // Of BERT's class, whose fields early files of MPNet's have; its own has neither.
        without_effect: &["classifier_dropout", "type_vocab_size"],
        only: json!({}),
    }
}

/// Of `compute_position_bias`, which leaves the configuration's number aside.
const BUCKETS: usize = 32;

/// Of `MPNetEmbeddings`, which leaves the configuration's `pad_token_id` aside.
const PADDING: u32 = 1;

/// The bucket of a distance, the query's position less the key's (`relative_position_bucket`, after T5's): half of the buckets for
/// keys that follow; up to 7 one for each distance, then ever wider ones, in equal steps of the logarithm up to 128, in f32.
fn bucket(distance: isize) -> usize {
    const HALF: usize = BUCKETS / 2;
    const EXACT: usize = HALF / 2;
    let side = if distance < 0 { HALF } else { 0 };
    let far = distance.unsigned_abs();
    if far < EXACT {
        return side + far;
    }
    let share = (far as f32 / EXACT as f32).ln() / (128.0 / EXACT as f64).ln() as f32;
    side + (EXACT + (share * (HALF - EXACT) as f32) as usize).min(HALF - 1)
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let config: Config = part(json)?;
    let Buckets { relative_attention_num_buckets: buckets } = part(json)?;
    at_least("relative_attention_num_buckets", buckets, BUCKETS)?;
    let positions = Numbering::AfterPadding(PADDING);
    let longest = positions.longest(config.max_position_embeddings);
    let layout = Layout {
        prefix: "mpnet",
        bare: &["embeddings.", "encoder.", "pooler."],
        embeddings: EmbeddingsLayout::bert(config.hidden_size, positions, 0),
        positions: PositionsLayout::Bias {
            table: "encoder.relative_attention_bias",
            buckets,
            rows: RelativeRows::new(longest, bucket),
        },
        layers: LayersLayout {
            projections: ProjectionNames::Separate {
                query: "attention.attn.q",
                key: "attention.attn.k",
                value: "attention.attn.v",
            },
            attention_output: "attention.attn.o",
            attention_norm: "attention.LayerNorm",
            ..LayersLayout::BERT
        },
        order: NormOrder::Last,
        norm_bias: true,
        dropout: Dropouts::bert(config.hidden_dropout_prob, config.attention_dropout()),
        head: HeadLayout::roberta(Activation::Tanh, config.hidden_dropout_prob, config.initializer_range),
    };
    Ok((config, layout))
}

#[cfg(test)]
mod tests {
    use super::bucket;
    use crate::architectures::stored_buckets;

    #[test]
    fn buckets_of_distances_are_those_of_transformers() {
        assert_eq!((-600..=600).map(bucket).collect::<Vec<_>>(), stored_buckets("/mpnet"));
    }
}
