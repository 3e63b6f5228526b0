//! The errors of this crate.

use std::path::PathBuf;

/// An error of this crate. Each message says what to do next. A cause that stands in the message (`r#source`) is not told as the error's
/// source again.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Of the fields: the messages say what they are.
pub enum Error {
    /// An error of the data.
    #[error(transparent)]
    Data(#[from] glue::Error),
    /// An error of the model.
    #[error(transparent)]
    Model(#[from] peft::Error),
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A tokenizer that does not load or does not encode.
    #[error("{path}: {reason}; expected the tokenizer of a Hugging Face model")]
    Tokenizer { path: PathBuf, reason: String },
    /// A tokenizer without the tokens that stand around sentences.
    #[error(
        "{path}: it adds no special tokens, and its vocabulary has no {token}, which every sequence of {architecture} needs; take the \
         tokenizer of the original model, or name the token in tokenizer_config.json"
    )]
    NoSpecialTokens { path: PathBuf, architecture: String, token: String },
    /// A token that the model has no vector for.
    #[error(
        "{path}: the token {token:?} has the id {id}, and the model's table of words {rows} rows (vocab_size in config.json); take the \
         tokenizer that the model was trained with, or enlarge the table (resize_token_embeddings in transformers)"
    )]
    TokenWithoutRow { path: PathBuf, token: String, id: u32, rows: usize },
    /// A setting that no run can have.
    #[error("setting {name} is {found}, expected {expected}")]
    Setting { name: &'static str, found: String, expected: String },
    /// A task without what a run needs.
    #[error("{task} has no {what}: {hint}")]
    NotTrainable { task: String, what: &'static str, hint: &'static str },
    /// A trained parameter that the loss does not depend on.
    #[error(
        "parameter {name} is trained, but no gradient reaches it: an operation cuts it; this is a bug, please report it"
    )]
    CutGradient { name: String },
    /// A device whose memory does not suffice.
    #[error(
        "out of memory for {needed}: {found}; lower max_length, train fewer parameters, have fewer runs at once, end what else uses \
         the card, or take another device; the run goes on from its last step when it is asked for again"
    )]
    OutOfMemory { needed: String, found: String },
    /// A loss that is not a finite number where every step counts.
    #[error("the loss of step {step} is not a finite number; lower the learning rate")]
    Diverged { step: usize },
    /// A model whose outputs are no predictions.
    #[error(
        "{count} of {of} examples of {task} have no prediction: the model's outputs are not finite numbers, as its training diverged or its \
         weights are broken; predict with another adapter, or train with a lower learning rate"
    )]
    NoPrediction { task: String, count: usize, of: usize },
    /// A run that diverged before any evaluation of a model with finite outputs.
    #[error("{run}: expected trained weights, found a run that diverged {when}; lower the learning rate")]
    DivergedRun { run: String, when: String },
    /// An error on one of the devices that share the batches of a run.
    #[error("{device}: {source}")]
    OnDevice { device: String, r#source: Box<Error> },
    /// A file that cannot be read or written.
    #[error("{path}: {source}; check that the folder exists and may be written")]
    File { path: PathBuf, r#source: std::io::Error },
    /// A record or checkpoint that is not what it should be.
    #[error("{path}: expected {expected}, found {found}; remove the file to run again from the start")]
    Content { path: PathBuf, expected: &'static str, found: String },
    /// A record or checkpoint of a later version of this program.
    #[error(
        "{path}: expected {expected} in a format up to version {known}, found version {found}, which a later version of this program wrote; \
         take that program, or remove the file to run again from the start"
    )]
    LaterFormat { path: PathBuf, expected: &'static str, found: u64, known: u64 },
    /// A file of predictions that does not parse.
    #[error(
        "{path}: expected the predictions of a run for its validation data, found {found}; remove the file, and what is said of the run \
             is said of its scores alone"
    )]
    Predictions { path: PathBuf, found: String },
    /// A file of batches that cannot be replayed.
    #[error(
        "{path}: {found}; expected an npz file with `steps`, and input_ids, attention_mask and labels of each step"
    )]
    Batches { path: PathBuf, found: String },
    /// An adapter that is no longer what a run was to start from.
    #[error(
        "{path}: expected the adapter with the digest {expected}, found {found}; put the former back, or name the start anew"
    )]
    AdapterChanged { path: PathBuf, expected: String, found: String },
    /// A run that starts from one that has not come to its end.
    #[error("{run} starts from {start}, which has not come to its end: {stop}")]
    StartUnfinished { run: String, start: String, stop: String },
    /// A recipe or a study that cannot be read.
    #[error("{path}: {found}; expected {expected}")]
    Recipe { path: PathBuf, found: String, expected: String },
    /// A run that is to predict and has no end to predict from.
    #[error("{run}: expected a run that has come to its end, found {stop}")]
    Unfinished { run: String, stop: String },
    /// A run that was asked to stop before it had begun or gone on.
    #[error("{place}: stopped as asked; ask for it again to go on")]
    Interrupted { place: String },
    /// A run that another process is making.
    #[error(
        "{run}: {holder} is making it, which has the lock {path}; ask for it again when that has ended, or wait for its record (without \
         --no-wait)"
    )]
    Busy { run: String, holder: String, path: PathBuf },
    /// A disk without the space for what a run writes.
    #[error(
        "{folder}: up to {need} MB will be written there, and {free} MB are free; free some, or name another folder"
    )]
    NoSpace { folder: PathBuf, need: u64, free: u64 },
    /// A run for which there was no time.
    #[error(
        "the time budget was spent after {done} of {of} sentences were tokenized, and nothing is trained; give a longer one"
    )]
    OutOfTime { done: usize, of: usize },
    /// A run that is not to be made.
    #[error(
        "expected the record of {run}, found none that is of the data and the model that are here; let it be trained (in a notebook: PROFILE=standard)"
    )]
    NoRecord { run: String },
    /// A run whose trained weights were not kept.
    #[error("run {key}: no trained weights were kept; run it again with weights kept (`--keep-weights`)")]
    NoWeights { key: String },
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;
