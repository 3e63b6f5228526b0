//! The options of AdaLoRA: the budget of ranks and its schedule, layers, initial values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::targets::Targets;
use crate::tuners::config::Bias;
use crate::tuners::config_file::{one_or_many, some_or_many};
use crate::tuners::selection::{Fields, fields, is_default};

/// AdaLoRA (Zhang et al. 2023), in the words of PEFT's `AdaLoraConfig` (`tuners/adalora/config.py`), with its defaults.
///
/// A layer `x Wᵀ + b` becomes `x Wᵀ + b + scaling * dropout(x) (E ∘ A)ᵀ Bᵀ`, with A `(init_r, in)`, B `(out, init_r)` and E
/// `(init_r, 1)` trained: right and left singular vectors, and singular values. `scaling = lora_alpha / (init_r + 1e-5)`
/// (`tuners/adalora/layer.py`). A and B are kept near orthonormal by a term of the loss ([`crate::Model::regularization`]); a
/// [`RankAllocator`](super::RankAllocator) sets the least important values to zero, until `target_r` are left for a layer on average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdaLora {
    /// The rank of each branch at first.
    pub init_r: usize,
    /// The mean rank of the branches at last.
    pub target_r: usize,
    /// Steps before the first value is masked.
    pub tinit: usize,
    /// Steps at the end, in which the same values stay masked.
    pub tfinal: usize,
    /// Steps from one masking to the next.
    #[serde(rename = "deltaT")]
    pub delta_t: usize,
    /// How much of its mean an importance keeps with each step.
    pub beta1: f64,
    /// The same for how uncertain an importance is.
    pub beta2: f64,
    /// What the term that keeps A and B near orthonormal is multiplied by.
    pub orth_reg_weight: f64,
    /// Training steps in all; `None`: those of the run. PEFT has no such default.
    #[serde(skip_serializing_if = "is_default")]
    pub total_step: Option<usize>,
    /// The branch is multiplied by `lora_alpha / (init_r + 1e-5)`.
    pub lora_alpha: f64,
    /// Dropout on the branch's input.
    pub lora_dropout: f64,
    /// The linear layers that get a branch.
    pub target_modules: Targets,
    /// Of these, the ones that get none after all.
    #[serde(skip_serializing_if = "is_default")]
    pub exclude_modules: Option<Targets>,
    /// Only layers of these numbers get a branch; not with a regular expression as target.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "some_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names before that number, where the first number is not the layer's: `layer`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "one_or_many")]
    pub layers_pattern: Vec<String>,
    /// Modules that are trained whole, by the end of their path, besides the head. They get no branch.
    #[serde(skip_serializing_if = "is_default")]
    pub modules_to_save: Vec<String>,
    /// Biases that are trained besides.
    #[serde(skip_serializing_if = "is_default")]
    pub bias: Bias,
    /// `true`: E zero, A and B normal with standard deviation 0.02, so that the branch begins as nothing. `false`: all normal with
    /// standard deviation 1, which serves tests.
    pub init_lora_weights: bool,
    /// Which values of a branch were left when its budget was spent, by `MODULE.lora_E`: a branch has the rank of what is left.
    /// With it, nothing is masked any more.
    #[serde(skip_serializing_if = "is_default")]
    pub rank_pattern: BTreeMap<String, Vec<bool>>,
}

impl Default for AdaLora {
    /// PEFT's defaults for BERT: from rank 12 to 8, on query and value.
    fn default() -> Self {
        Self {
            init_r: 12,
            target_r: 8,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Targets::suffixes(["query", "value"]),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            bias: Bias::None,
            init_lora_weights: true,
            rank_pattern: BTreeMap::new(),
        }
    }
}

impl AdaLora {
    /// What the branches are multiplied by.
    pub fn scaling(&self) -> f64 {
        self.lora_alpha / (self.init_r as f64 + 1e-5)
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        fields!(self, "AdaLoRA")
    }

    pub(super) fn check(&self) -> Result<()> {
        let wrong = |field, found: String, expected| Err(Error::Adapter { method: "AdaLoRA", field, found, expected });
        let is_share = |beta: f64| beta > 0.0 && beta < 1.0;
        match self {
            Self { init_r: 0, .. } => wrong("init_r", "0".into(), "at least 1"),
            Self { target_r, init_r, .. } if *target_r == 0 || target_r > init_r => {
                wrong("target_r", target_r.to_string(), "at least 1 and at most init_r")
            }
            Self { delta_t: 0, .. } => wrong("deltaT", "0".into(), "at least 1"),
            Self { beta1, .. } if !is_share(*beta1) => wrong("beta1", beta1.to_string(), "above 0 and below 1"),
            Self { beta2, .. } if !is_share(*beta2) => wrong("beta2", beta2.to_string(), "above 0 and below 1"),
            Self { orth_reg_weight, .. } if !orth_reg_weight.is_finite() || *orth_reg_weight < 0.0 => {
                wrong("orth_reg_weight", orth_reg_weight.to_string(), "a finite number of at least 0")
            }
            Self { total_step: Some(steps), .. } if self.tinit.saturating_add(self.tfinal) >= *steps => wrong(
                "total_step",
                steps.to_string(),
                "more than tinit and tfinal together, so that there are steps in which the budget falls",
            ),
            Self { lora_alpha, .. } if !lora_alpha.is_finite() || *lora_alpha <= 0.0 => {
                wrong("lora_alpha", lora_alpha.to_string(), "a finite number above 0")
            }
            Self { lora_dropout, .. } if !(0.0..1.0).contains(lora_dropout) => {
                wrong("lora_dropout", lora_dropout.to_string(), "at least 0 and below 1")
            }
            _ => self.fields().check(),
        }
    }
}
