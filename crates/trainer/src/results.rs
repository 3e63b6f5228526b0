//! Published results: records in a folder of the repository, thinned to what tables and charts need.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
use crate::record::{Record, StepLoss};

/// How many losses a published record keeps: as many as a chart's width tells apart, in less than 40 kB.
const LOSSES: usize = 150;

impl Record {
    /// With at most so many losses, each the mean over a stretch of steps, under the number of the stretch's last step.
    pub fn thinned(&self, losses: usize) -> Self {
        let stretch = self.losses.len().div_ceil(losses.max(1)).max(1);
        let mean = |steps: &[StepLoss]| {
            let last = steps.last()?;
            let loss = steps.iter().map(|step| step.loss).sum::<f64>() / steps.len() as f64;
            // Five digits: what a chart shows.
            Some(StepLoss { loss: (loss * 1e5).round() / 1e5, ..*last })
        };
        Self { losses: self.losses.chunks(stretch).filter_map(mean).collect(), ..self.clone() }
    }
}

/// Publishes a record in `folder` under a name, such as `cola-lora-1`. Returns the file.
///
/// # Errors
/// When the file cannot be written.
pub fn publish(folder: &Path, name: &str, record: &Record) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.json"));
    let mut json = serde_json::to_vec(&record.thinned(LOSSES)).map_err(|error| unreadable(&path, &error))?;
    json.push(b'\n');
    files::write_atomically(&path, &json)?;
    Ok(path)
}

/// Every record that was published in `folder`, in the order of their names; none where there is no folder.
///
/// # Errors
/// When a file is no record.
pub fn load(folder: &Path) -> Result<Vec<Record>> {
    let failed = |source| Error::File { path: folder.into(), source };
    let mut paths = match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        let Some(bytes) = files::read(&path)? else { continue };
        records.push(serde_json::from_slice(&bytes).map_err(|error| unreadable(&path, &error))?);
    }
    Ok(records)
}

fn unreadable(path: &Path, error: &serde_json::Error) -> Error {
    Error::Content { path: path.into(), expected: "the record of a run", found: error.to_string() }
}
