//! LoHa: a branch beside each layer whose weight is the product, number by number, of two low-rank matrices.

mod adapter;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::TunerConfig;
use super::config_file::{ConfigFile, one_or_many, some_or_many};
use super::lycoris::{self, BRANCH, Lycoris, shared};
use super::options::{EXCLUDED, LAYERS, MODULES_TO_SAVE, MethodOption, OptionKind, PATTERNS, TARGETS, option};
use super::selection::is_default;
use crate::architectures::Architecture;
use crate::builder::Tuner;
use crate::error::Result;
use crate::targets::Targets;

use adapter::Hadamard;

/// LoHa (FedPara, Hyeon-Woo et al. 2022, proposition 1), in the words of PEFT's `LoHaConfig` (`tuners/loha/config.py`), with its
/// defaults.
///
/// A layer `x Wᵀ + b` becomes `x Wᵀ + b + x ΔWᵀ` with `ΔW = alpha / r * (A₁ B₁) ∘ (A₂ B₂)`, A₁ and A₂ `(out, r)` and B₁ and B₂ `(r, in)`
/// trained: of rank up to r², with the numbers of two branches of LoRA's (`tuners/loha/layer.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoHa {
    /// The rank of each of the two products.
    pub r: usize,
    /// The branch is multiplied by `alpha / r`.
    pub alpha: f64,
    /// In training, each of the branch's outputs is left out with this probability, for all tokens; what is left is divided by its share.
    pub rank_dropout: f64,
    /// In training, a layer's whole branch is left out with this probability.
    pub module_dropout: f64,
    /// The linear layers that get a branch.
    pub target_modules: Targets,
    /// Of these, the ones that get none after all.
    #[serde(skip_serializing_if = "is_default")]
    pub exclude_modules: Option<Targets>,
    /// `true`: B₂ zero, so that the branch begins as nothing, the others Kaiming-uniform. `false`: all of them, which serves tests.
    pub init_weights: bool,
    /// Only layers of these numbers get a branch; not with a regular expression as target.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "some_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names before that number, where the first number is not the layer's: `layer`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "one_or_many")]
    pub layers_pattern: Vec<String>,
    /// Ranks of their own, by the end of a module's path or a regular expression for it.
    #[serde(skip_serializing_if = "is_default")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// `alpha` of their own, likewise.
    #[serde(skip_serializing_if = "is_default")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules that are trained whole, by the end of their path, besides the head. They get no branch.
    #[serde(skip_serializing_if = "is_default")]
    pub modules_to_save: Vec<String>,
}

impl Default for LoHa {
    /// PEFT's defaults for BERT: r 8 on query and value.
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            rank_dropout: 0.0,
            module_dropout: 0.0,
            target_modules: Targets::suffixes(["query", "value"]),
            exclude_modules: None,
            init_weights: true,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: Vec::new(),
        }
    }
}

impl LoHa {
    fn shared(&self) -> Lycoris<'_> {
        shared!(self, "LoHa", true)
    }
}

impl TunerConfig for LoHa {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        let begins_as_nothing = self.init_weights;
        self.shared().tuner(move |builder, place| Hadamard::new(builder, place, begins_as_nothing))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        self.shared().sizes()
    }

    fn set_default_layers(&mut self, architecture: Architecture) {
        self.target_modules = architecture.default_targets();
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        1e-3
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn computed_by(&self) -> Vec<(&'static str, String)> {
        self.shared().computed_by()
    }
}

impl ConfigFile for LoHa {
    const PEFT_TYPE: &'static str = "LOHA";
    const REQUIRED: Option<(&'static str, &'static str)> =
        Some(("target_modules", "name the layers that have a branch"));
    const TENSORS: &'static [&'static str] = &[".hada_"];

    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option("r", "r", OptionKind::Value, "The rank of each of the two products [default: 8]"),
            option("init-weights", "init_weights", OptionKind::Value, "Begin as nothing [default: true]"),
        ],
        BRANCH,
        PATTERNS,
        TARGETS,
        EXCLUDED,
        LAYERS,
        MODULES_TO_SAVE,
    ];

    fn peft_defaults() -> Value {
        lycoris::peft_defaults()
    }
}

impl fmt::Display for LoHa {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "LoHa r={}", self.r)
    }
}
