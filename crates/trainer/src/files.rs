//! Files of a run, with this crate's errors.

use std::path::Path;

use crate::error::{Error, Result};

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
