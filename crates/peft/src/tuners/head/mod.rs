//! The head alone: the encoder stays as it is.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::TunerConfig;
use super::config_file::ConfigFile;
use crate::builder::Tuner;
use crate::error::Result;

/// Training the head alone has no options.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Head {}

impl Tuner for Head {
    fn is_in_peft(&self) -> bool {
        false
    }
}

impl TunerConfig for Head {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        Ok(Arc::new(Self {}))
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        3e-3
    }
}

impl ConfigFile for Head {
    const PEFT_TYPE: &'static str = "HEAD";
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Head only")
    }
}
