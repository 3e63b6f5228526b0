//! Files and folders under a temporary name, and what killed processes leave of them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Result;
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

/// What a temporary name begins with.
const PREFIX: &str = ".peft-glue-";

/// A new file in `folder`, with the rights that the user's umask leaves.
pub(crate) fn file(folder: &Path) -> Result<NamedTempFile> {
    loop {
        let file = builder(0o666).tempfile_in(folder)?;
        if is_claimed(file.as_file(), file.path()) {
            return Ok(file);
        }
    }
}

/// A new folder in `folder`, and the lock on it; with the rights that the user's umask leaves.
pub(crate) fn folder(folder: &Path) -> Result<(TempDir, Option<File>)> {
    loop {
        let made = builder(0o777).tempdir_in(folder)?;
        // Where a folder cannot be opened it has no lock, and who sweeps cannot have one either.
        let Ok(lock) = File::open(made.path()) else { return Ok((made, None)) };
        if is_claimed(&lock, made.path()) {
            return Ok((made, Some(lock)));
        }
    }
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "rights are of Unix"))]
fn builder(rights: u32) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(rights));
    builder
}

/// Locks what was just made. It is not there any more where another process swept it away before it was locked.
fn is_claimed(file: &File, path: &Path) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && path.exists()
}

/// Removes what killed processes have left in `folder` under temporary names. What a living process has locked stays; so does what cannot
/// be removed, and all of it where the file system has no locks.
pub fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let is_temporary = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    for entry in entries.flatten().filter(|entry| is_temporary(&entry.file_name())) {
        remove_if_abandoned(&entry.path());
    }
}

fn remove_if_abandoned(path: &Path) {
    let is_folder = path.is_dir();
    // Over a network a lock is had of what may be written alone; a folder cannot be opened so.
    let Ok(file) = OpenOptions::new().read(true).write(!is_folder).open(path) else { return };
    if file.try_lock().is_ok() {
        let _ = if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn what_nobody_holds_is_swept_away_and_what_somebody_writes_or_has_another_name_stays() {
        let there = tempfile::tempdir().unwrap();
        let (held, (held_folder, _lock)) = (file(there.path()).unwrap(), folder(there.path()).unwrap());
        let left = there.path().join(".peft-glue-left");
        std::fs::write(&left, "half").unwrap();
        let left_folder = there.path().join(".peft-glue-folder");
        std::fs::create_dir(&left_folder).unwrap();
        std::fs::write(left_folder.join("weights"), "half").unwrap();
        let other = there.path().join(".tmpabcdef");
        std::fs::write(&other, "another program's").unwrap();
        sweep(there.path());
        assert!(held.path().exists() && held_folder.path().exists() && other.exists());
        assert!(!left.exists() && !left_folder.exists());
        sweep(&there.path().join("not/there"));
    }
}
