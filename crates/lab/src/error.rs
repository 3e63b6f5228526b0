//! Errors of showing charts, tables and files.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A chart could not be written as JSON.
    #[error("the chart {title:?} could not be written for plotly")]
    Json {
        /// The chart's title.
        title: String,
        /// What the library says.
        source: serde_json::Error,
    },
    /// A file could not be read.
    #[error("{} could not be read; run the cell that writes it again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The data of a task.
    #[error(transparent)]
    Data(#[from] glue::Error),
}
