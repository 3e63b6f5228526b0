//! DeBERTa-v2 and v3 (He et al. 2021; He et al. 2023): BERT with disentangled attention, whose scores relate contents to relative
//! positions (transformers' `modeling_deberta_v2.py`).

use ops::{Activation, RelativeRows};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::{Fields, with};
use super::{Config, activation, at_least, at_most, bert, part, unsupported};
use crate::architectures::layout::{
    DisentangledLayout, Dropouts, EmbeddingsLayout, HeadLayout, LayersLayout, Layout, NormOrder, Numbering,
    PositionsLayout, ProjectionNames,
};

#[derive(Deserialize)]
struct Options {
    type_vocab_size: usize,
    relative_attention: bool,
    max_relative_positions: Option<i64>,
    position_buckets: Option<i64>,
    norm_rel_ebd: Option<String>,
    share_att_key: bool,
    pos_att_type: Option<Terms>,
    position_biased_input: bool,
    embedding_size: Option<usize>,
    pooler_hidden_size: Option<usize>,
    attention_head_size: Option<usize>,
    conv_kernel_size: usize,
    cls_dropout: Option<f64>,
    pooler_dropout: f64,
    #[serde(deserialize_with = "activation")]
    pooler_hidden_act: Activation,
}

/// `configuration_deberta_v2.py`, and what `modeling_deberta_v2.py` looks for besides.
pub(super) fn fields() -> Fields {
    let own = json!({
        "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24,
        "intermediate_size": 6144, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
        "relative_attention": false, "max_relative_positions": -1, "position_buckets": -1, "norm_rel_ebd": "none",
        "share_att_key": false, "pos_att_type": null, "position_biased_input": true,
        "embedding_size": null, "pooler_hidden_size": null, "attention_head_size": null, "conv_kernel_size": 0,
        "cls_dropout": null, "pooler_dropout": 0.0, "pooler_hidden_act": "gelu",
    });
    Fields {
        used: with(bert::fields().used, own),
        // Of the convolution and of masked-language modeling.
        without_effect: &["classifier_dropout", "conv_act", "conv_groups", "legacy", "padding_idx"],
        ..bert::fields()
    }
}

/// `"c2p|p2c"` or `["c2p", "p2c"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Terms {
    Joined(String),
    Listed(Vec<String>),
}

impl Terms {
    fn contain(&self, term: &str) -> bool {
        match self {
            Self::Joined(terms) => terms.split('|').any(|part| part.trim().eq_ignore_ascii_case(term)),
            Self::Listed(terms) => terms.iter().any(|part| part == term),
        }
    }
}

/// The position of a distance, the query's position less the key's, before it is counted from the table's middle
/// (`make_log_bucket_position`): up to half of the buckets one for each distance, then ever wider ones, in equal steps of the
/// logarithm up to `longest`, in f32.
fn bucket(distance: isize, buckets: usize, longest: usize) -> isize {
    let middle = buckets / 2;
    let far = distance.unsigned_abs();
    if far <= middle {
        return distance;
    }
    let over = |far: f32| (far / middle as f32).ln();
    let steps = (over(far as f32) / over((longest - 1) as f32) * (middle - 1) as f32).ceil();
    distance.signum() * (steps as isize + middle as isize)
}

/// The rows of the table of relative positions by distance, and half of how many there are.
fn rows(longest_sequence: usize, buckets: Option<usize>, longest: usize) -> (RelativeRows, usize) {
    let half = buckets.unwrap_or(longest);
    let row = |distance: isize| {
        let position = buckets.map_or(distance, |buckets| bucket(distance, buckets, longest));
        (position + half as isize).clamp(0, 2 * half as isize - 1) as usize
    };
    (RelativeRows::new(longest_sequence, row), half)
}

fn positive(number: Option<i64>) -> Option<usize> {
    number.and_then(|number| usize::try_from(number).ok()).filter(|&number| number > 0)
}

/// What attention knows of positions.
fn positions(config: &Config, options: &Options) -> serde_json::Result<PositionsLayout> {
    let meets = |term| options.pos_att_type.as_ref().is_some_and(|terms| terms.contain(term));
    let (to_position, to_content) = (meets("c2p"), meets("p2c"));
    if options.relative_attention != (to_position || to_content) {
        return Err(unsupported("pos_att_type", "other than c2p, p2c or both with relative_attention, none without"));
    }
    Ok(match options.relative_attention {
        false => PositionsLayout::Absolute,
        true => {
            let longest = positive(options.max_relative_positions).unwrap_or(config.max_position_embeddings);
            let buckets = positive(options.position_buckets);
            if let Some(buckets) = buckets {
                // Half of them are each of one distance, and the others reach from there to the longest.
                at_least("position_buckets", buckets, 2)?;
                at_least("max_relative_positions", longest, buckets / 2 + 2)?;
            }
            let (rows, half) = rows(config.max_position_embeddings, buckets, longest);
            let norms = options.norm_rel_ebd.as_deref().unwrap_or_default().to_lowercase();
            let norms = norms.split('|').any(|part| part.trim() == "layer_norm");
            PositionsLayout::Disentangled(DisentangledLayout {
                table: "encoder.rel_embeddings",
                count: 2 * half,
                norm: norms.then_some("encoder.LayerNorm"),
                rows,
                to_position,
                to_content,
                key: (!options.share_att_key).then_some("attention.self.pos_key_proj"),
                query: (!options.share_att_key).then_some("attention.self.pos_query_proj"),
            })
        }
    })
}

pub(super) fn read(json: &Value) -> serde_json::Result<(Config, Layout)> {
    let (config, options): (Config, Options) = (part(json)?, part(json)?);
    at_most("conv_kernel_size", options.conv_kernel_size, 0)?;
    let of_heads = options.attention_head_size.map(|size| size.saturating_mul(config.num_attention_heads));
    for (field, size, expected) in [
        ("embedding_size", options.embedding_size, "another size than hidden_size"),
        ("pooler_hidden_size", options.pooler_hidden_size, "another size than hidden_size"),
        ("attention_head_size", of_heads, "another size than the share of a head in hidden_size"),
    ] {
        if size.is_some_and(|size| size != config.hidden_size) {
            return Err(unsupported(field, expected));
        }
    }
    let positions = positions(&config, &options)?;
    let embeddings = EmbeddingsLayout::bert(config.hidden_size, Numbering::FromZero, options.type_vocab_size);
    let dropout = options.cls_dropout.unwrap_or(config.hidden_dropout_prob);
    let head = HeadLayout::new("pooler.dense", options.pooler_hidden_act, dropout, config.initializer_range);
    let layout = Layout {
        prefix: "deberta",
        bare: &["embeddings.", "encoder."],
        embeddings: EmbeddingsLayout {
            positions: options.position_biased_input.then_some(Numbering::FromZero),
            ..embeddings
        },
        positions,
        layers: LayersLayout {
            projections: ProjectionNames::Separate {
                query: "attention.self.query_proj",
                key: "attention.self.key_proj",
                value: "attention.self.value_proj",
            },
            ..LayersLayout::BERT
        },
        order: NormOrder::Last,
        norm_bias: true,
        dropout: Dropouts::bert(config.hidden_dropout_prob, config.attention_dropout()),
        head: HeadLayout { first_dropout: Some(options.pooler_dropout), ..head },
    };
    Ok((config, layout))
}

#[cfg(test)]
mod tests {
    use super::bucket;
    use crate::architectures::stored_buckets;

    #[test]
    fn buckets_of_distances_are_those_of_transformers() {
        for (buckets, longest) in [(256, 512), (8, 24), (32, 128)] {
            let row =
                |distance| (bucket(distance, buckets, longest) + buckets as isize).clamp(0, 2 * buckets as isize - 1);
            let found: Vec<usize> = (-600..=600).map(|distance| row(distance) as usize).collect();
            assert_eq!(found, stored_buckets(&format!("/deberta/{buckets} {longest}")));
        }
    }
}
