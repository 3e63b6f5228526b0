//! Provenance: the run that made an adapter or a merged checkpoint, in a file `run.json` beside its files. PEFT and transformers pass
//! over it.

use std::path::Path;

use crate::error::{Error, Result};
use crate::files;
use crate::run::Run;

const FILE: &str = "run.json";

/// The file, as name and bytes, that says that this run made what lies beside it.
///
/// # Errors
/// When the run does not serialize.
pub fn file(run: &Run) -> Result<(&'static str, Vec<u8>)> {
    let json = serde_json::to_vec_pretty(run).map_err(|error| unreadable(Path::new(FILE), &error))?;
    Ok((FILE, json))
}

/// Says in `folder` that this run made what lies there.
///
/// # Errors
/// When the file cannot be written.
pub fn write(folder: &Path, run: &Run) -> Result<()> {
    let (name, bytes) = file(run)?;
    files::write_atomically(&folder.join(name), &bytes)
}

/// The run that made what lies in `folder`, if it says so.
///
/// # Errors
/// When there is a file that does not parse.
pub fn read(folder: &Path) -> Result<Option<Run>> {
    let path = folder.join(FILE);
    let parsed = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|error| unreadable(&path, &error));
    files::read(&path)?.map(parsed).transpose()
}

fn unreadable(path: &Path, error: &serde_json::Error) -> Error {
    Error::Content { path: path.into(), expected: "the run that made what lies beside it", found: error.to_string() }
}
