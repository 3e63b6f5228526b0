//! What can go wrong between a run and its record.

use std::path::PathBuf;

/// An error of this crate. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
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
    #[error("{path}: {reason}; expected the tokenizer.json of a Hugging Face model")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A setting that no run can have.
    #[error("setting {name} is {found}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A task without what a run needs.
    #[error("{task} has no {what}: {hint}")]
    NotTrainable {
        /// The task.
        task: String,
        /// What is missing.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A trained parameter that the loss does not depend on.
    #[error(
        "parameter {name} is trained, but no gradient reaches it: an operation cuts it; this is a bug, please report it"
    )]
    CutGradient {
        /// The parameter.
        name: String,
    },
    /// A device whose memory does not suffice.
    #[error(
        "out of memory for {needed}: {found}; lower max_length, train fewer parameters, have fewer runs at once, end what else uses \
         the card, or take another device; the run goes on from its last step when it is asked for again"
    )]
    OutOfMemory {
        /// What it was to hold.
        needed: String,
        /// What there is.
        found: String,
    },
    /// A loss that is not a finite number where every step counts.
    #[error("the loss of step {step} is not a finite number; lower the learning rate")]
    Diverged {
        /// The step, counted from 1.
        step: usize,
    },
    /// What went wrong on one of several devices that work on one run.
    #[error("{device}: {source}")]
    OnDevice {
        /// The device.
        device: String,
        /// What.
        source: Box<Error>,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}; check that the folder exists and may be written")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A record or checkpoint that does not parse.
    #[error("{path}: expected {expected}, found {found}; remove the file to run again from the start")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What is wrong.
        found: String,
    },
    /// A file of batches that cannot be replayed.
    #[error(
        "{path}: {found}; expected an npz file with `steps`, and input_ids, attention_mask and labels of each step"
    )]
    Batches {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// An adapter that is no longer what a run was to start from.
    #[error(
        "{path}: expected the adapter with the digest {expected}, found {found}; put the former back, or name the start anew"
    )]
    AdapterChanged {
        /// The folder.
        path: PathBuf,
        /// The digest of what was there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A run that starts from one that has not come to its end.
    #[error("{run} starts from {start}, which has not come to its end: {stop}")]
    StartUnfinished {
        /// The run.
        run: String,
        /// What it starts from.
        start: String,
        /// Why that ended.
        stop: String,
    },
    /// A recipe that cannot be read.
    #[error("{path}: {found}; expected {expected}")]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A run that is to predict and has no end to predict from.
    #[error("{run}: expected a run that has come to its end, found {stop}")]
    Unfinished {
        /// The run.
        run: String,
        /// Why it ended.
        stop: String,
    },
    /// A run whose trained weights were not kept.
    #[error("run {key}: no trained weights were kept; run it again with weights kept (`--keep-weights`)")]
    NoWeights {
        /// The run's key.
        key: String,
    },
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;
