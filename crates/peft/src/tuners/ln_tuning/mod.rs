//! LayerNorm tuning: the weights and biases of layer norms are trained.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::TunerConfig;
use super::config_file::ConfigFile;
use super::modules_to_save;
use super::options::{EXCLUDED, MODULES_TO_SAVE, MethodOption, TARGETS};
use crate::architectures::Architecture;
use crate::builder::Tuner;
use crate::error::{Error, Result};
use crate::parameters::Modules;
use crate::targets::{Matcher, Targets, ends};

/// LayerNorm tuning (Zhao et al. 2023): trains the weights and biases of layer norms, `γ ∘ (x - mean) / deviation + β`, in the
/// words of PEFT's `LNTuningConfig` (`tuners/ln_tuning/config.py`). PEFT trains a copy of each, as of a module to save.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LnTuning {
    /// The modules that are trained.
    pub target_modules: Targets,
    /// Of these, the ones that are not after all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// Modules that are trained besides, by the end of their path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
}

impl Default for LnTuning {
    /// BERT's layer norms; PEFT names none for BERT.
    fn default() -> Self {
        Self { target_modules: Targets::suffixes(["LayerNorm"]), exclude_modules: None, modules_to_save: Vec::new() }
    }
}

struct LnTuner {
    ln_tuning: LnTuning,
    targets: Matcher,
    excluded: Option<Matcher>,
}

impl LnTuner {
    fn tunes(&self, module: &str) -> bool {
        self.targets.matches(module) && !self.excluded.as_ref().is_some_and(|excluded| excluded.matches(module))
    }
}

impl Tuner for LnTuner {
    fn trains(&self, module: &str, _name: &str) -> bool {
        self.tunes(module)
    }

    fn part(&self, module: &str) -> Option<&'static str> {
        self.tunes(module).then_some("ln_tuning_layers")
    }

    fn check_targets(&self, modules: &Modules) -> Result<()> {
        let unmatched = self.ln_tuning.target_modules.unmatched(modules.all.iter())?;
        if !unmatched.is_empty() || !modules.all.iter().any(|module| self.tunes(module)) {
            let (targets, choices) = (unmatched.join(", "), ends(&modules.all));
            return Err(Error::NoTarget { method: "LN tuning".into(), targets, choices });
        }
        modules_to_save::check("LN tuning", &self.ln_tuning.modules_to_save, &modules.all)
    }
}

impl LnTuning {
    /// On the layers that are meant on an architecture where none are named.
    pub fn for_architecture(architecture: Architecture) -> Self {
        let mut config = Self::default();
        config.set_default_layers(architecture);
        config
    }
}

impl TunerConfig for LnTuning {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        Ok(Arc::new(LnTuner {
            targets: self.target_modules.compile()?,
            excluded: self.exclude_modules.as_ref().map(Targets::compile).transpose()?,
            ln_tuning: self.clone(),
        }))
    }

    /// All of the encoder's layer norms. PEFT has no default for encoders.
    fn set_default_layers(&mut self, architecture: Architecture) {
        self.target_modules = architecture.module_names().layer_norms;
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        3e-3
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }
}

impl ConfigFile for LnTuning {
    const PEFT_TYPE: &'static str = "LN_TUNING";
    const REQUIRED: Option<(&'static str, &'static str)> =
        Some(("target_modules", "name the layer norms that are trained"));
    const TENSORS: &'static [&'static str] = &[".ln_tuning_layers"];

    const OPTIONS: &'static [&'static [MethodOption]] = &[TARGETS, EXCLUDED, MODULES_TO_SAVE];

    fn peft_defaults() -> Value {
        json!({ "exclude_modules": null })
    }
}

impl fmt::Display for LnTuning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("LN tuning")
    }
}
