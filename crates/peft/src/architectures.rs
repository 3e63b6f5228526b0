//! The architectures that are known, each a reading of the one encoder.

mod bert;
mod roberta;

use std::fmt;

use ops::Activation;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::layout::Layout;
use crate::method::Targets;

/// An encoder's architecture: `model_type` of its `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// BERT (Devlin et al. 2019); MiniLM, bge and e5 are of it.
    #[default]
    #[serde(rename = "bert")]
    Bert,
    /// RoBERTa (Liu et al. 2019).
    #[serde(rename = "roberta")]
    Roberta,
    /// XLM-R (Conneau et al. 2020): RoBERTa in a hundred languages.
    #[serde(rename = "xlm-roberta")]
    XlmRoberta,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bert, Self::Roberta, Self::XlmRoberta];

    /// `model_type`, as `config.json` says it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    /// The linear layers that LoRA adapts where none are named: PEFT's
    /// `TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING` (`utils/constants.py`).
    pub fn default_targets(self) -> Targets {
        match self {
            Self::Bert | Self::Roberta | Self::XlmRoberta => Targets::suffixes(["query", "value"]),
        }
    }

    /// The sizes and the layout that a `config.json` of this architecture says.
    pub(crate) fn read(self, json: &Value) -> serde_json::Result<(Config, Layout)> {
        match self {
            Self::Bert => bert::read(json),
            Self::Roberta | Self::XlmRoberta => roberta::read(json),
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// The sizes of an encoder, in the words of BERT's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// `model_type`.
    #[serde(default, rename = "model_type")]
    pub architecture: Architecture,
    /// Rows of the table of words.
    pub vocab_size: usize,
    /// Columns of the hidden states.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads of a layer.
    pub num_attention_heads: usize,
    /// Columns within a feed-forward network.
    pub intermediate_size: usize,
    /// The activation within it.
    #[serde(deserialize_with = "activation")]
    pub hidden_act: Activation,
    /// Rows of the table of positions, or the longest sequence of a model without one.
    pub max_position_embeddings: usize,
    /// Dropout on hidden states.
    pub hidden_dropout_prob: f64,
    /// Dropout on attention probabilities; `None`: as on hidden states.
    #[serde(default)]
    pub attention_probs_dropout_prob: Option<f64>,
    /// Dropout before the classifier; `None`: as on hidden states.
    #[serde(default)]
    pub classifier_dropout: Option<f64>,
    /// What is added to a variance before its root is taken.
    pub layer_norm_eps: f64,
    /// The standard deviation of new weights.
    pub initializer_range: f64,
}

impl Config {
    fn attention_dropout(&self) -> f64 {
        self.attention_probs_dropout_prob.unwrap_or(self.hidden_dropout_prob)
    }

    fn head_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }
}

/// An activation by transformers' name for it (`activations.py`, `ACT2FN`).
fn activation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Activation, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Name {
        Gelu,
        #[serde(alias = "gelu_pytorch_tanh")]
        GeluNew,
        Relu,
        Tanh,
    }
    Ok(match Name::deserialize(deserializer)? {
        Name::Gelu => Activation::Gelu,
        Name::GeluNew => Activation::GeluApproximate,
        Name::Relu => Activation::Relu,
        Name::Tanh => Activation::Tanh,
    })
}

/// A part of `config.json` as a type of its own.
fn part<'de, T: Deserialize<'de>>(json: &'de Value) -> serde_json::Result<T> {
    T::deserialize(json)
}
