//! VeRA: two trained vectors beside each layer, around a pair of random matrices that all layers share.

mod branch;
mod generator;
mod projections;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lora::{Bias, is_default};
use super::selection::{Fields, Selection};
use super::targets::Targets;
use crate::error::{Error, Result};

pub(crate) use branch::VeraBranch;
pub(crate) use projections::Projections;

/// VeRA (Kopiczko et al. 2023, equation 2), in the words of PEFT's `VeraConfig` (`tuners/vera/config.py`), with its defaults.
///
/// A layer `x Wᵀ + b` becomes `x Wᵀ + b + λ_b ∘ ((λ_d ∘ (dropout(x) Aᵀ)) Bᵀ)`, with λ_d `(r)` and λ_b `(out)` trained. A `(r, in)` and
/// B `(out, r)` are frozen and random, one pair for all layers: it has the size of the widest, and each layer takes the first
/// columns of A and the first rows of B (`tuners/vera/layer.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vera {
    /// The rank of the shared matrices. They cost no trained numbers: higher ranks than LoRA's are usual.
    pub r: usize,
    /// The linear layers that get vectors.
    pub target_modules: Targets,
    /// Only layers of these numbers get vectors; not with a regular expression as target.
    #[serde(skip_serializing_if = "is_default")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names before that number, where the first number is not the layer's: `layer`.
    #[serde(skip_serializing_if = "is_default")]
    pub layers_pattern: Vec<String>,
    /// What A and B are drawn from, whatever the seed of a run: with one key, adapters share them. They are the numbers that PEFT
    /// draws with torch's generator on the CPU.
    pub projection_prng_key: u64,
    /// Whether files hold A and B. Without, whoever reads one draws them anew from the key.
    pub save_projection: bool,
    /// Dropout on the branch's input.
    pub vera_dropout: f64,
    /// What λ_d starts as. λ_b starts as zeros.
    pub d_initial: f64,
    /// Modules that are trained whole, by the end of their path, besides the head. They get no vectors.
    #[serde(skip_serializing_if = "is_default")]
    pub modules_to_save: Vec<String>,
    /// Biases that are trained besides.
    #[serde(skip_serializing_if = "is_default")]
    pub bias: Bias,
}

impl Default for Vera {
    /// PEFT's defaults for BERT: r 256 on query and value.
    fn default() -> Self {
        Self {
            r: 256,
            target_modules: Targets::suffixes(["query", "value"]),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: 0.1,
            modules_to_save: Vec::new(),
            bias: Bias::None,
        }
    }
}

impl Vera {
    fn fields(&self) -> Fields<'_> {
        Fields {
            method: "VeRA",
            target_modules: &self.target_modules,
            exclude_modules: None,
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field, found: String, expected| Err(Error::Adapter { method: "VeRA", field, found, expected });
        match self {
            Self { r: 0, .. } => wrong("r", "0".into(), "at least 1"),
            Self { vera_dropout, .. } if !(0.0..1.0).contains(vera_dropout) => {
                wrong("vera_dropout", vera_dropout.to_string(), "at least 0 and below 1")
            }
            // With λ_d and λ_b both at zero neither would ever have a gradient.
            Self { d_initial, .. } if !d_initial.is_finite() || *d_initial == 0.0 => {
                wrong("d_initial", d_initial.to_string(), "a finite number other than 0")
            }
            _ => self.fields().check(),
        }
    }
}

/// A [`Vera`] ready to be asked, module by module.
pub(super) struct VeraTuner {
    vera: Vera,
    selection: Selection,
    projections: Arc<Projections>,
}

impl VeraTuner {
    pub fn new(vera: &Vera) -> Result<Self> {
        vera.check()?;
        Ok(Self {
            selection: Selection::new(&vera.fields())?,
            projections: Arc::new(Projections::new(vera.r)),
            vera: vera.clone(),
        })
    }

    /// What a linear layer that is not trained whole gets.
    pub fn branch(&self, module: &str) -> Option<VeraBranch> {
        self.selection.adapts(module).then(|| VeraBranch {
            d_initial: self.vera.d_initial,
            dropout: self.vera.vera_dropout,
            projections: self.projections.clone(),
        })
    }

    /// The matrices that all branches share, and the key that they are drawn from.
    pub fn projections(&self) -> (Arc<Projections>, u64) {
        (self.projections.clone(), self.vera.projection_prng_key)
    }

    /// Fails where a name of the method names nothing.
    pub fn check_targets(&self, linear_layers: &BTreeSet<String>, modules: &BTreeSet<String>) -> Result<()> {
        self.selection.check_targets("VeRA", linear_layers, modules)
    }
}
