//! P-tuning: a network makes the vectors that stand before the embeddings of a sequence's words.

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::TunerConfig;
use super::config_file::{ConfigFile, Fields, PromptSizes};
use super::modules_to_save;
use super::options::{MODULES_TO_SAVE, MethodOption, OptionKind, VIRTUAL_TOKENS, option};
use super::virtual_tokens::{SIZES, at_least_one, table, with_network};
use crate::builder::{Builder, Tuner};
use crate::error::{Error, Result};
use crate::layers::VirtualTokens;
use crate::parameters::{Initializer, Modules};

const NAME: &str = "P-tuning";

/// P-tuning (Liu et al. 2021, section 3.2), in the words of PEFT's `PromptEncoderConfig` (`tuners/p_tuning/config.py`): the vectors
/// before the embeddings of a sequence's words are made of a table `(num_virtual_tokens, width)` by a network, three linear layers
/// with ReLU between them (`tuners/p_tuning/model.py`, `PromptEncoder`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PTuning {
    /// How many vectors.
    pub num_virtual_tokens: usize,
    /// The kind of network.
    pub encoder_reparameterization_type: Reparameterization,
    /// The width between its layers; `None`: that of the embeddings, as in PEFT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_hidden_size: Option<usize>,
    /// Layers of an LSTM. An MLP has its three.
    pub encoder_num_layers: usize,
    /// Dropout between the layers of an LSTM.
    pub encoder_dropout: f64,
    /// Modules that are trained whole, by the end of their path, besides the head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Whether the vectors stand without the network that made them: files hold no other.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inference_mode: bool,
}

/// The network that makes P-tuning's vectors (PEFT's `encoder_reparameterization_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Reparameterization {
    /// Linear layers with ReLU.
    #[default]
    Mlp,
    /// An LSTM in both directions under two linear layers. Its vectors are read from files; it is not trained here.
    Lstm,
}

impl Default for PTuning {
    /// 20 virtual tokens; PEFT has no default for their number. The rest is PEFT's.
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            encoder_reparameterization_type: Reparameterization::Mlp,
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
            modules_to_save: Vec::new(),
            inference_mode: false,
        }
    }
}

impl PTuning {
    fn check(&self) -> Result<()> {
        at_least_one(NAME, "num_virtual_tokens", self.num_virtual_tokens)?;
        if let Some(width) = self.encoder_hidden_size {
            at_least_one(NAME, "encoder_hidden_size", width)?;
        }
        if self.encoder_reparameterization_type == Reparameterization::Lstm && !self.inference_mode {
            let (field, found) = ("encoder_reparameterization_type", "LSTM".into());
            let expected = "MLP; an LSTM's virtual tokens are read from files, but not trained";
            return Err(Error::Adapter { method: NAME, field, found, expected });
        }
        Ok(())
    }

    /// What makes the vectors, as wide as the table of words.
    fn build(&self, builder: &mut Builder, width: usize) -> Result<VirtualTokens> {
        if self.inference_mode {
            return table(builder, self.num_virtual_tokens, width, Initializer::Zeros);
        }
        let initializer = Initializer::Normal { standard_deviation: 1.0 };
        let table = table(builder, self.num_virtual_tokens, width, initializer)?;
        let inner = self.encoder_hidden_size.unwrap_or(width);
        with_network(table, builder, "mlp_head", &[inner, inner, width], Activation::Relu, false)
    }
}

impl Tuner for PTuning {
    fn prompt(&self, builder: &mut Builder, words: &Tensor) -> Result<Option<VirtualTokens>> {
        self.build(builder, words.dim(1)?).map(Some)
    }

    fn check_targets(&self, modules: &Modules) -> Result<()> {
        modules_to_save::check(NAME, &self.modules_to_save, &modules.all)
    }
}

impl TunerConfig for PTuning {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        Ok(Arc::new(self.clone()))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let width = self.encoder_hidden_size.map(|width| ("encoder_hidden_size", width));
        [("num_virtual_tokens", self.num_virtual_tokens)].into_iter().chain(width).collect()
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

    fn set_inference_mode(&mut self) {
        self.inference_mode = true;
    }

    /// A file's virtual tokens do not tell the network that made them.
    fn computed_by(&self) -> Vec<(&'static str, String)> {
        vec![("inference_mode", self.inference_mode.to_string())]
    }
}

impl ConfigFile for PTuning {
    const PEFT_TYPE: &'static str = "P_TUNING";
    const REQUIRED: Option<(&'static str, &'static str)> = Some(("num_virtual_tokens", "say how many there are"));
    const WITHOUT_EFFECT: &'static [&'static [&'static str]] = &[&SIZES];
    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[option(
            "encoder-hidden-size",
            "encoder_hidden_size",
            OptionKind::Value,
            "The width within the network [default: that of what it is given]",
        )],
        VIRTUAL_TOKENS,
        MODULES_TO_SAVE,
    ];

    fn finish(&self, fields: &mut Fields, sizes: Option<PromptSizes>) {
        let width = sizes.map(|sizes| sizes.token_dim);
        fields.insert("encoder_hidden_size".into(), json!(self.encoder_hidden_size.or(width)));
    }
}

impl fmt::Display for PTuning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "P-tuning n={}", self.num_virtual_tokens)
    }
}
