//! The options of LoRA and its variants (rsLoRA, DoRA, PiSSA, OLoRA, EVA): ranks, layers, initial values.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::eva::EvaConfig;
use crate::error::{Error, Result};
use crate::targets::Targets;
use crate::tuners::config::Bias;
use crate::tuners::config_file::{one_or_many, some_or_many};
use crate::tuners::selection::{Fields, fields, is_default};

/// LoRA (Hu et al. 2021), in the words of PEFT's `LoraConfig` (`tuners/lora/config.py`), with its defaults but for
/// `lora_alpha`.
///
/// A layer `x Wᵀ + b` becomes `x Wᵀ + b + scaling * dropout(x) Aᵀ Bᵀ`, with A `(r, in)` and B `(out, r)` trained, and
/// `scaling = lora_alpha / r`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lora {
    /// The rank of the branch.
    pub r: usize,
    /// The branch is multiplied by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout on the branch's input.
    pub lora_dropout: f64,
    /// The linear layers that get a branch.
    pub target_modules: Targets,
    /// Of these, the ones that get none after all. `"all-linear"` excludes every one.
    #[serde(skip_serializing_if = "is_default")]
    pub exclude_modules: Option<Targets>,
    /// Only layers of these numbers get a branch; not with a regular expression as target. The number is the first in a path,
    /// as in `encoder.layer.3.`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "some_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names before that number, where the first number is not the layer's: `layer`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "one_or_many")]
    pub layers_pattern: Vec<String>,
    /// Ranks of their own, by the end of a module's path or a regular expression for it; the first in the order of the
    /// alphabet counts, in which PEFT's files hold them.
    #[serde(skip_serializing_if = "is_default")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// `lora_alpha` of their own, likewise.
    #[serde(skip_serializing_if = "is_default")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules that are trained whole, by the end of their path, besides the head. They get no branch.
    #[serde(skip_serializing_if = "is_default")]
    pub modules_to_save: Vec<String>,
    /// Biases that are trained besides.
    #[serde(skip_serializing_if = "is_default")]
    pub bias: Bias,
    /// Scaling `lora_alpha / sqrt(r)` (rsLoRA, Kalajdzievski 2023), under which high ranks learn as fast as low ones.
    #[serde(skip_serializing_if = "is_default")]
    pub use_rslora: bool,
    /// A trained length for each row of the adapted weight (DoRA, Liu et al. 2024, equation 5):
    /// `x (m ∘ (W + scaling B A) / ‖W + scaling B A‖)ᵀ + b`, where the norm is of each row and taken for a constant
    /// (section 4.3), and m `(out)` starts as that norm. As in PEFT (`tuners/lora/dora.py`).
    #[serde(skip_serializing_if = "is_default")]
    pub use_dora: bool,
    /// How A and B start.
    #[serde(skip_serializing_if = "is_default")]
    pub init_lora_weights: InitLoraWeights,
    /// The options of [`InitLoraWeights::Eva`]; `None`: their defaults.
    #[serde(skip_serializing_if = "is_default")]
    pub eva_config: Option<EvaConfig>,
}

/// How LoRA's A and B start (PEFT's `init_lora_weights`; `tuners/lora/layer.py`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "JsonInit", into = "JsonInit")]
pub enum InitLoraWeights {
    /// `true`: A uniform in `±1 / sqrt(in)` (Kaiming, a = sqrt(5)), B zero (`reset_lora_parameters`).
    #[default]
    Kaiming,
    /// `false`: A as before, B uniform in `±1 / sqrt(r)`: the branch changes the model from the start, which serves tests.
    Unset,
    /// `"gaussian"`: A normal with standard deviation `1 / r`, B zero.
    Gaussian,
    /// `"pissa"` (Meng et al. 2024): from `W = U S Vᵀ` the r largest singular values, `A = sqrt(S / scaling) Vᵀ` and
    /// `B = U sqrt(S / scaling)`; W is replaced by the residual `W - scaling B A` (`pissa_init`). `"pissa_niter_N"`, which reads as the
    /// same, comes near these values by N random iterations, other ones each time that PEFT loads such an adapter; here they are exact.
    Pissa,
    /// `"olora"` (Büyükakyüz 2024): from `W = Q R` the first r columns of Q as B and rows of R as A; W is replaced by the
    /// residual `W - scaling B A` (`olora_init`).
    Olora,
    /// `"eva"` (Paischer et al. 2024): A from the principal components of the layer's inputs, B zero, and ranks where the inputs vary
    /// most. It takes data: [`crate::Model::with_data`]. Without, as in a model that an adapter is then loaded into, A and B
    /// start as with `true`.
    Eva,
}

/// [`InitLoraWeights`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum JsonInit {
    Switch(bool),
    Name(String),
}

impl TryFrom<JsonInit> for InitLoraWeights {
    type Error = String;

    fn try_from(written: JsonInit) -> std::result::Result<Self, String> {
        match written {
            JsonInit::Switch(true) => Ok(Self::Kaiming),
            JsonInit::Switch(false) => Ok(Self::Unset),
            JsonInit::Name(name) => match name.to_ascii_lowercase().as_str() {
                "gaussian" => Ok(Self::Gaussian),
                "pissa" => Ok(Self::Pissa),
                "olora" => Ok(Self::Olora),
                "eva" => Ok(Self::Eva),
                near if near.strip_prefix("pissa_niter_").is_some_and(|n| n.parse::<usize>().is_ok()) => {
                    Ok(Self::Pissa)
                }
                _ => Err(format!(
                    "init_lora_weights {name:?} is not known; expected true, false, \"gaussian\", \"pissa\", \"olora\" or \"eva\""
                )),
            },
        }
    }
}

impl From<InitLoraWeights> for JsonInit {
    fn from(init: InitLoraWeights) -> Self {
        match init {
            InitLoraWeights::Kaiming => Self::Switch(true),
            InitLoraWeights::Unset => Self::Switch(false),
            InitLoraWeights::Gaussian => Self::Name("gaussian".into()),
            InitLoraWeights::Pissa => Self::Name("pissa".into()),
            InitLoraWeights::Olora => Self::Name("olora".into()),
            InitLoraWeights::Eva => Self::Name("eva".into()),
        }
    }
}

impl InitLoraWeights {
    /// What stands in the place of the base weight: two adapters with one answer fit the same base.
    pub(super) fn base_weight(self) -> &'static str {
        match self {
            Self::Kaiming | Self::Unset | Self::Gaussian | Self::Eva => "true",
            Self::Pissa => "pissa",
            Self::Olora => "olora",
        }
    }
}

impl Default for Lora {
    /// PEFT's defaults for BERT but for `lora_alpha`, which is twice the rank: r 8 on query and value.
    fn default() -> Self {
        Self::rank(8)
    }
}

impl Lora {
    /// Rank `r` with `lora_alpha = 2 r`, so that the scaling is the same at every rank.
    pub fn rank(r: usize) -> Self {
        Self {
            r,
            lora_alpha: 2.0 * r as f64,
            lora_dropout: 0.0,
            target_modules: Targets::suffixes(["query", "value"]),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: Vec::new(),
            bias: Bias::None,
            use_rslora: false,
            use_dora: false,
            init_lora_weights: InitLoraWeights::Kaiming,
            eva_config: None,
        }
    }

    /// Rank `r` on these layers, by their whole paths, with scaling 1; a layer of another rank has patterns.
    pub(super) fn on_ranks<'a>(r: usize, layers: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let mut lora = Self { lora_alpha: r as f64, ..Self::rank(r) };
        let mut targets = Vec::new();
        for (path, rank) in layers {
            targets.push(path.to_string());
            if rank != r {
                lora.rank_pattern.insert(path.into(), rank);
                lora.alpha_pattern.insert(path.into(), rank as f64);
            }
        }
        lora.on(Targets::Suffixes(targets))
    }

    /// With other target modules.
    pub fn on(mut self, targets: Targets) -> Self {
        self.target_modules = targets;
        self
    }

    /// `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora` (PEFT `tuners/lora/layer.py`, `update_layer`), where no
    /// pattern says otherwise.
    pub fn scaling(&self) -> f64 {
        self.scaling_of(self.r, self.lora_alpha)
    }

    /// With another rank, and the `lora_alpha` at which the scaling stays.
    pub fn at_rank(&self, r: usize) -> Self {
        let per_alpha = self.scaling_of(r, 1.0);
        Self { r, lora_alpha: self.scaling() / per_alpha, ..self.clone() }
    }

    pub(super) fn scaling_of(&self, r: usize, lora_alpha: f64) -> f64 {
        lora_alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        fields!(self, "LoRA")
    }

    pub(super) fn check(&self) -> Result<()> {
        let wrong = |field, found: String, expected| Err(Error::Adapter { method: "LoRA", field, found, expected });
        let is_alpha = |alpha: f64| alpha.is_finite() && alpha != 0.0;
        let rank_of_zero = self.rank_pattern.iter().find(|(_, r)| **r == 0).map(|(name, r)| format!("{name}={r}"));
        let wrong_alpha = self.alpha_pattern.iter().find(|(_, alpha)| !is_alpha(**alpha));
        let wrong_alpha = wrong_alpha.map(|(name, alpha)| format!("{name}={alpha}"));
        match self {
            Self { r: 0, .. } => wrong("r", "0".into(), "at least 1"),
            _ if rank_of_zero.is_some() => {
                wrong("rank_pattern", rank_of_zero.unwrap_or_default(), "ranks of at least 1")
            }
            Self { lora_alpha, .. } if !is_alpha(*lora_alpha) => {
                wrong("lora_alpha", lora_alpha.to_string(), "a finite number other than 0")
            }
            _ if wrong_alpha.is_some() => {
                wrong("alpha_pattern", wrong_alpha.unwrap_or_default(), "finite numbers other than 0")
            }
            Self { init_lora_weights: InitLoraWeights::Pissa, .. }
                if self.lora_alpha < 0.0 || self.alpha_pattern.values().any(|alpha| *alpha < 0.0) =>
            {
                wrong("lora_alpha", "below 0".into(), "above 0 with init_lora_weights \"pissa\"")
            }
            Self { lora_dropout, .. } if !(0.0..1.0).contains(lora_dropout) => {
                wrong("lora_dropout", lora_dropout.to_string(), "at least 0 and below 1")
            }
            Self { eva_config: Some(config), .. } => config.check().and_then(|()| self.fields().check()),
            _ => self.fields().check(),
        }
    }
}

impl fmt::Display for Lora {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} r={}", if self.use_dora { "DoRA" } else { "LoRA" }, self.r)?;
        if self.use_rslora {
            write!(f, ", rsLoRA")?;
        }
        match self.init_lora_weights {
            InitLoraWeights::Kaiming => Ok(()),
            InitLoraWeights::Unset => write!(f, ", unset start"),
            InitLoraWeights::Gaussian => write!(f, ", gaussian start"),
            InitLoraWeights::Pissa => write!(f, ", PiSSA"),
            InitLoraWeights::Olora => write!(f, ", OLoRA"),
            InitLoraWeights::Eva => write!(f, ", EVA"),
        }
    }
}
