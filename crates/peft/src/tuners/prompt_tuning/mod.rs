//! Prompt tuning: trained vectors stand before the embeddings of a sequence's words.

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::TunerConfig;
use super::config_file::{ConfigFile, Fields, PromptSizes};
use super::modules_to_save;
use super::options::{MODULES_TO_SAVE, MethodOption, OptionKind, VIRTUAL_TOKENS, option};
use super::virtual_tokens::{SIZES, at_least_one, table, table_from};
use crate::builder::{Builder, Tuner};
use crate::error::{ConfigError, Error, Result};
use crate::layers::VirtualTokens;
use crate::parameters::{Initializer, Modules};

const NAME: &str = "prompt tuning";

/// Prompt tuning (Lester et al. 2021, section 2), in the words of PEFT's `PromptTuningConfig` (`tuners/prompt_tuning/config.py`):
/// trained vectors `(num_virtual_tokens, width)` stand before the embeddings of a sequence's words. Positions and token types are
/// added to both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptTuning {
    /// How many vectors.
    pub num_virtual_tokens: usize,
    /// How they start.
    pub prompt_tuning_init: PromptTuningInit,
    /// Modules that are trained whole, by the end of their path, besides the head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Whether the vectors are those of a file, and need no start.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inference_mode: bool,
}

/// How a prompt starts (PEFT's `prompt_tuning_init`; `tuners/prompt_tuning/model.py`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptTuningInit {
    /// From `N(0, 1)`.
    #[default]
    Random,
    /// As the embeddings of random words of the vocabulary.
    SampleVocab,
    /// As the embeddings of a text's tokens, from the first again where they are fewer than the virtual tokens.
    Text {
        /// The text.
        prompt_tuning_init_text: String,
        /// The tokenizer that cuts it, which PEFT wants to know.
        tokenizer_name_or_path: String,
        /// The text's tokens, special ones among them, as vocabulary ids.
        #[serde(default)]
        token_ids: Vec<u32>,
    },
}

impl Default for PromptTuning {
    /// 20 virtual tokens; PEFT has no default for their number.
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prompt_tuning_init: PromptTuningInit::default(),
            modules_to_save: Vec::new(),
            inference_mode: false,
        }
    }
}

impl PromptTuning {
    fn check(&self) -> Result<()> {
        at_least_one(NAME, "num_virtual_tokens", self.num_virtual_tokens)?;
        match &self.prompt_tuning_init {
            PromptTuningInit::Text { token_ids, .. } if token_ids.is_empty() && !self.inference_mode => {
                let (field, found) = ("token_ids", "empty".into());
                let expected = "the ids of the text's tokens, with prompt_tuning_init TEXT";
                Err(Error::Adapter { method: NAME, field, found, expected })
            }
            _ => Ok(()),
        }
    }

    /// The vectors, as wide as the table of words.
    fn build(&self, builder: &mut Builder, words: &Tensor) -> Result<VirtualTokens> {
        let (vocabulary, width) = words.dims2()?;
        let rows = self.num_virtual_tokens;
        let embeddings = |ids: Vec<u32>| -> Result<Tensor> {
            Ok(words.detach().index_select(&Tensor::from_vec(ids, rows, words.device())?, 0)?)
        };
        match &self.prompt_tuning_init {
            _ if self.inference_mode => table(builder, rows, width, Initializer::Zeros),
            PromptTuningInit::Random => table(builder, rows, width, Initializer::Normal { standard_deviation: 1.0 }),
            PromptTuningInit::SampleVocab => table_from(builder, [rows, width], |builder, path| {
                embeddings(builder.random_ids(path, vocabulary, rows))
            }),
            PromptTuningInit::Text { token_ids, .. } => {
                if let Some(id) = token_ids.iter().find(|&&id| id as usize >= vocabulary) {
                    let (field, found) = ("token_ids", id.to_string());
                    let expected = "ids of the model's own tokenizer, below its vocab_size";
                    return Err(Error::Adapter { method: NAME, field, found, expected });
                }
                let ids = || token_ids.iter().copied().cycle().take(rows).collect();
                table_from(builder, [rows, width], |_, _| embeddings(ids()))
            }
        }
    }
}

impl Tuner for PromptTuning {
    fn prompt(&self, builder: &mut Builder, words: &Tensor) -> Result<Option<VirtualTokens>> {
        self.build(builder, words).map(Some)
    }

    fn check_targets(&self, modules: &Modules) -> Result<()> {
        modules_to_save::check(NAME, &self.modules_to_save, &modules.all)
    }
}

impl TunerConfig for PromptTuning {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        Ok(Arc::new(self.clone()))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("num_virtual_tokens", self.num_virtual_tokens)]
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        1e-2
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn text_to_tokenize(&self) -> Option<&str> {
        match &self.prompt_tuning_init {
            PromptTuningInit::Text { prompt_tuning_init_text, token_ids, .. } if token_ids.is_empty() => {
                Some(prompt_tuning_init_text)
            }
            _ => None,
        }
    }

    fn set_tokens(&mut self, tokenizer: &str, ids: Vec<u32>) {
        if let PromptTuningInit::Text { tokenizer_name_or_path, token_ids, .. } = &mut self.prompt_tuning_init {
            *tokenizer_name_or_path = tokenizer.into();
            *token_ids = ids;
        }
    }

    fn set_inference_mode(&mut self) {
        self.inference_mode = true;
    }
}

impl ConfigFile for PromptTuning {
    const PEFT_TYPE: &'static str = "PROMPT_TUNING";
    const REQUIRED: Option<(&'static str, &'static str)> = Some(("num_virtual_tokens", "say how many there are"));
    const WITHOUT_EFFECT: &'static [&'static [&'static str]] = &[&SIZES];
    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option(
                "prompt-tuning-init",
                "prompt_tuning_init",
                OptionKind::Value,
                "How the virtual tokens start: RANDOM, SAMPLE_VOCAB (random words) or TEXT [default: RANDOM]",
            ),
            option(
                "prompt-tuning-init-text",
                "prompt_tuning_init_text",
                OptionKind::Text,
                "The text, with prompt_tuning_init TEXT",
            ),
        ],
        VIRTUAL_TOKENS,
        MODULES_TO_SAVE,
    ];

    fn complete(given: &mut Fields) -> std::result::Result<(), ConfigError> {
        let upper = given.get("prompt_tuning_init").and_then(Value::as_str).map(str::to_uppercase);
        let text = given.remove("prompt_tuning_init_text");
        match (upper.as_deref(), text) {
            (Some("TEXT"), Some(text)) => {
                let init = json!({ "TEXT": { "prompt_tuning_init_text": text, "tokenizer_name_or_path": "" } });
                given.insert("prompt_tuning_init".into(), init);
            }
            (Some("TEXT"), None) => {
                let field = "prompt_tuning_init_text";
                return Err(ConfigError::Missing { field, advice: "prompt_tuning_init TEXT needs it" });
            }
            (_, Some(value)) => {
                let (field, advice) = ("prompt_tuning_init_text", "it goes with prompt_tuning_init TEXT");
                return Err(ConfigError::Unused { field, value, advice });
            }
            (Some(upper), None) => _ = given.insert("prompt_tuning_init".into(), json!(upper)),
            (None, None) => {}
        }
        Ok(())
    }

    /// The text and its tokenizer say how the virtual tokens started, which is past.
    fn peft_defaults() -> Value {
        json!({
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": null,
            "tokenizer_name_or_path": null,
            "tokenizer_kwargs": null,
        })
    }

    fn prepare(fields: &mut Fields) -> std::result::Result<(), ConfigError> {
        if fields.get("prompt_tuning_init").is_none_or(|init| init != "TEXT") {
            return Ok(());
        }
        let mut text = Fields::new();
        for field in ["prompt_tuning_init_text", "tokenizer_name_or_path"] {
            match fields.get(field).filter(|value| !value.is_null()) {
                Some(value) => text.insert(field.into(), value.clone()),
                None => return Err(ConfigError::Missing { field, advice: "prompt_tuning_init TEXT needs it" }),
            };
        }
        fields.insert("prompt_tuning_init".into(), json!({ "TEXT": text }));
        Ok(())
    }

    fn finish(&self, fields: &mut Fields, _sizes: Option<PromptSizes>) {
        if let PromptTuningInit::Text { prompt_tuning_init_text, tokenizer_name_or_path, .. } = &self.prompt_tuning_init
        {
            fields.insert("prompt_tuning_init".into(), json!("TEXT"));
            fields.insert("prompt_tuning_init_text".into(), json!(prompt_tuning_init_text));
            fields.insert("tokenizer_name_or_path".into(), json!(tokenizer_name_or_path));
        }
    }
}

impl fmt::Display for PromptTuning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Prompt tuning n={}", self.num_virtual_tokens)
    }
}
