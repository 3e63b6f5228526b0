//! Tokenisation of examples by a model's own `tokenizer.json`.

use glue::Example;
use peft::{Pretrained, Sequence};
use tokenizers::{EncodeInput, TruncationParams};

use crate::error::{Error, Result};

/// A model's tokenizer, with its own truncation and without padding.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    path: std::path::PathBuf,
}

impl Tokenizer {
    /// The tokenizer of a model's folder. Sequences are cut to `max_length` tokens, the longer sentence of a pair first; the
    /// padding that a `tokenizer.json` may ask for is switched off.
    ///
    /// # Errors
    /// When the file is missing or not a tokenizer, or `max_length` exceeds the model's positions.
    pub fn load(pretrained: &Pretrained, max_length: usize) -> Result<Self> {
        let path = pretrained.tokenizer_path();
        let positions = pretrained.max_length();
        if !(4..=positions).contains(&max_length) {
            let expected = format!("4 to {positions}, the positions of the model");
            return Err(Error::Setting { name: "max_length", found: max_length.to_string(), expected });
        }
        let failed = |error: tokenizers::Error| Error::Tokenizer { path: path.clone(), reason: error.to_string() };
        let mut tokenizer = tokenizers::Tokenizer::from_file(&path).map_err(failed)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(TruncationParams { max_length, ..Default::default() })).map_err(failed)?;
        Ok(Self { tokenizer, path })
    }

    /// One sequence for each example: `[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]`.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, examples: &[Example]) -> Result<Vec<Sequence>> {
        let inputs: Vec<EncodeInput> = examples
            .iter()
            .map(|example| match &example.second {
                Some(second) => (example.first.as_str(), second.as_str()).into(),
                None => example.first.as_str().into(),
            })
            .collect();
        let encodings = self.tokenizer.encode_batch_fast(inputs, true).map_err(|error| self.failed(error))?;
        Ok(encodings
            .iter()
            .map(|encoding| Sequence {
                input_ids: encoding.get_ids().to_vec(),
                token_type_ids: encoding.get_type_ids().to_vec(),
            })
            .collect())
    }

    /// The pieces an example is cut into, `[CLS]` and `[SEP]` among them.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn pieces(&self, example: &Example) -> Result<Vec<String>> {
        let sequence = self.encode(std::slice::from_ref(example))?.remove(0);
        Ok(sequence.input_ids.iter().map(|&id| self.tokenizer.id_to_token(id).unwrap_or_default()).collect())
    }

    fn failed(&self, error: tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: error.to_string() }
    }
}
