//! What is odd about an adapter's files and does not stop them from being loaded.

use std::fmt;

/// Something that was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A field of `adapter_config.json` that this crate does not know: a newer PEFT may mean something by it.
    UnknownField {
        /// Its name.
        field: String,
        /// ` (nearest: …)`.
        nearest: String,
    },
    /// A tensor of `adapter_model.safetensors` that the model has no place for.
    UnknownTensor {
        /// Its key.
        key: String,
        /// ` (nearest: …)`.
        nearest: String,
    },
    /// The base model is meant as it was at one commit of its repository.
    Revision {
        /// The commit, branch or tag.
        revision: String,
    },
    /// Names of modules that no tensor belongs to.
    UnusedNames {
        /// The field that lists them.
        field: String,
        /// The names.
        names: Vec<String>,
    },
    /// The file lacks what the base model has.
    FromBaseModel {
        /// The names of the parameters.
        names: Vec<String>,
    },
    /// The adapter was trained on a base model of another content.
    BaseContent {
        /// The digest in the file.
        file: String,
        /// The name of the base model that it is loaded on.
        model: String,
        /// Its digest.
        found: String,
    },
    /// The adapter was trained on a base model of another name.
    BaseModel {
        /// The name in the file.
        file: String,
        /// The name of the base model that it is loaded on.
        model: String,
    },
}

/// The beginning of a digest.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::UnknownField { field, nearest } => {
                write!(f, "adapter_config.json: field {field:?} is not known{nearest} and was ignored")
            }
            Self::UnknownTensor { key, nearest } => {
                write!(f, "adapter_model.safetensors: tensor {key} has no place in the model{nearest} and was ignored")
            }
            Self::Revision { revision } => write!(
                f,
                "adapter_config.json: the base model is meant at the revision {revision:?}, and is taken as it is found; give --model a folder \
                 of that revision"
            ),
            Self::UnusedNames { field, names } => {
                write!(
                    f,
                    "adapter_config.json: {field} names {}, of which there are no tensors: passed over",
                    names.join(", ")
                )
            }
            Self::FromBaseModel { names } => write!(
                f,
                "adapter_model.safetensors: no tensors of {}: there the base model stays as it is, as in PEFT",
                names.join(", ")
            ),
            Self::BaseContent { file, model, found } => write!(
                f,
                "the adapter was trained on other weights than those of {model:?} (SHA-256 {}, here {}); its predictions mean little there",
                short(file),
                short(found)
            ),
            Self::BaseModel { file, model } => {
                write!(f, "the adapter was trained on the base model {file:?}, and is loaded on {model:?}")
            }
        }
    }
}
