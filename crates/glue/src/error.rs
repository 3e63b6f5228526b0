//! What can be wrong with GLUE data.

use std::path::PathBuf;

/// An error of this crate. Each message names the file and says what to do next. A cause that stands in the message (`r#source`) is not
/// told as the error's source again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A line that is not what the task's format says.
    #[error(
        "{path}, line {line}: expected {expected}, found {found}; compare the file with GLUE's own, or fetch it again"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file that cannot be opened.
    #[error("{path}: cannot be read ({source}); expected {expected}. Set GLUE_DIR to a folder that has it{or}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What else can be done.
        or: &'static str,
        /// Why.
        r#source: std::io::Error,
    },
    /// A file that cannot be read to its end.
    #[error("{path}: cannot be read to its end ({source}); compare the file with GLUE's own, or fetch it again")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder without GLUE.
    #[error(
        "{path}: expected a folder with GLUE's task folders (CoLA, SST-2, MRPC, ...), found {found}; correct GLUE_DIR, or unset it"
    )]
    NoGlue {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A split that the task or this copy of it has not.
    #[error("{task} has no {split} split {place} (here are: {choices})")]
    NoSplit {
        /// The task.
        task: &'static str,
        /// The split.
        split: String,
        /// `in GLUE`, or the folder.
        place: String,
        /// The splits there are.
        choices: String,
    },
    /// A name that is no task's.
    #[error("unknown task {found:?}; the tasks are: {choices}")]
    UnknownTask {
        /// As asked for.
        found: String,
        /// The names there are.
        choices: String,
    },
    /// Predictions that cannot be scored or written.
    #[error("{what}: expected {expected}, found {found}")]
    Predictions {
        /// Which.
        what: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A line of a submission file that GLUE's server does not take.
    #[error("{path}, line {line}: expected {expected}, found {found}; predict the whole test file and write it again")]
    SubmissionLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A submission whose files are not those that GLUE's server takes.
    #[error(
        "{path}: expected {expected}, found {found}; write what is missing (predictions, or `submission::majority`), move away what is not of a submission"
    )]
    SubmissionFiles {
        /// The file or the folder of the files.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A split whose labels are not of the kind that is needed.
    #[error("{task}, {split}: expected {expected}, found {found}; choose a split and a task that have them")]
    NoLabels {
        /// The task.
        task: &'static str,
        /// The split.
        split: String,
        /// What labels are needed.
        expected: &'static str,
        /// What labels there are.
        found: &'static str,
    },
    /// Sets too large to compare each example of one with each of the other.
    #[error(
        "{task}: expected at most {limit} pairs of a training and a validation example, found {found}; choose a smaller task"
    )]
    TooManyPairs {
        /// The task.
        task: &'static str,
        /// The pairs that are compared within about a minute.
        limit: usize,
        /// The pairs there are.
        found: usize,
    },
    /// A download that failed.
    #[error("{url}: cannot be downloaded ({reason}); put GLUE's task folders into a folder and set GLUE_DIR to it")]
    Download {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// An address that does not answer.
    #[error("{url}: does not answer ({reason}); put GLUE's task folders into a folder and set GLUE_DIR to it")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// A file that cannot be written.
    #[error("{path}: cannot be written ({source}); check that the folder exists and may be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        r#source: std::io::Error,
    },
    /// An error of the data frame library.
    #[error(transparent)]
    Frame(#[from] polars::error::PolarsError),
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;
