//! Full fine-tuning: every parameter is trained.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::TunerConfig;
use super::config_file::ConfigFile;
use crate::builder::Tuner;
use crate::error::Result;

/// Full fine-tuning has no options.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Full {}

impl Tuner for Full {
    fn trains(&self, _module: &str, _name: &str) -> bool {
        true
    }

    fn is_in_peft(&self) -> bool {
        false
    }
}

impl TunerConfig for Full {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        Ok(Arc::new(Self {}))
    }

    fn learning_rate(&self, hidden_size: usize) -> f64 {
        if hidden_size >= 768 { 3e-5 } else { 1e-4 }
    }

    fn trains_everything(&self) -> bool {
        true
    }
}

impl ConfigFile for Full {
    const PEFT_TYPE: &'static str = "FULL";
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Full fine-tuning")
    }
}
