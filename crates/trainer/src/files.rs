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

    /// What it predicted for its validation data at the best evaluation.
    pub(crate) fn predictions(&self) -> PathBuf {
        self.0.join("predictions.safetensors")
    }

    /// The digests of what the run is made from.
    pub(crate) fn inputs(&self) -> PathBuf {
        self.0.join("inputs.json")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Fails where the disk has less space than a run of so many trained numbers and steps may write, which may keep its weights: each file
    /// once, and the largest once more, as a new one is written beside the old one.
    pub(crate) fn check_space(&self, trained: usize, keeps_weights: bool, steps: usize) -> Result<()> {
        let number = size_of::<f32>();
        // A parameter and its two moments; the weights; a line for each step, in the checkpoint and in the record.
        let checkpoint = 3 * trained * number + steps * BYTES_PER_STEP;
        let weights = if keeps_weights { trained * number } else { 0 };
        let all = 2 * checkpoint + weights + steps * BYTES_PER_STEP;
        let is_there = [self.checkpoint(), self.weights(), self.record()]
            .iter()
            .filter_map(|path| path.metadata().ok())
            .map(|about| about.len())
            .sum();
        check_space(&self.0, (all as u64).saturating_sub(is_there))
    }

    /// The file that a process holds the lock of while it makes the run.
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Whether a process makes the run now.
    pub(crate) fn is_claimed(&self) -> bool {
        ::files::is_locked(&self.lock())
    }

    /// Removes what killed processes have left, for who has made sure that no other is at work here: temporary files, also those of versions
    /// that called them `.tmp`, and, beside the record of a run that came to its end, the checkpoint.
    pub(crate) fn tidy(&self, is_final: bool) {
        ::files::sweep(&self.0);
        let names = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_left = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp"))
                || (is_final && *path == self.checkpoint())
        };
        // What cannot be removed is in nobody's way.
        names.filter(is_left).for_each(|path| drop(std::fs::remove_file(path)));
    }

    /// The same of a run that has its record, unless another process is at work here.
    pub(crate) fn tidy_finished(&self) {
        if self.0.is_dir() && matches!(::files::try_lock(&self.lock()), Ok(::files::Attempt::Taken(_))) {
            self.tidy(true);
        }
    }

    /// The file that ends the run after its present step.
    pub(crate) fn stop(&self) -> PathBuf {
        self.0.join("stop")
    }
}

/// What a step's loss takes in a record, about.
const BYTES_PER_STEP: usize = 150;

/// Fails where fewer than so many bytes can be written to the disk of `folder`; it may not be there yet.
///
/// # Errors
/// The message names the folder, the need and the free space.
pub fn check_space(folder: &Path, need: u64) -> Result<()> {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    match ::files::free_space(folder) {
        Some(free) if free < need => {
            Err(Error::NoSpace { folder: folder.into(), need: megabytes(need), free: free / 1_000_000 })
        }
        _ => Ok(()),
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

/// What lies in a folder, in the order of the names; nothing where there is no folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::File { path: folder.into(), source };
    let mut paths = match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    paths.sort();
    Ok(paths)
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
    fn a_disk_without_the_space_is_refused_by_the_folder_the_need_and_what_is_free() {
        let folder = tempfile::tempdir().unwrap();
        check_space(folder.path(), 1).unwrap();
        let error = check_space(&folder.path().join("runs"), 10_u64.pow(18)).unwrap_err().to_string();
        assert!(
            error.contains("runs") && error.contains("1000000000000 MB") && error.contains("MB are free"),
            "{error}"
        );
        let run = RunFolder::new(folder.path().join("run"));
        run.check_space(1000, true, 10).unwrap();
        assert!(run.check_space(10_usize.pow(15), false, 0).unwrap_err().to_string().contains("24000000000 MB"));
    }

    #[test]
    fn beside_a_final_record_what_a_killed_process_left_goes_and_all_else_stays() {
        let there = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(there.path().into());
        let names = ["record.json", "weights.safetensors", "inputs.json", "checkpoint.safetensors", ".tmpa1b2c3"];
        let put = || names.iter().for_each(|name| std::fs::write(there.path().join(name), "").unwrap());
        let left = || names.into_iter().filter(|name| there.path().join(name).exists()).count();
        put();
        let lock = ::files::try_lock(&folder.lock()).unwrap();
        folder.tidy_finished();
        assert_eq!(left(), 5, "somebody is at work");
        drop(lock);
        folder.tidy_finished();
        assert_eq!(left(), 3);
        put();
        folder.tidy(false);
        assert!(folder.checkpoint().exists() && left() == 4);
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
