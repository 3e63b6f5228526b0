//! The files of a run, with this crate's errors.

use std::path::{Path, PathBuf};

use serde::Serialize;

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

    /// The digests of what the run is made from.
    pub(crate) fn inputs(&self) -> PathBuf {
        self.0.join("inputs.json")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The file that ends the run after its present step.
    pub(crate) fn stop(&self) -> PathBuf {
        self.0.join("stop")
    }
}

/// Writes `bytes` to `path`; a reader sees the old file or the new one, whenever the process is killed.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    ::files::write(path, bytes).map_err(|source| Error::File { path: path.into(), source })
}

/// Writes a value as JSON, as a whole.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let unwritable = |error: serde_json::Error| Error::Content {
        path: path.into(),
        expected: "what serializes",
        found: error.to_string(),
    };
    write_atomically(path, &serde_json::to_vec_pretty(value).map_err(unwritable)?)
}

/// Fails if no file can be written into `folder`, or where it is missing beside its place. Nothing is left behind.
///
/// # Errors
/// The message names the folder.
pub fn check_writable(folder: &Path) -> Result<()> {
    ::files::check_writable(folder).map_err(|source| Error::File { path: folder.into(), source })
}

/// The file's bytes, or `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn a_folder_that_can_be_made_or_written_passes_and_nothing_is_left_in_it() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(folder.path()).unwrap();
        check_writable(&folder.path().join("a/b")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_or_above_it_and_a_place_that_takes_none_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for place in [file.clone(), file.join("below")] {
            let error = check_writable(&place).unwrap_err().to_string();
            assert!(error.contains(place.to_str().unwrap()), "{error}");
        }
        #[cfg(target_os = "linux")]
        assert!(check_writable(Path::new("/proc/records")).unwrap_err().to_string().contains("/proc/records"));
    }
}
