//! Prefix tuning.

use ops::Activation;
use serde::{Deserialize, Serialize};

use super::{PromptEncoder, at_least_one};
use crate::architectures::Config;
use crate::error::Result;
use crate::parameters::{Builder, Start};

pub(super) const NAME: &str = "prefix tuning";

/// Prefix tuning (Li and Liang 2021, section 4.2), in the words of PEFT's `PrefixTuningConfig` (`tuners/prefix_tuning/config.py`):
/// in each layer, trained keys and values stand before those of a sequence's tokens, `softmax(q [P_k; K]ᵀ / sqrt(head_dim)) [P_v; V]`.
/// All sequences have the same. The encoder's weights stay as they are.
///
/// The trained table is `(num_virtual_tokens, layers * 2 * hidden)`: for each layer a key and a value. PEFT trains BERT, RoBERTa and
/// ELECTRA so; its other encoders have no place for the keys (`past_key_values`), and are here what the formula says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixTuning {
    /// How many keys and values each layer gets.
    pub num_virtual_tokens: usize,
    /// Whether a network makes keys and values of a table `(num_virtual_tokens, hidden)`: a linear layer, tanh and a second
    /// linear layer (section 4.3; `tuners/prefix_tuning/model.py`).
    pub prefix_projection: bool,
    /// The width between its two layers; `None`: the hidden size, as in PEFT (`utils/other.py`, `_prepare_prompt_learning_config`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_hidden_size: Option<usize>,
    /// How keys and values start; `None`: from `N(0, 1)`, or what the network makes of such a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_weights: Option<PrefixInitWeights>,
    /// Modules that are trained whole, by the end of their path, besides the head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Whether the keys and values stand without the network that made them: files hold no other.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inference_mode: bool,
}

/// How prefix tuning's keys and values may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixInitWeights {
    /// As zeros.
    Zero,
}

impl Default for PrefixTuning {
    /// 20 virtual tokens, without a network; PEFT has no default for their number.
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prefix_projection: false,
            encoder_hidden_size: None,
            init_weights: None,
            modules_to_save: Vec::new(),
            inference_mode: false,
        }
    }
}

impl PrefixTuning {
    pub(crate) fn check(&self) -> Result<()> {
        at_least_one(NAME, "num_virtual_tokens", self.num_virtual_tokens)?;
        match self.encoder_hidden_size {
            Some(width) => at_least_one(NAME, "encoder_hidden_size", width),
            None => Ok(()),
        }
    }

    /// What makes the keys and values of all layers, `(num_virtual_tokens, layers * 2 * hidden)`.
    pub(crate) fn build(&self, builder: &mut Builder, config: &Config) -> Result<PromptEncoder> {
        let (rows, hidden) = (self.num_virtual_tokens, config.hidden_size);
        let columns = config.num_hidden_layers * 2 * hidden;
        let is_zero = self.init_weights == Some(PrefixInitWeights::Zero) || self.inference_mode;
        if !self.prefix_projection || self.inference_mode {
            let start = if is_zero { Start::Zeros } else { Start::Normal { standard_deviation: 1.0 } };
            return PromptEncoder::table(builder, rows, columns, start);
        }
        let table = PromptEncoder::table(builder, rows, hidden, Start::Normal { standard_deviation: 1.0 })?;
        let widths = [self.encoder_hidden_size.unwrap_or(hidden), columns];
        table.under(builder, "transform", &widths, Activation::Tanh, is_zero)
    }
}
