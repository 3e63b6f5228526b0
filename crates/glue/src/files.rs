//! Files that are whole or not there: written beside their place, then renamed.

use std::io::{Result, Write};
use std::path::Path;

/// Writes `bytes` to `path`, whose folder is made if it is missing; a reader sees the old file or the new one, whenever the
/// process is killed.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
