//! BitFit.

use serde::{Deserialize, Serialize};

use super::targets::Targets;

/// BitFit (Ben Zaken et al. 2022): trains the bias terms of the encoder, those of its layer norms and its pooler among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BitFit {
    /// The modules whose biases are trained; `None`: all. The pooler's bias is trained in any case, as in the paper's code.
    /// The paper's small subset is `query` and `intermediate.dense`.
    pub target_modules: Option<Targets>,
}
