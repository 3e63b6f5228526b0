//! The paths of parameters and modules, in Hugging Face's words.

use std::collections::BTreeSet;

pub(crate) const POOLER: &str = "bert.pooler.dense";
pub(crate) const CLASSIFIER: &str = "classifier";
/// What PEFT takes for the head of a sequence classifier, and trains and saves whole (`utils/constants.py`,
/// `SEQ_CLS_HEAD_NAMES`).
pub(crate) const HEADS: [&str; 2] = [CLASSIFIER, "score"];
/// PEFT's name for what makes virtual tokens, and the first part of its parameters' paths.
pub(crate) const PROMPT_ENCODER: &str = "prompt_encoder";

/// The first names of what stands on an encoder. The encoder's own paths begin with its prefix, such as `bert`.
const HEAD: [&str; 4] = [CLASSIFIER, "pre_classifier", "pooler", "head"];

/// Whether a module or a parameter belongs to the head, by its path.
pub fn is_head(path: &str) -> bool {
    path.split('.').next().is_some_and(|first| HEAD.contains(&first))
}

/// Whether a parameter is one of what makes virtual tokens, by its path.
pub(crate) fn is_of_prompt(path: &str) -> bool {
    path.split('.').next() == Some(PROMPT_ENCODER)
}

/// The modules of a model, by what a tuner's targets may name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modules {
    /// Every module that has a parameter.
    pub all: BTreeSet<String>,
    /// The linear layers that are not trained whole.
    pub linear_layers: BTreeSet<String>,
    /// Those that have a bias.
    pub biased: BTreeSet<String>,
    /// The layer norms.
    pub layer_norms: BTreeSet<String>,
}
