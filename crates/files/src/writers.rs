//! Writers: of a file, and of files that belong together.

use std::fs::File;
use std::io::{ErrorKind, Result, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::temporary::{self, sweep};

/// Writes `bytes` to `path`, whose folder is made if it is missing. A reader sees the old file or the new one, whenever the process is
/// killed; when this returns, the new one is on the disk.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = folder_of(path);
    make_folder(folder)?;
    sweep(folder);
    written(folder, bytes)?.persist(path)?;
    sync(folder)
}

/// Writes files, as names and bytes, that belong together, to `folder`, which is made if it is missing. The last is the one without which
/// the folder is nothing, such as the configuration of an adapter.
///
/// A folder that is new is whole or not there, whenever the process is killed. One that is there has, at every moment, all files of before,
/// or no last file, or all new ones; what else lies in it stays.
///
/// # Errors
/// When the folder or a file cannot be written.
pub fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    if !folder.exists() && is_made(folder, files)? {
        return Ok(());
    }
    sweep(folder);
    let mut beside = Vec::new();
    for (name, bytes) in files {
        beside.push((written(folder, bytes)?, folder.join(name)));
    }
    let Some((last, last_path)) = beside.pop() else { return Ok(()) };
    match std::fs::remove_file(&last_path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => sync(folder)?,
    }
    for (file, path) in beside {
        file.persist(path)?;
    }
    sync(folder)?;
    last.persist(last_path)?;
    sync(folder)
}

/// Fails if no file can be written into `folder`, or where it is missing beside its place. Nothing is left behind.
///
/// # Errors
/// As whoever writes there would fail.
pub fn check_writable(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        sweep(folder);
        return temporary::file(folder).map(drop);
    }
    let place = std::path::absolute(folder)?;
    // A file in the place of a folder above is no place to make one.
    let above = place.ancestors().skip(1).find(|above| above.exists()).unwrap_or(Path::new("/"));
    sweep(above);
    temporary::folder(above)?;
    // It may be a folder by now, which another process has made.
    if folder.exists() && !folder.is_dir() { Err(ErrorKind::NotADirectory.into()) } else { Ok(()) }
}

/// Makes a folder with these files; false where another process has made it meanwhile.
fn is_made(folder: &Path, files: &[(&str, &[u8])]) -> Result<bool> {
    let above = folder_of(folder);
    make_folder(above)?;
    sweep(above);
    let (made, _lock) = temporary::folder(above)?;
    for (name, bytes) in files {
        let mut file = File::create_new(made.path().join(name))?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    sync(made.path())?;
    match std::fs::rename(made.path(), folder) {
        Ok(()) => drop(made.keep()),
        Err(_) if folder.is_dir() => return Ok(false),
        Err(error) => return Err(error),
    }
    sync(above)?;
    Ok(true)
}

/// A file with these bytes, on the disk under a temporary name.
fn written(folder: &Path, bytes: &[u8]) -> Result<NamedTempFile> {
    let mut file = temporary::file(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The folder that something lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder and those above it that are missing.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    let missing = folder.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).count();
    std::fs::create_dir_all(folder)?;
    folder.ancestors().take(missing).try_for_each(|made| sync(folder_of(made)))
}

/// Puts a folder's names on the disk. Some file systems cannot, and keep them in their own time.
fn sync(folder: &Path) -> Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_over_an_older_one_in_folders_that_are_made_and_what_was_left_beside_it_goes() {
        let there = tempfile::tempdir().unwrap();
        let path = there.path().join("a/b/file");
        write(&path, b"old").unwrap();
        std::fs::write(there.path().join("a/b/.peft-glue-left"), "half").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&there.path().join("a/b")), ["file"]);
    }

    #[cfg(unix)]
    #[test]
    fn files_and_folders_have_the_rights_that_others_made_by_this_user_have() {
        use std::os::unix::fs::PermissionsExt;
        let there = tempfile::tempdir().unwrap();
        let rights = |name: &str| there.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
        std::fs::write(there.path().join("plain"), "").unwrap();
        std::fs::create_dir(there.path().join("plain folder")).unwrap();
        write(&there.path().join("file"), b"").unwrap();
        write_folder(&there.path().join("folder"), &[("file", b"")]).unwrap();
        write_folder(&there.path().join("folder"), &[("file", b""), ("other", b"")]).unwrap();
        assert_eq!(rights("file"), rights("plain"));
        assert_eq!(rights("folder"), rights("plain folder"));
        assert_eq!([rights("folder/file"), rights("folder/other")], [rights("plain"); 2]);
    }

    #[test]
    fn files_that_belong_together_are_written_to_a_new_folder_and_over_older_ones_and_others_stay() {
        let there = tempfile::tempdir().unwrap();
        let folder = there.path().join("new/adapter");
        write_folder(&folder, &[("weights", b"1"), ("config", b"one")]).unwrap();
        std::fs::write(folder.join("notes"), "of the user").unwrap();
        write_folder(&folder, &[("weights", b"2"), ("config", b"two")]).unwrap();
        assert_eq!(names(&folder), ["config", "notes", "weights"]);
        assert_eq!(std::fs::read(folder.join("weights")).unwrap(), b"2");
        assert_eq!(std::fs::read(folder.join("config")).unwrap(), b"two");
        assert_eq!(names(&there.path().join("new")), ["adapter"]);
    }

    #[test]
    fn while_files_are_written_over_older_ones_a_reader_never_sees_new_weights_beside_an_old_configuration() {
        let there = tempfile::tempdir().unwrap();
        let folder = there.path().join("adapter");
        let put = |number: usize| {
            let text = number.to_string();
            write_folder(&folder, &[("weights", text.as_bytes()), ("config", text.as_bytes())]).unwrap();
        };
        put(0);
        let done = std::sync::atomic::AtomicBool::new(false);
        let reads = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.parse::<usize>().ok();
                let mut reads = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    // Between two equal configurations nothing was begun: what lies between them is of them.
                    let (before, weights, after) = (number("config"), number("weights"), number("config"));
                    if let (Some(before), Some(after)) = (before, after)
                        && before == after
                    {
                        assert_eq!(weights, Some(before));
                        reads += 1;
                    }
                }
                reads
            });
            (1..200).for_each(put);
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert!(reads > 0);
    }
}
