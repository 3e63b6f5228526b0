//! The fields of `config.json`: which of them are used, which have no effect here, and which may say one thing alone.
//!
//! Each architecture lists its own, this file those of every configuration. A field that is in no list is none of transformers' class,
//! which passes over it; so does this crate, and says so ([`Remark::UnknownField`](crate::Remark::UnknownField)).

use serde_json::{Map, Value, json};

use super::Architecture;

/// What becomes of a field of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldRole {
    /// It changes what is computed. This is transformers' default where a file lacks it.
    Used(Value),
    /// It changes nothing that a classifier computes here.
    WithoutEffect,
    /// It would change what is computed, in a way that this crate does not do: only this value is taken. Null is as absent.
    Only(Value),
}

/// The fields of an architecture's configuration.
pub(super) struct Fields {
    /// With the defaults of transformers' class.
    pub used: Value,
    pub without_effect: &'static [&'static str],
    /// With the one value that is supported.
    pub only: Value,
}

/// Fields of every configuration that change nothing that a classifier computes.
const WITHOUT_EFFECT: &[&str] = &[
    // Whose they are, and what they were written by.
    "_name_or_path",
    "_commit_hash",
    "transformers_version",
    "custom_pipelines",
    "finetuning_task",
    "task_specific_params",
    "tokenizer_class",
    // How it is computed, not what.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "attn_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "gradient_checkpointing",
    "tf_legacy_loss",
    "torch_dtype",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    // What is returned besides.
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "return_dict",
    // Of the layers of other tasks, and of generation.
    "bad_words_ids",
    "begin_suppress_tokens",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "top_k",
    "top_p",
    "typical_p",
    // Tokens by their ids, which a tokenizer puts; padding is masked. RoBERTa's positions are an exception.
    "bos_token_id",
    "eos_token_id",
    "mask_token_id",
    "pad_token_id",
    "sep_token_id",
    // Of Google's first configurations; no class reads them.
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
];

/// Fields of every configuration that are used beside the sizes: for the architecture, and for the classifier's labels and pooling.
const OF_EVERY_CLASS: &[&str] = &[
    "architectures",
    "classifier_pooling",
    "id2label",
    "label2id",
    "model_type",
    "num_labels",
    "_num_labels",
    "problem_type",
];

/// Fields of every configuration that may say one thing alone.
fn only() -> Value {
    json!({
        "add_cross_attention": false,
        "auto_map": null,
        "is_decoder": false,
        "is_encoder_decoder": false,
        "position_embedding_type": "absolute",
        "pruned_heads": {},
        "quantization_config": null,
    })
}

impl Fields {
    /// Every field with its role.
    pub(super) fn roles(&self) -> Vec<(String, FieldRole)> {
        let used = entries(&self.used).map(|(name, value)| (name.clone(), FieldRole::Used(value.clone())));
        let of_every_class = OF_EVERY_CLASS.iter().map(|name| (name.to_string(), FieldRole::Used(Value::Null)));
        let without = self.without_effect.iter().chain(WITHOUT_EFFECT);
        let without = without.map(|name| (name.to_string(), FieldRole::WithoutEffect));
        let common = only();
        let only = entries(&self.only).chain(entries(&common));
        let only = only.map(|(name, value)| (name.clone(), FieldRole::Only(value.clone())));
        let mut roles: Vec<(String, FieldRole)> = Vec::new();
        // What an architecture says of a field goes before what holds for all.
        for (name, role) in used.chain(of_every_class).chain(only).chain(without) {
            if !roles.iter().any(|(other, _)| *other == name) {
                roles.push((name, role));
            }
        }
        roles
    }

    /// The fields that are used, those that the file lacks with transformers' defaults; or the first one that is not supported.
    pub(super) fn complete(&self, file: &Map<String, Value>) -> serde_json::Result<Value> {
        for (field, role) in self.roles() {
            if let (FieldRole::Only(supported), Some(found)) = (role, file.get(&field)) {
                check_only(&field, &supported, found)?;
            }
        }
        let mut fields = self.used.as_object().cloned().unwrap_or_default();
        for (field, default) in &mut fields {
            if let Some(found) = file.get(field) {
                *default = found.clone();
            }
        }
        Ok(Value::Object(fields))
    }
}

/// Fails where a field that may say one thing alone says another.
fn check_only(field: &str, supported: &Value, found: &Value) -> serde_json::Result<()> {
    // Lists and objects without a member say nothing: no code of its own, no head that was pruned.
    let says_nothing = |value: &Value| {
        value.is_null() || value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
    };
    if found == supported || says_nothing(found) || (field == "auto_map" && names_no_model(found)) {
        return Ok(());
    }
    let expected = if says_nothing(supported) { "no such field".into() } else { format!("{supported} alone") };
    Err(super::invalid(format!("{field} {found}, which is not supported: expected {expected}")))
}

/// Whether `auto_map` names Python code of a tokenizer alone, and none that computes.
fn names_no_model(auto_map: &Value) -> bool {
    let computes = |name: &String| name == "AutoConfig" || name.starts_with("AutoModel");
    auto_map.as_object().is_some_and(|code| !code.keys().any(computes))
}

/// Fields with others in their place or beside them.
pub(super) fn with(fields: Value, others: Value) -> Value {
    let mut fields = fields.as_object().cloned().unwrap_or_default();
    fields.extend(others.as_object().cloned().unwrap_or_default());
    Value::Object(fields)
}

fn entries(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

impl Architecture {
    /// The fields of `config.json`, each with what becomes of it: those of the architecture's own and of every configuration.
    pub fn config_fields(self) -> Vec<(String, FieldRole)> {
        self.fields().roles()
    }
}
