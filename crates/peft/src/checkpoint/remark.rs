//! What a user should know of how a checkpoint was read.

use std::fmt;
use std::path::PathBuf;

use crate::pooling::Pooling;

/// Something about a checkpoint that is no error, and that a result depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// `config.json` does not say which architecture it is.
    ModelType {
        /// The file.
        path: PathBuf,
        /// The `model_type` that was taken.
        taken: &'static str,
        /// What it follows from.
        from: String,
    },
    /// Fields of `config.json` that transformers' class has not.
    UnknownFields {
        /// The file.
        path: PathBuf,
        /// Each with the field that was meant, perhaps.
        fields: Vec<String>,
    },
    /// Tensors of the encoder that the model of `config.json` has no place for.
    UnusedTensors {
        /// The folder.
        folder: PathBuf,
        /// How many.
        count: usize,
        /// One of them.
        example: String,
    },
    /// Parameters that the checkpoint lacks and the logits depend on, besides those that always begin anew.
    NewParameters {
        /// The folder.
        folder: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// The tokenizer's file adds no special tokens.
    SpecialTokens {
        /// The file.
        path: PathBuf,
        /// What a pair becomes.
        sequence: String,
    },
    /// The model has fewer positions than the default length.
    Shortened {
        /// The folder.
        folder: PathBuf,
        /// What sequences are cut to.
        taken: usize,
        /// The default.
        default: usize,
    },
    /// The pooling is another than `config.json` says.
    OtherPooling {
        /// The folder.
        folder: PathBuf,
        /// What `config.json` says.
        said: Pooling,
        /// What was asked for.
        taken: Pooling,
    },
    /// The checkpoint's classifier has the task's classes in another order.
    LabelsReordered {
        /// The folder.
        folder: PathBuf,
        /// Its labels, in its order.
        found: Vec<String>,
    },
    /// The classes of the checkpoint's classifier have no names.
    LabelsByNumber {
        /// The folder.
        folder: PathBuf,
        /// The task's labels, in whose order they are taken.
        taken: Vec<String>,
    },
    /// The checkpoint's classifier is none for the task.
    NewOutput {
        /// The folder.
        folder: PathBuf,
        /// What its classifier is for.
        found: String,
        /// What the task needs.
        expected: String,
    },
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::ModelType { path, taken, from } => {
                write!(f, "{}: no model_type; {taken:?} is taken, after {from}", path.display())
            }
            Self::UnknownFields { path, fields } => {
                let fields = fields.join(", ");
                write!(
                    f,
                    "{}: without effect, as in transformers, whose class has no such field: {fields}",
                    path.display()
                )
            }
            Self::UnusedTensors { folder, count, example } => write!(
                f,
                "{}: {count} tensors of the encoder have no place in the model that config.json describes, such as {example}",
                folder.display()
            ),
            Self::NewParameters { folder, names } => write!(
                f,
                "{}: the checkpoint lacks {}: new, trained whole, and saved with the adapter",
                folder.display(),
                names.join(", ")
            ),
            Self::SpecialTokens { path, sequence } => write!(
                f,
                "{}: the post_processor adds no special tokens; a sequence is {sequence}, by the rule of the architecture",
                path.display()
            ),
            Self::Shortened { folder, taken, default } => write!(
                f,
                "{}: sequences are cut to {taken} tokens and not to {default}, since the model has no more positions",
                folder.display()
            ),
            Self::OtherPooling { folder, said, taken } => write!(
                f,
                "{}: config.json says classifier_pooling {said}, and {taken} is taken as the settings say",
                folder.display()
            ),
            Self::LabelsReordered { folder, found } => write!(
                f,
                "{}: the checkpoint's classifier is taken, its classes by their names in id2label: {}",
                folder.display(),
                found.join(", ")
            ),
            Self::LabelsByNumber { folder, taken } => write!(
                f,
                "{}: the checkpoint's classifier is taken, its classes, which id2label does not name, as {}",
                folder.display(),
                taken.join(", ")
            ),
            Self::NewOutput { folder, found, expected } => write!(
                f,
                "{}: the checkpoint's classifier is for {found} and not for {expected}: a new one takes its place",
                folder.display()
            ),
        }
    }
}
