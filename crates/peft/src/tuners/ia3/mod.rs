//! (IA)³: learned vectors that scale what flows through chosen layers.

mod adapter;
mod combine;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::combination::Combination;
use super::config::{Part, TunerConfig};
use super::config_file::{ConfigFile, Fields};
use super::modules_to_save;
use super::options::{EXCLUDED, MODULES_TO_SAVE, MethodOption, OptionKind, TARGETS, option};
use crate::architectures::{Architecture, ModuleNames};
use crate::builder::{Builder, Tuner};
use crate::error::{ConfigError, Error, Result};
use crate::layers::LinearAdapter;
use crate::parameters::Modules;
use crate::targets::{Matcher, Targets, ends};

use adapter::Scaled;

/// (IA)³ (Liu et al. 2022, section 3.3), in the words of PEFT's `IA3Config` (`tuners/ia3/config.py`), with its defaults for BERT.
///
/// A layer `x Wᵀ + b` becomes `l ∘ (x Wᵀ + b)` with l `(out)` trained, or, in the feed-forward network, `(l ∘ x) Wᵀ + b` with l
/// `(in)`: there the layer's input is the activation that the paper scales. l starts as ones (`tuners/ia3/layer.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ia3 {
    /// The linear layers that get a vector.
    pub target_modules: Targets,
    /// Of these, the ones whose input is scaled instead of their output.
    pub feedforward_modules: Targets,
    /// Of the targets, the ones that get none after all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// Modules that are trained whole, by the end of their path, besides the head. They get no vector.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
}

impl Default for Ia3 {
    /// PEFT's for BERT (`utils/constants.py`): key, value and the outputs of attention and of the feed-forward network, of which
    /// the latter two are scaled at their input.
    fn default() -> Self {
        Self {
            target_modules: Targets::suffixes(["key", "value", "output.dense"]),
            feedforward_modules: Targets::suffixes(["output.dense"]),
            exclude_modules: None,
            modules_to_save: Vec::new(),
        }
    }
}

impl Ia3 {
    fn check(&self) -> Result<()> {
        let (Targets::Suffixes(targets), Targets::Suffixes(inner)) = (&self.target_modules, &self.feedforward_modules)
        else {
            return Ok(());
        };
        if let Some(name) = inner.iter().find(|name| !targets.contains(name)) {
            let (method, field, found) = ("(IA)³", "feedforward_modules", name.clone());
            return Err(Error::Adapter { method, field, found, expected: "names that are in target_modules too" });
        }
        Ok(())
    }
}

struct Ia3Tuner {
    ia3: Ia3,
    targets: Matcher,
    feedforward: Matcher,
    excluded: Option<Matcher>,
}

impl Ia3Tuner {
    fn adapts(&self, module: &str) -> bool {
        self.targets.matches(module) && !self.excluded.as_ref().is_some_and(|excluded| excluded.matches(module))
    }
}

impl Tuner for Ia3Tuner {
    fn linear(
        &self,
        builder: &mut Builder,
        path: &str,
        weight: Tensor,
    ) -> Result<(Option<Box<dyn LinearAdapter>>, Tensor)> {
        if !self.adapts(path) {
            return Ok((None, weight));
        }
        let adapter = Scaled::new(builder, path, &weight, self.feedforward.matches(path))?;
        Ok((Some(Box::new(adapter)), weight))
    }

    fn check_targets(&self, modules: &Modules) -> Result<()> {
        let unmatched = self.ia3.target_modules.unmatched(modules.linear_layers.iter())?;
        if !unmatched.is_empty() || !modules.linear_layers.iter().any(|module| self.adapts(module)) {
            let (targets, choices) = (unmatched.join(", "), ends(&modules.linear_layers));
            return Err(Error::NoTarget { method: "(IA)³".into(), targets, choices });
        }
        modules_to_save::check("(IA)³", &self.ia3.modules_to_save, &modules.all)
    }
}

impl Ia3 {
    /// On the layers that are meant on an architecture where none are named.
    pub fn for_architecture(architecture: Architecture) -> Self {
        let mut config = Self::default();
        config.set_default_layers(architecture);
        config
    }
}

impl TunerConfig for Ia3 {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        Ok(Arc::new(Ia3Tuner {
            targets: self.target_modules.compile()?,
            feedforward: self.feedforward_modules.compile()?,
            excluded: self.exclude_modules.as_ref().map(Targets::compile).transpose()?,
            ia3: self.clone(),
        }))
    }

    /// PEFT's `TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING` and `..._FEEDFORWARD_MODULES_MAPPING` (`utils/constants.py`), which
    /// know BERT, RoBERTa and DeBERTa-v2; of the others the layers of the same part: keys, values, and what leaves a feed-forward
    /// network, which is scaled at its input.
    fn set_default_layers(&mut self, architecture: Architecture) {
        let ModuleNames { key, value, feed_forward_output, .. } = architecture.module_names();
        let mut targets = vec![key, value, feed_forward_output];
        targets.dedup();
        self.target_modules = Targets::suffixes(targets);
        self.feedforward_modules = Targets::suffixes([feed_forward_output]);
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        3e-3
    }

    fn neutral_value(&self) -> Option<f64> {
        Some(1.0)
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn combine(
        &mut self,
        parts: &[Part],
        combination: &Combination,
        modules_to_save: Vec<String>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let (ia3, tensors) = combine::combine(parts, combination, modules_to_save)?;
        *self = ia3;
        Ok(tensors)
    }
}

impl ConfigFile for Ia3 {
    const PEFT_TYPE: &'static str = "IA3";
    const REQUIRED: Option<(&'static str, &'static str)> =
        Some(("target_modules", "name the layers that have a vector"));
    const TENSORS: &'static [&'static str] = &[".ia3_l"];

    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[option(
            "feedforward-modules",
            "feedforward_modules",
            OptionKind::Modules,
            "Targets whose input is scaled instead of their output [default: what leaves a feed-forward network]",
        )],
        TARGETS,
        EXCLUDED,
        MODULES_TO_SAVE,
    ];

    /// Targets of one's own are scaled at their output, unless they are named among the feed-forward modules.
    fn complete(given: &mut Fields) -> std::result::Result<(), ConfigError> {
        if given.contains_key("target_modules") {
            given.entry("feedforward_modules").or_insert_with(|| json!([]));
        }
        Ok(())
    }

    /// The vectors start as ones whatever `init_ia3_weights` says, and are in the tensors.
    fn peft_defaults() -> Value {
        json!({
            "feedforward_modules": [],
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "init_ia3_weights": true,
        })
    }
}

impl fmt::Display for Ia3 {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("(IA)³")
    }
}
