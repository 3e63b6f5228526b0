//! LayerNorm tuning.

use serde::{Deserialize, Serialize};

use super::Modules;
use super::saved::unmatched_name;
use super::targets::{Matcher, Targets, ends};
use crate::error::{Error, Result};

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

/// A [`LnTuning`] ready to be asked, module by module.
pub(super) struct LnTuner {
    ln_tuning: LnTuning,
    targets: Matcher,
    excluded: Option<Matcher>,
}

impl LnTuner {
    pub fn new(ln_tuning: &LnTuning) -> Result<Self> {
        Ok(Self {
            targets: ln_tuning.target_modules.compile()?,
            excluded: ln_tuning.exclude_modules.as_ref().map(Targets::compile).transpose()?,
            ln_tuning: ln_tuning.clone(),
        })
    }

    /// Whether a module is one of the trained.
    pub fn tunes(&self, module: &str) -> bool {
        self.targets.matches(module) && !self.excluded.as_ref().is_some_and(|excluded| excluded.matches(module))
    }

    /// Fails where a name of the method names nothing.
    pub fn check_targets(&self, modules: &Modules) -> Result<()> {
        let mut unmatched = self.ln_tuning.target_modules.unmatched(modules.all.iter())?;
        unmatched.extend(unmatched_name(&self.ln_tuning.modules_to_save, &modules.all).map(String::from));
        if unmatched.is_empty() && modules.all.iter().any(|module| self.tunes(module)) {
            return Ok(());
        }
        let (method, targets, choices) = ("LN tuning".into(), unmatched.join(", "), ends(&modules.all));
        Err(Error::NoTarget { method, targets, choices })
    }
}
