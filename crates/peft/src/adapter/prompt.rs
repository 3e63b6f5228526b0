//! Prompt learning in `adapter_config.json`.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::architectures::Config;
use crate::method::{Method, PTuning, PrefixTuning, PromptTuning, PromptTuningInit, VirtualTokens};

type Fields = Map<String, Value>;

/// Fields of every method of prompt learning.
pub(super) const COMMON: [&str; 5] =
    ["num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"];
/// Those of prefix tuning.
pub(super) const PREFIX_TUNING: [&str; 3] = ["prefix_projection", "encoder_hidden_size", "init_weights"];
/// Those of prompt tuning. The text and its tokenizer say how the virtual tokens started, which is past.
pub(super) const PROMPT_TUNING: [&str; 4] =
    ["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"];
/// Those of P-tuning.
pub(super) const P_TUNING: [&str; 4] =
    ["encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"];

/// The sizes of the base model, which the configurations of prompt learning hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSizes {
    /// The width of virtual tokens: that of the embeddings, or of the hidden states in prefix tuning.
    pub token_dim: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads of a layer.
    pub num_attention_heads: usize,
}

impl PromptSizes {
    /// Those of a model whose method is one of prompt learning. `width` is that of its embeddings.
    pub(super) fn of(method: &Method, config: &Config, width: usize) -> Option<Self> {
        let token_dim = match VirtualTokens::of(method)? {
            VirtualTokens::Prefix(_) => config.hidden_size,
            VirtualTokens::Prompt(_) | VirtualTokens::PTuning(_) => width,
        };
        let (num_layers, num_attention_heads) = (config.num_hidden_layers, config.num_attention_heads);
        Some(Self { token_dim, num_layers, num_attention_heads })
    }

    pub(super) fn read(fields: &Fields) -> Result<Option<Self>, String> {
        let size = |field: &str| value::<usize>(fields, field);
        if let Some(submodules) = size("num_transformer_submodules")?.filter(|&submodules| submodules != 1) {
            return Err(format!("num_transformer_submodules {submodules}; an encoder has 1"));
        }
        let sizes = size("token_dim")?.zip(size("num_layers")?).zip(size("num_attention_heads")?);
        Ok(sizes.map(|((token_dim, num_layers), num_attention_heads)| Self {
            token_dim,
            num_layers,
            num_attention_heads,
        }))
    }

    fn write(self, fields: &mut Value) {
        fields["token_dim"] = json!(self.token_dim);
        fields["num_layers"] = json!(self.num_layers);
        fields["num_attention_heads"] = json!(self.num_attention_heads);
        fields["num_transformer_submodules"] = json!(1);
    }
}

/// A field's value, or nothing where it is not there or null.
fn value<T: DeserializeOwned>(fields: &Fields, field: &str) -> Result<Option<T>, String> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(found) => {
            serde_json::from_value(found.clone()).map(Some).map_err(|error| format!("{field} {found}: {error}"))
        }
    }
}

fn virtual_tokens(fields: &Fields) -> Result<usize, String> {
    value(fields, "num_virtual_tokens")?.ok_or_else(|| "no num_virtual_tokens; say how many there are".into())
}

fn text(fields: &Fields, field: &str) -> Result<String, String> {
    value(fields, field)?.ok_or_else(|| format!("no {field}, with prompt_tuning_init TEXT"))
}

pub(super) fn prefix_tuning(fields: &Fields, saved: Vec<String>) -> Result<PrefixTuning, String> {
    let prefix = PrefixTuning {
        num_virtual_tokens: virtual_tokens(fields)?,
        prefix_projection: value(fields, "prefix_projection")?.unwrap_or_default(),
        encoder_hidden_size: value(fields, "encoder_hidden_size")?,
        init_weights: value(fields, "init_weights")?,
        modules_to_save: saved,
        inference_mode: true,
    };
    prefix.check().map_err(|error| error.to_string())?;
    Ok(prefix)
}

pub(super) fn prompt_tuning(fields: &Fields, saved: Vec<String>) -> Result<PromptTuning, String> {
    let init = value::<String>(fields, "prompt_tuning_init")?.unwrap_or_else(|| "RANDOM".into());
    let prompt = PromptTuning {
        num_virtual_tokens: virtual_tokens(fields)?,
        prompt_tuning_init: match init.as_str() {
            "RANDOM" => PromptTuningInit::Random,
            "SAMPLE_VOCAB" => PromptTuningInit::SampleVocab,
            "TEXT" => PromptTuningInit::Text {
                prompt_tuning_init_text: text(fields, "prompt_tuning_init_text")?,
                tokenizer_name_or_path: text(fields, "tokenizer_name_or_path")?,
                token_ids: Vec::new(),
            },
            other => return Err(format!("prompt_tuning_init {other:?}; RANDOM, SAMPLE_VOCAB and TEXT are read")),
        },
        modules_to_save: saved,
        inference_mode: true,
    };
    prompt.check().map_err(|error| error.to_string())?;
    Ok(prompt)
}

pub(super) fn p_tuning(fields: &Fields, saved: Vec<String>) -> Result<PTuning, String> {
    let default = PTuning::default();
    let prompt = PTuning {
        num_virtual_tokens: virtual_tokens(fields)?,
        encoder_reparameterization_type: value(fields, "encoder_reparameterization_type")?.unwrap_or_default(),
        encoder_hidden_size: value(fields, "encoder_hidden_size")?,
        encoder_num_layers: value(fields, "encoder_num_layers")?.unwrap_or(default.encoder_num_layers),
        encoder_dropout: value(fields, "encoder_dropout")?.unwrap_or(default.encoder_dropout),
        modules_to_save: saved,
        inference_mode: true,
    };
    prompt.check().map_err(|error| error.to_string())?;
    Ok(prompt)
}

/// A method's own fields, and those of the base model's sizes; its modules to save.
pub(super) fn write(prompt: &VirtualTokens, sizes: Option<PromptSizes>, fields: &mut Value) -> Vec<String> {
    fields["num_virtual_tokens"] = json!(prompt.count());
    if let Some(sizes) = sizes {
        sizes.write(fields);
    }
    let width = sizes.map(|sizes| sizes.token_dim);
    match prompt {
        VirtualTokens::Prefix(prefix) => {
            fields["prefix_projection"] = json!(prefix.prefix_projection);
            fields["encoder_hidden_size"] = json!(prefix.encoder_hidden_size.or(width));
            fields["init_weights"] = json!(prefix.init_weights);
        }
        VirtualTokens::Prompt(prompt) => {
            for field in ["prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"] {
                fields[field] = Value::Null;
            }
            fields["prompt_tuning_init"] = match &prompt.prompt_tuning_init {
                PromptTuningInit::Random => json!("RANDOM"),
                PromptTuningInit::SampleVocab => json!("SAMPLE_VOCAB"),
                PromptTuningInit::Text { prompt_tuning_init_text, tokenizer_name_or_path, .. } => {
                    fields["prompt_tuning_init_text"] = json!(prompt_tuning_init_text);
                    fields["tokenizer_name_or_path"] = json!(tokenizer_name_or_path);
                    json!("TEXT")
                }
            };
        }
        VirtualTokens::PTuning(prompt) => {
            fields["encoder_reparameterization_type"] = json!(prompt.encoder_reparameterization_type);
            fields["encoder_hidden_size"] = json!(prompt.encoder_hidden_size.or(width));
            fields["encoder_num_layers"] = json!(prompt.encoder_num_layers);
            fields["encoder_dropout"] = json!(prompt.encoder_dropout);
        }
    }
    prompt.modules_to_save().to_vec()
}
