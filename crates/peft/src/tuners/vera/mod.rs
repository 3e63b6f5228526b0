//! VeRA: two trained vectors beside each layer, around a pair of random matrices that all layers share.

mod adapter;
mod generator;
mod projections;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::{Bias, TunerConfig};
use super::config_file::{ConfigFile, Fields, PromptSizes, one_or_many, some_or_many};
use super::options::{BIAS, LAYERS, MODULES_TO_SAVE, MethodOption, OptionKind, TARGETS, option};
use super::selected_layers::SelectedLayers;
use super::selection::{Fields as Layers, is_default};
use crate::architectures::Architecture;
use crate::builder::Tuner;
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::targets::Targets;

use adapter::VeraBranch;
use projections::Projections;

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
    #[serde(skip_serializing_if = "is_default", deserialize_with = "some_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names before that number, where the first number is not the layer's: `layer`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "one_or_many")]
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
    fn fields(&self) -> Layers<'_> {
        Layers {
            method: "VeRA",
            target_modules: &self.target_modules,
            exclude_modules: None,
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
        }
    }

    fn check(&self) -> Result<()> {
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

impl TunerConfig for Vera {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        let projections = Arc::new(Projections::new(self.r));
        let (d_initial, dropout, shared) = (self.d_initial, self.vera_dropout, projections.clone());
        let layers = SelectedLayers::new("VeRA".into(), &self.fields(), self.bias, move |builder, path, weight| {
            let branch = VeraBranch { d_initial, dropout, projections: shared.clone() };
            Ok((branch.build(builder, path, &weight)?, weight))
        })?;
        Ok(Arc::new(layers.sharing(projections)))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("r", self.r)]
    }

    fn set_default_layers(&mut self, architecture: Architecture) {
        self.target_modules = architecture.default_targets();
    }

    /// λ_b, which is trained first, starts at zero between matrices of small numbers.
    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        1e-2
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    /// Matrices that a file brought cannot be drawn anew.
    fn note_training(&mut self, _parameters: &Parameters, tuner: &dyn Tuner) -> Result<()> {
        let key = self.projection_prng_key;
        self.save_projection |= tuner.shared_tensors().is_some_and(|shared| !shared.are_drawn_from(key));
        Ok(())
    }

    fn saves_shared_tensors(&self) -> bool {
        self.save_projection
    }

    fn shared_tensors_key(&self) -> Option<u64> {
        Some(self.projection_prng_key)
    }
}

impl ConfigFile for Vera {
    const PEFT_TYPE: &'static str = "VERA";
    const REQUIRED: Option<(&'static str, &'static str)> =
        Some(("target_modules", "name the layers that have a branch"));
    const TENSORS: &'static [&'static str] = &[".vera_lambda_"];

    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option("r", "r", OptionKind::Value, "The rank of the shared matrices [default: 256]"),
            option("vera-dropout", "vera_dropout", OptionKind::Value, "Dropout on the branch's input [default: 0]"),
            option(
                "d-initial",
                "d_initial",
                OptionKind::Value,
                "What the vector between the two matrices starts as [default: 0.1]",
            ),
            option(
                "projection-prng-key",
                "projection_prng_key",
                OptionKind::Value,
                "What the two matrices are drawn from, whatever the seed [default: 0]",
            ),
            option(
                "save-projection",
                "save_projection",
                OptionKind::Value,
                "Whether files hold the two matrices, or whoever reads one draws them anew from the key [default: true]",
            ),
        ],
        TARGETS,
        LAYERS,
        BIAS,
        MODULES_TO_SAVE,
    ];

    /// What the vectors start as is in the tensors, whatever `init_weights` says.
    fn peft_defaults() -> Value {
        json!({
            "layers_to_transform": null,
            "layers_pattern": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_weights": true,
        })
    }

    fn finish(&self, fields: &mut Fields, _sizes: Option<PromptSizes>) {
        if self.bias == Bias::LoraOnly {
            fields.insert("bias".into(), json!("vera_only"));
        }
    }
}

impl fmt::Display for Vera {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "VeRA r={}", self.r)
    }
}
