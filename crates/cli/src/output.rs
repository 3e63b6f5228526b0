//! Folders that results go to.

use std::path::Path;

use anyhow::{Result, bail};
use trainer::check_writable;

/// Fails if nothing can be written to the folder that an option names, or it is one of those that are read, by any spelling or link: what a
/// command reads from stays as it is.
pub(crate) fn check_output<'a>(option: &str, folder: &Path, read: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    if let Ok(output) = folder.canonicalize()
        && let Some(read) = read.into_iter().find(|read| read.canonicalize().is_ok_and(|read| read == output))
    {
        bail!(
            "{option} {} is the folder {} that is read from, and would be overwritten; name another",
            folder.display(),
            read.display()
        );
    }
    Ok(check_writable(folder)?)
}
