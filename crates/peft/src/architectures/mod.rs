//! The architectures that are known, each a reading of the one encoder.

mod bert;
mod deberta_v2;
mod distilbert;
mod electra;
mod fields;
pub(crate) mod layout;
mod modernbert;
mod mpnet;
mod ranges;
mod roberta;

use std::fmt;

use ops::Activation;
use serde::de::{DeserializeOwned, Error, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::targets::Targets;
use fields::Fields;
use layout::Layout;

pub use fields::FieldRole;

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
    /// DistilBERT (Sanh et al. 2019).
    #[serde(rename = "distilbert")]
    DistilBert,
    /// ELECTRA (Clark et al. 2020), the discriminator.
    #[serde(rename = "electra")]
    Electra,
    /// MPNet (Song et al. 2020).
    #[serde(rename = "mpnet")]
    Mpnet,
    /// DeBERTa-v2 and v3 (He et al. 2021; He et al. 2023).
    #[serde(rename = "deberta-v2")]
    DebertaV2,
    /// ModernBERT (Warner et al. 2024).
    #[serde(rename = "modernbert")]
    ModernBert,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Bert,
        Self::Roberta,
        Self::XlmRoberta,
        Self::DistilBert,
        Self::Electra,
        Self::Mpnet,
        Self::DebertaV2,
        Self::ModernBert,
    ];

    /// `model_type`, as `config.json` says it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::DistilBert => "distilbert",
            Self::Electra => "electra",
            Self::Mpnet => "mpnet",
            Self::DebertaV2 => "deberta-v2",
            Self::ModernBert => "modernbert",
        }
    }

    /// What the names of transformers' classes begin with, such as `BertForMaskedLM`.
    pub(crate) fn class_stem(self) -> &'static str {
        match self {
            Self::Bert => "Bert",
            Self::Roberta => "Roberta",
            Self::XlmRoberta => "XLMRoberta",
            Self::DistilBert => "DistilBert",
            Self::Electra => "Electra",
            Self::Mpnet => "MPNet",
            Self::DebertaV2 => "DebertaV2",
            Self::ModernBert => "ModernBert",
        }
    }

    /// The linear layers that LoRA adapts where none are named: PEFT's
    /// `TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING` (`utils/constants.py`). PEFT has none for DistilBERT, MPNet and
    /// ModernBERT: here they are the layers of the same part, queries and values.
    pub fn default_targets(self) -> Targets {
        let ModuleNames { query, value, .. } = self.module_names();
        let mut names = vec![query, value];
        names.dedup();
        Targets::suffixes(names)
    }

    /// What the linear layers and the layer norms of a layer are called, by their part in it.
    pub(crate) fn module_names(self) -> ModuleNames {
        let [query, key, value, feed_forward_output] = match self {
            Self::Bert | Self::Roberta | Self::XlmRoberta | Self::Electra => ["query", "key", "value", "output.dense"],
            Self::DistilBert => ["q_lin", "k_lin", "v_lin", "lin2"],
            Self::Mpnet => ["q", "k", "v", "output.dense"],
            Self::DebertaV2 => ["query_proj", "key_proj", "value_proj", "output.dense"],
            // One layer gives keys, values and queries.
            Self::ModernBert => ["Wqkv", "Wqkv", "Wqkv", "mlp.Wo"],
        };
        let layer_norms = match self {
            Self::DistilBert => Targets::suffixes(["LayerNorm", "sa_layer_norm", "output_layer_norm"]),
            Self::ModernBert => Targets::pattern(r"model\..*norm"),
            _ => Targets::suffixes(["LayerNorm"]),
        };
        ModuleNames { query, key, value, feed_forward_output, layer_norms }
    }

    /// Whether a table has a row for each distance between two tokens.
    fn has_table_by_distance(self) -> bool {
        matches!(self, Self::Mpnet | Self::DebertaV2)
    }

    /// The sizes and the layout that a `config.json` of this architecture says.
    pub(crate) fn read(self, json: &Value) -> serde_json::Result<(Config, Layout)> {
        let mut fields: Map<String, Value> = part(json)?;
        for &(alias, name) in self.aliases() {
            use_alias(&mut fields, alias, name)?;
        }
        let fields = self.fields().complete(&fields)?;
        ranges::check(&fields, self.has_table_by_distance())?;
        let (config, layout) = match self {
            Self::Bert => bert::read(&fields),
            Self::Roberta | Self::XlmRoberta => roberta::read(&fields),
            Self::DistilBert => distilbert::read(&fields),
            Self::Electra => electra::read(&fields),
            Self::Mpnet => mpnet::read(&fields),
            Self::DebertaV2 => deberta_v2::read(&fields),
            Self::ModernBert => modernbert::read(&fields),
        }?;
        Ok((Config { architecture: self, ..config }, layout))
    }

    fn fields(self) -> Fields {
        match self {
            Self::Bert => bert::fields(),
            Self::Roberta => roberta::fields(),
            Self::XlmRoberta => roberta::fields_of_xlm(),
            Self::DistilBert => distilbert::fields(),
            Self::Electra => electra::fields(),
            Self::Mpnet => mpnet::fields(),
            Self::DebertaV2 => deberta_v2::fields(),
            Self::ModernBert => modernbert::fields(),
        }
    }

    /// Other names of fields, each with the one that is used.
    pub(crate) fn aliases(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::DistilBert => distilbert::ALIASES,
            _ => &[],
        }
    }
}

/// The ends of the paths of a layer's modules.
pub(crate) struct ModuleNames {
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub feed_forward_output: &'static str,
    pub layer_norms: Targets,
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
    #[serde(skip)]
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

fn invalid(what: String) -> serde_json::Error {
    serde_json::Error::custom(what)
}

fn unsupported(field: &str, what: &str) -> serde_json::Error {
    invalid(format!("{field} with {what}, which is not read"))
}

fn at_least(field: &str, found: usize, least: usize) -> serde_json::Result<()> {
    if found >= least { Ok(()) } else { Err(invalid(format!("{field} {found}, expected at least {least}"))) }
}

fn at_most(field: &str, found: usize, most: usize) -> serde_json::Result<()> {
    if found <= most { Ok(()) } else { Err(invalid(format!("{field} {found}, expected at most {most}"))) }
}

/// Puts a field that stands under another name under its own. Two that say different things are a mistake of the file.
fn use_alias(fields: &mut Map<String, Value>, alias: &str, name: &str) -> serde_json::Result<()> {
    match (fields.remove(alias), fields.get(name)) {
        (Some(value), Some(other)) if value != *other => {
            Err(invalid(format!("{alias} {value} beside {name} {other}, which are two names of one field")))
        }
        (Some(value), None) => {
            fields.insert(name.into(), value);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A part of `config.json` as a type of its own.
fn part<T: DeserializeOwned>(json: &Value) -> serde_json::Result<T> {
    T::deserialize(json).map_err(|error| match culprit::<T>(json, &error.to_string()) {
        Some((field, value)) => invalid(format!("{field} {value}: {error}")),
        None => error,
    })
}

/// The field whose value does not fit: without it the error is another.
fn culprit<'a, T: DeserializeOwned>(json: &'a Value, error: &str) -> Option<(&'a String, &'a Value)> {
    let fields = json.as_object()?;
    fields.iter().find(|(field, _)| {
        let mut others = fields.clone();
        others.remove(*field);
        serde_json::from_value::<T>(Value::Object(others)).map_or_else(|other| other.to_string() != error, |_| true)
    })
}

/// An activation under any of transformers' names for it (`activations.py`).
fn activation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Activation, D::Error> {
    let name = String::deserialize(deserializer)?;
    let name = match name.as_str() {
        "gelu_python" => "gelu",
        "gelu_accurate" | "gelu_fast" => "gelu_new",
        name => name,
    };
    Activation::deserialize(name.into_deserializer())
}

/// The rows that transformers gives the distances from -600 to 600, by a path into `buckets.json`.
#[cfg(test)]
fn stored_buckets(path: &str) -> Vec<usize> {
    let json: Value = serde_json::from_str(include_str!("../../tests/oracle/encoders/buckets.json")).unwrap();
    json.pointer(path).unwrap().as_array().unwrap().iter().map(|row| row.as_u64().unwrap() as usize).collect()
}
