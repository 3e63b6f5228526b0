//! Prompt learning, in PEFT's word: virtual tokens, which are trained vectors before every sequence. Prefix tuning puts them among
//! the keys and values of each layer; prompt tuning and P-tuning put them before the embeddings of a sequence's words.
//!
//! Virtual tokens have the first positions, of type 0, and a sequence's tokens those after them, as in PEFT (`peft_model.py`,
//! `PeftModelForSequenceClassification`), where also the head reads the vector of the first virtual token if they stand at the
//! input. What knows of distances counts virtual tokens, too.

mod encoder;
mod p_tuning;
mod prefix_tuning;
mod prompt_tuning;

pub(crate) use encoder::{Prefix, PromptEncoder, is_of_prompt};
pub use p_tuning::{PTuning, Reparameterization};
pub use prefix_tuning::{PrefixInitWeights, PrefixTuning};
pub use prompt_tuning::{PromptTuning, PromptTuningInit};

use super::saved::unmatched_name;
use super::targets::ends;
use super::{Method, Modules};
use crate::error::{Error, Result};

/// A method of prompt learning, ready to be asked.
#[derive(Clone)]
pub(crate) enum VirtualTokens {
    Prefix(PrefixTuning),
    Prompt(PromptTuning),
    PTuning(PTuning),
}

impl VirtualTokens {
    /// That of a method, if it is one of prompt learning.
    pub fn of(method: &Method) -> Option<Self> {
        match method {
            Method::PrefixTuning(prefix) => Some(Self::Prefix(prefix.clone())),
            Method::PromptTuning(prompt) => Some(Self::Prompt(prompt.clone())),
            Method::PTuning(prompt) => Some(Self::PTuning(prompt.clone())),
            _ => None,
        }
    }

    /// Fails where an option makes no prompt.
    pub fn checked(self) -> Result<Box<Self>> {
        match &self {
            Self::Prefix(prefix) => prefix.check()?,
            Self::Prompt(prompt) => prompt.check()?,
            Self::PTuning(prompt) => prompt.check()?,
        }
        Ok(Box::new(self))
    }

    /// How many virtual tokens there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Prefix(prefix) => prefix.num_virtual_tokens,
            Self::Prompt(prompt) => prompt.num_virtual_tokens,
            Self::PTuning(prompt) => prompt.num_virtual_tokens,
        }
    }

    /// Whether the virtual tokens are made by a network, which an adapter's files do not hold.
    pub fn is_reparameterized(&self) -> bool {
        match self {
            Self::Prefix(prefix) => prefix.prefix_projection && !prefix.inference_mode,
            Self::Prompt(_) => false,
            Self::PTuning(prompt) => !prompt.inference_mode,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Prefix(_) => prefix_tuning::NAME,
            Self::Prompt(_) => prompt_tuning::NAME,
            Self::PTuning(_) => p_tuning::NAME,
        }
    }

    pub fn modules_to_save(&self) -> &[String] {
        match self {
            Self::Prefix(prefix) => &prefix.modules_to_save,
            Self::Prompt(prompt) => &prompt.modules_to_save,
            Self::PTuning(prompt) => &prompt.modules_to_save,
        }
    }

    /// Fails where a name of the method names nothing.
    pub fn check_targets(&self, modules: &Modules) -> Result<()> {
        match unmatched_name(self.modules_to_save(), &modules.all) {
            Some(name) => {
                Err(Error::NoTarget { method: self.name().into(), targets: name.into(), choices: ends(&modules.all) })
            }
            None => Ok(()),
        }
    }
}

/// Fails where `found`, the field of a method, is 0.
fn at_least_one(method: &'static str, field: &'static str, found: usize) -> Result<()> {
    match found {
        0 => Err(Error::Adapter { method, field, found: "0".into(), expected: "at least 1" }),
        _ => Ok(()),
    }
}
