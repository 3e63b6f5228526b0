//! Under which conditions an adapter was trained, where PEFT's files have no field for them: in the metadata of
//! `adapter_model.safetensors`, which PEFT passes over.

use std::collections::BTreeMap;
use std::path::Path;

use super::weights::Weights;
use crate::error::Result;

const MAX_LENGTH: &str = "peft_glue.max_length";
const BASE_SHA256: &str = "peft_glue.base_model_sha256";

/// What an adapter was trained under, as far as its file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Tokens of a sequence, to which longer ones were cut.
    pub max_length: Option<usize>,
    /// The digest of the base model's encoder ([`Pretrained::sha256`](crate::Pretrained::sha256)).
    pub base_sha256: Option<String>,
}

impl Conditions {
    /// Those of the adapter in `folder`.
    ///
    /// # Errors
    /// When its tensors cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        Ok(Self::of(Weights::read(folder)?.metadata()))
    }

    pub(super) fn of(metadata: &BTreeMap<String, String>) -> Self {
        Self {
            max_length: metadata.get(MAX_LENGTH).and_then(|length| length.parse().ok()),
            base_sha256: metadata.get(BASE_SHA256).cloned(),
        }
    }

    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        let length = self.max_length.map(|length| (MAX_LENGTH.to_string(), length.to_string()));
        let base = self.base_sha256.clone().map(|digest| (BASE_SHA256.to_string(), digest));
        length.into_iter().chain(base).collect()
    }
}
