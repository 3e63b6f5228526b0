//! Prompt tuning.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{PromptEncoder, at_least_one};
use crate::error::{Error, Result};
use crate::parameters::{Builder, Start};

pub(super) const NAME: &str = "prompt tuning";

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
    pub(crate) fn check(&self) -> Result<()> {
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
    pub(crate) fn build(&self, builder: &mut Builder, words: &Tensor) -> Result<PromptEncoder> {
        let (vocabulary, width) = words.dims2()?;
        let rows = self.num_virtual_tokens;
        let embeddings = |ids: Vec<u32>| -> Result<Tensor> {
            Ok(words.detach().index_select(&Tensor::from_vec(ids, rows, words.device())?, 0)?)
        };
        match &self.prompt_tuning_init {
            _ if self.inference_mode => PromptEncoder::table(builder, rows, width, Start::Zeros),
            PromptTuningInit::Random => {
                PromptEncoder::table(builder, rows, width, Start::Normal { standard_deviation: 1.0 })
            }
            PromptTuningInit::SampleVocab => PromptEncoder::table_from(builder, |builder, path| {
                embeddings(builder.random_ids(path, vocabulary, rows))
            }),
            PromptTuningInit::Text { token_ids, .. } => {
                if let Some(id) = token_ids.iter().find(|&&id| id as usize >= vocabulary) {
                    let (field, found) = ("token_ids", id.to_string());
                    let expected = "ids of the model's own tokenizer, below its vocab_size";
                    return Err(Error::Adapter { method: NAME, field, found, expected });
                }
                let ids = token_ids.iter().copied().cycle().take(rows).collect();
                PromptEncoder::table_from(builder, |_, _| embeddings(ids))
            }
        }
    }
}
