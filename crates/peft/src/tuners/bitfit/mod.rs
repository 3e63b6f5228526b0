//! BitFit: the bias terms of the encoder are trained.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::TunerConfig;
use super::config_file::ConfigFile;
use super::options::{MethodOption, TARGETS};
use crate::builder::Tuner;
use crate::error::{Error, Result};
use crate::parameters::{Modules, POOLER};
use crate::targets::{Matcher, Targets, ends};

/// BitFit (Ben Zaken et al. 2022): trains the bias terms of the encoder, those of its layer norms and its pooler among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BitFit {
    /// The modules whose biases are trained; `None`: all. The pooler's bias is trained in any case, as in the paper's code.
    /// The paper's small subset is `query` and `intermediate.dense`.
    pub target_modules: Option<Targets>,
}

struct BitFitTuner {
    targets: Option<(Targets, Matcher)>,
}

impl Tuner for BitFitTuner {
    fn trains(&self, module: &str, name: &str) -> bool {
        let is_target = || self.targets.as_ref().is_none_or(|(_, targets)| targets.matches(module));
        name == "bias" && (module == POOLER || is_target())
    }

    fn is_in_peft(&self) -> bool {
        false
    }

    fn check_targets(&self, modules: &Modules) -> Result<()> {
        let Some((targets, _)) = &self.targets else { return Ok(()) };
        let unmatched = targets.unmatched(modules.biased.iter())?;
        if unmatched.is_empty() && *targets != Targets::Suffixes(Vec::new()) {
            return Ok(());
        }
        let (targets, choices) = (unmatched.join(", "), ends(&modules.biased));
        Err(Error::NoTarget { method: "BitFit".into(), targets, choices })
    }
}

impl TunerConfig for BitFit {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        let matcher = self.target_modules.as_ref().map(Targets::compile).transpose()?;
        Ok(Arc::new(BitFitTuner { targets: self.target_modules.clone().zip(matcher) }))
    }

    fn learning_rate(&self, hidden_size: usize) -> f64 {
        if hidden_size >= 768 { 1e-3 } else { 3e-3 }
    }
}

impl ConfigFile for BitFit {
    const PEFT_TYPE: &'static str = "BITFIT";
    const OPTIONS: &'static [&'static [MethodOption]] = &[TARGETS];
}

impl fmt::Display for BitFit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.target_modules {
            Some(targets) => write!(f, "BitFit ({targets})"),
            None => f.write_str("BitFit"),
        }
    }
}
