//! Locks between processes. The system ends one when its process does, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Result, Write};
use std::path::Path;

use crate::writers::make_folder;

/// A lock that this process holds until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// What came of trying to take a lock.
#[derive(Debug)]
pub enum Attempt {
    /// It is held.
    Taken(Lock),
    /// Somebody else holds it, such as `process 1234`.
    Held(String),
    /// The file system has no locks.
    Unsupported(std::io::Error),
}

/// Tries to take the lock of a file, which is made if it is missing, and stays: whoever removed it would let two processes hold locks of
/// two files of one name.
///
/// # Errors
/// When the file cannot be opened for writing.
pub fn try_lock(path: &Path) -> Result<Attempt> {
    make_folder(crate::writers::folder_of(path))?;
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => {
            // For who reads it; a full disk is no reason not to hold the lock.
            let _ = file.set_len(0).and_then(|()| write!(file, "process {}", std::process::id()));
            Ok(Attempt::Taken(Lock { _file: file }))
        }
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(path).unwrap_or_default();
            Ok(Attempt::Held(if holder.is_empty() { "another process".into() } else { holder }))
        }
        Err(TryLockError::Error(error)) => Ok(Attempt::Unsupported(error)),
    }
}

/// Whether a process holds the lock of a file; not where there is no such file, or the file system has no locks.
pub fn is_locked(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).open(path) else { return false };
    // A shared lock is taken and let go in no time; whoever tries to take the file's in between tries again.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

    use super::*;

    #[test]
    fn a_lock_is_had_once_and_again_when_its_holder_is_gone_and_says_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/lock");
        let Attempt::Taken(lock) = try_lock(&path).unwrap() else { panic!("nobody has it") };
        let Attempt::Held(by) = try_lock(&path).unwrap() else { panic!("it is held") };
        assert_eq!(by, format!("process {}", std::process::id()));
        assert!(is_locked(&path));
        drop(lock);
        assert!(!is_locked(&path) && !is_locked(&folder.path().join("none")));
        assert!(matches!(try_lock(&path).unwrap(), Attempt::Taken(_)));
    }
}
