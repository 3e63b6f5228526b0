//! What the numbers of `config.json` may be. Sizes are limited before anything is made of them, so that no product of several is more than
//! can be counted and no table by distance is larger than a model's files; whether they are those of the tensors is found out afterwards.

use std::fmt;

use serde_json::{Map, Value};

use super::invalid;

/// What a field may say.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Range {
    /// A whole number from the first to the second.
    Whole(i64, i64),
    /// At least 0 and below 1.
    Probability,
    /// A finite number above 0.
    Positive,
    /// A finite number of at least 0.
    NotNegative,
}

/// Widths and tables of a layer. The widest encoders that were published have some thousands.
const WIDTH: i64 = 1 << 20;
/// Rows of the table of words.
const WORDS: i64 = 1 << 24;
/// Tokens of a sequence.
const POSITIONS: i64 = 1 << 20;
/// The same where each distance has a row in a table.
const DISTANCES: i64 = 1 << 16;
/// Layers.
const DEPTH: i64 = 1 << 10;

impl Range {
    /// That of a field. `by_distance`: whether there is a row for each distance between two tokens.
    fn of(field: &str, by_distance: bool) -> Option<Self> {
        let positions = if by_distance { DISTANCES } else { POSITIONS };
        Some(match field {
            "vocab_size" => Self::Whole(1, WORDS),
            "hidden_size" | "dim" | "intermediate_size" | "hidden_dim" | "embedding_size" => Self::Whole(1, WIDTH),
            "num_attention_heads" | "n_heads" | "attention_head_size" | "pooler_hidden_size" => Self::Whole(1, WIDTH),
            "num_hidden_layers" | "n_layers" | "global_attn_every_n_layers" => Self::Whole(1, DEPTH),
            "max_position_embeddings" => Self::Whole(1, positions),
            "local_attention" => Self::Whole(0, POSITIONS),
            "type_vocab_size" | "conv_kernel_size" => Self::Whole(0, WIDTH),
            "pad_token_id" => Self::Whole(0, WORDS),
            // Below 1 there is none.
            "max_relative_positions" | "position_buckets" => Self::Whole(i64::MIN, DISTANCES),
            "relative_attention_num_buckets" => Self::Whole(1, DISTANCES),
            "layer_norm_eps" | "norm_eps" | "global_rope_theta" | "local_rope_theta" => Self::Positive,
            "initializer_range" => Self::NotNegative,
            name if name.ends_with("dropout") || name.ends_with("dropout_prob") => Self::Probability,
            _ => return None,
        })
    }

    fn holds(self, value: &Value) -> bool {
        let number = |is_in: fn(f64) -> bool| value.as_f64().is_some_and(|number| number.is_finite() && is_in(number));
        match self {
            Self::Whole(least, most) => value.as_i64().is_some_and(|number| (least..=most).contains(&number)),
            Self::Probability => number(|number| (0.0..1.0).contains(&number)),
            Self::Positive => number(|number| number > 0.0),
            Self::NotNegative => number(|number| number >= 0.0),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Whole(i64::MIN, most) => write!(f, "a whole number of at most {most}"),
            Self::Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Probability => f.write_str("a number of at least 0 and below 1"),
            Self::Positive => f.write_str("a number above 0"),
            Self::NotNegative => f.write_str("a number of at least 0"),
        }
    }
}

/// Fails at the first field that is used and whose number no encoder can have. What is no number is read, or not, by the field's own type.
pub(super) fn check(fields: &Value, by_distance: bool) -> serde_json::Result<()> {
    for (field, value) in fields.as_object().into_iter().flat_map(Map::iter).filter(|(_, value)| value.is_number()) {
        if let Some(range) = Range::of(field, by_distance).filter(|range| !range.holds(value)) {
            return Err(invalid(format!("{field} {value}, expected {range}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use serde_json::json;

    use super::*;
    use crate::architectures::{Architecture, FieldRole};

    #[test]
    fn every_number_that_is_used_has_a_range_and_its_default_is_in_it() {
        for architecture in Architecture::ALL {
            let fields = architecture.fields().used;
            check(&fields, true).unwrap();
            for (field, value) in fields.as_object().unwrap().iter().filter(|(_, value)| value.is_number()) {
                assert!(Range::of(field, true).is_some(), "{architecture}: {field} {value}");
            }
        }
    }

    #[test]
    fn a_number_out_of_its_range_is_refused_with_field_value_and_range_in_every_architecture() {
        for architecture in Architecture::ALL {
            let by_distance = [Architecture::Mpnet, Architecture::DebertaV2].contains(&architecture);
            for (field, _) in
                architecture.config_fields().into_iter().filter(|(_, role)| matches!(role, FieldRole::Used(_)))
            {
                let Some(range) = Range::of(&field, by_distance) else { continue };
                let wrong = match range {
                    Range::Whole(..) => vec![json!(i64::MAX), json!(u64::MAX), json!(1.5)],
                    Range::Probability => vec![json!(1), json!(-0.1), json!(5.0)],
                    Range::Positive => vec![json!(0.0), json!(-1)],
                    Range::NotNegative => vec![json!(-0.02)],
                };
                for value in wrong {
                    let error = architecture.read(&json!({ field.as_str(): value })).unwrap_err().to_string();
                    let is_told =
                        error.contains(&format!("{field} {value}, expected")) && error.contains(&range.to_string());
                    assert!(is_told, "{architecture}: {error}");
                }
            }
        }
    }
}
