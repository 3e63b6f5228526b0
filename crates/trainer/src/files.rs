//! The files of a run, with this crate's errors.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folder of one run, and where its files lie.
pub(crate) struct RunFolder(PathBuf);

impl RunFolder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    /// The trained weights of the best evaluation.
    pub(crate) fn weights(&self) -> PathBuf {
        self.0.join("weights.safetensors")
    }

    /// The file that ends the run after its present step.
    pub(crate) fn stop(&self) -> PathBuf {
        self.0.join("stop")
    }
}

/// Writes `bytes` to `path`; a reader sees the old file or the new one, whenever the process is killed.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    glue::files::write_atomically(path, bytes).map_err(|source| Error::File { path: path.into(), source })
}

/// The file's bytes, or `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.into(), source }),
    }
}
