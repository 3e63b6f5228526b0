//! Prefix tuning: trained keys and values stand before those of every layer's tokens.

use std::fmt;
use std::sync::Arc;

use ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::TunerConfig;
use super::config_file::{ConfigFile, Fields, PromptSizes};
use super::modules_to_save;
use super::options::{MODULES_TO_SAVE, MethodOption, OptionKind, VIRTUAL_TOKENS, option};
use super::virtual_tokens::{SIZES, at_least_one, table, with_network};
use crate::architectures::Config;
use crate::builder::{Builder, Tuner};
use crate::error::Result;
use crate::layers::VirtualTokens;
use crate::parameters::{Initializer, Modules};

const NAME: &str = "prefix tuning";

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
    fn check(&self) -> Result<()> {
        at_least_one(NAME, "num_virtual_tokens", self.num_virtual_tokens)?;
        match self.encoder_hidden_size {
            Some(width) => at_least_one(NAME, "encoder_hidden_size", width),
            None => Ok(()),
        }
    }

    /// What makes the keys and values of all layers, `(num_virtual_tokens, layers * 2 * hidden)`.
    fn build(&self, builder: &mut Builder, config: &Config) -> Result<VirtualTokens> {
        let (rows, hidden) = (self.num_virtual_tokens, config.hidden_size);
        let columns = config.num_hidden_layers * 2 * hidden;
        let is_zero = self.init_weights == Some(PrefixInitWeights::Zero) || self.inference_mode;
        if !self.prefix_projection || self.inference_mode {
            let initializer =
                if is_zero { Initializer::Zeros } else { Initializer::Normal { standard_deviation: 1.0 } };
            return table(builder, rows, columns, initializer);
        }
        let table = table(builder, rows, hidden, Initializer::Normal { standard_deviation: 1.0 })?;
        let widths = [self.encoder_hidden_size.unwrap_or(hidden), columns];
        with_network(table, builder, "transform", &widths, Activation::Tanh, is_zero)
    }
}

impl Tuner for PrefixTuning {
    fn prefix(&self, builder: &mut Builder, config: &Config) -> Result<Option<VirtualTokens>> {
        self.build(builder, config).map(Some)
    }

    fn check_targets(&self, modules: &Modules) -> Result<()> {
        modules_to_save::check(NAME, &self.modules_to_save, &modules.all)
    }
}

impl TunerConfig for PrefixTuning {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        Ok(Arc::new(self.clone()))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let width = self.encoder_hidden_size.map(|width| ("encoder_hidden_size", width));
        [("num_virtual_tokens", self.num_virtual_tokens)].into_iter().chain(width).collect()
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        if self.prefix_projection { 1e-3 } else { 1e-2 }
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn token_dim(&self, config: &Config, _width: usize) -> usize {
        config.hidden_size
    }

    fn set_inference_mode(&mut self) {
        self.inference_mode = true;
    }

    /// A file's virtual tokens do not tell the network that made them.
    fn computed_by(&self) -> Vec<(&'static str, String)> {
        vec![("inference_mode", (!self.prefix_projection || self.inference_mode).to_string())]
    }
}

impl ConfigFile for PrefixTuning {
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";
    const REQUIRED: Option<(&'static str, &'static str)> = Some(("num_virtual_tokens", "say how many there are"));
    const WITHOUT_EFFECT: &'static [&'static [&'static str]] = &[&SIZES];
    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option(
                "prefix-projection",
                "prefix_projection",
                OptionKind::Switch,
                "Make the keys and values by a network of two layers",
            ),
            option(
                "encoder-hidden-size",
                "encoder_hidden_size",
                OptionKind::Value,
                "The width within the network [default: that of what it is given]",
            ),
            option(
                "init-weights",
                "init_weights",
                OptionKind::Value,
                "How keys and values start: zero [default: random]",
            ),
        ],
        VIRTUAL_TOKENS,
        MODULES_TO_SAVE,
    ];

    fn peft_defaults() -> Value {
        json!({ "init_weights": null })
    }

    fn finish(&self, fields: &mut Fields, sizes: Option<PromptSizes>) {
        let width = sizes.map(|sizes| sizes.token_dim);
        fields.insert("encoder_hidden_size".into(), json!(self.encoder_hidden_size.or(width)));
    }
}

impl fmt::Display for PrefixTuning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let projected = if self.prefix_projection { ", projected" } else { "" };
        write!(f, "Prefix tuning n={}{projected}", self.num_virtual_tokens)
    }
}
