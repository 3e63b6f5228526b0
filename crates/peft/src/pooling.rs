//! Pooling: from the hidden states of a sequence to one vector.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a sequence's hidden states become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The first token, under BERT's pooler: a dense layer and tanh. Other architectures have no pooler, or have it in their head.
    #[default]
    Cls,
    /// The mean over all tokens, without BERT's pooler: what sentence encoders such as all-MiniLM-L6-v2 were trained with.
    Mean,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
        })
    }
}
