//! LoKr: a branch beside each layer whose weight is the Kronecker product of two small matrices.

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
use crate::error::{Error, Result};
use crate::targets::Targets;

use adapter::Kronecker;
pub use adapter::{InitLoKrWeights, LycorisInit};

/// LoKr (Yeh et al. 2024, "LyCORIS", section 3.2), in the words of PEFT's `LoKrConfig` (`tuners/lokr/config.py`), with its defaults.
///
/// A layer `x Wᵀ + b` becomes `x Wᵀ + b + x ΔWᵀ` with `ΔW = alpha / r * C ⊗ D`, C `(out₁, in₁)` and D `(out₂, in₂)` trained, where
/// `out = out₁ out₂` and `in = in₁ in₂`. D is a product of rank r where that is less than half its longer side, and with
/// `decompose_both` C too (`tuners/lokr/layer.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoKr {
    /// The rank of D, where it is a product.
    pub r: usize,
    /// The branch is multiplied by `alpha / r`.
    pub alpha: f64,
    /// In training, each of the branch's outputs is left out with this probability, for all tokens.
    pub rank_dropout: f64,
    /// Whether what `rank_dropout` leaves is divided by its share.
    pub rank_dropout_scale: bool,
    /// In training, a layer's whole branch is left out with this probability.
    pub module_dropout: f64,
    /// Whether C may be a product too.
    pub decompose_both: bool,
    /// out₁ and in₁, where it divides the layer's width; -1: such that both sides are about as long.
    pub decompose_factor: i64,
    /// The linear layers that get a branch.
    pub target_modules: Targets,
    /// Of these, the ones that get none after all.
    pub exclude_modules: Option<Targets>,
    /// How C and D start.
    pub init_weights: InitLoKrWeights,
    /// Only layers of these numbers get a branch; not with a regular expression as target.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "some_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names before that number, where the first number is not the layer's: `layer`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "one_or_many")]
    pub layers_pattern: Vec<String>,
    /// Ranks of their own, by the end of a module's path or a regular expression for it.
    pub rank_pattern: BTreeMap<String, usize>,
    /// `alpha` of their own, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules that are trained whole, by the end of their path, besides the head. They get no branch.
    pub modules_to_save: Vec<String>,
}

impl Default for LoKr {
    /// PEFT's defaults for BERT: r 8 on query and value.
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            rank_dropout: 0.0,
            rank_dropout_scale: false,
            module_dropout: 0.0,
            decompose_both: false,
            decompose_factor: -1,
            target_modules: Targets::suffixes(["query", "value"]),
            exclude_modules: None,
            init_weights: InitLoKrWeights::Switch(true),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: Vec::new(),
        }
    }
}

impl LoKr {
    fn shared(&self) -> Lycoris<'_> {
        shared!(self, "LoKr", self.rank_dropout_scale)
    }
}

impl TunerConfig for LoKr {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        if self.decompose_factor != -1 && self.decompose_factor < 1 {
            let (field, found) = ("decompose_factor", self.decompose_factor.to_string());
            return Err(Error::Adapter { method: "LoKr", field, found, expected: "-1, or at least 1" });
        }
        let lokr = self.clone();
        self.shared().tuner(move |builder, place| Kronecker::new(builder, place, &lokr))
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

impl ConfigFile for LoKr {
    const PEFT_TYPE: &'static str = "LOKR";
    const REQUIRED: Option<(&'static str, &'static str)> =
        Some(("target_modules", "name the layers that have a branch"));
    const TENSORS: &'static [&'static str] = &[".lokr_"];

    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option("r", "r", OptionKind::Value, "The rank of a factor that is a product [default: 8]"),
            option("decompose-both", "decompose_both", OptionKind::Switch, "Let the first factor be a product too"),
            option("decompose-factor", "decompose_factor", OptionKind::Value, "The first factor's sides [default: -1]"),
            option("rank-dropout-scale", "rank_dropout_scale", OptionKind::Switch, "Rescale what rank-dropout leaves"),
            option("init-weights", "init_weights", OptionKind::Value, "true, false or lycoris [default: true]"),
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

impl fmt::Display for LoKr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "LoKr r={}", self.r)
    }
}
