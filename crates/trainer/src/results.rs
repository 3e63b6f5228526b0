//! Published results: records in a folder of the repository, thinned to what tables and charts need; and whether the files of records are as
//! they were written.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{entries, write_atomically};
use crate::losses::over_stretches;
use crate::record::{LINES, Record};

pub use crate::record::{Condition, check, migrate};

/// How many losses a published record keeps: as many as a chart's width tells apart, in less than 40 kB.
const LOSSES: usize = 150;

impl Record {
    /// With at most so many losses, each the mean over a stretch of steps, under the number of the stretch's last step.
    pub fn thinned(&self, losses: usize) -> Self {
        let mut losses = over_stretches(&self.losses, losses);
        // Five digits: what a chart shows.
        losses.iter_mut().for_each(|step| step.loss = (step.loss * 1e5).round() / 1e5);
        Self { losses, ..self.clone() }
    }
}

/// Publishes a record in `folder` under a name, such as `cola-lora-1`. Returns the file.
///
/// # Errors
/// When the file cannot be written.
pub fn publish(folder: &Path, name: &str, record: &Record) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.json"));
    write_atomically(&path, line(record, LOSSES, &path)?.as_bytes())?;
    Ok(path)
}

/// A record with at most so many losses, as a line of a file.
fn line(record: &Record, losses: usize, path: &Path) -> Result<String> {
    let json = record.thinned(losses).to_json().map_err(|error| Error::Content {
        path: path.into(),
        expected: "the record of a run",
        found: error.to_string(),
    })?;
    Ok(json + "\n")
}

/// Every record that was published in `folder`, in the order of their names; none where there is no folder.
///
/// # Errors
/// When a file is no record, was edited or damaged, or is of a later version.
pub fn load(folder: &Path) -> Result<Vec<Record>> {
    let records = files_ending_in(folder, "json")?.into_iter().filter_map(|path| Record::read(&path).transpose());
    records.collect()
}

/// How many losses a record keeps that is published with the others of a study, which are many.
const LOSSES_IN_STUDY: usize = 25;

/// Publishes the records of a study in `folder`, in one file under its name. Returns the file.
///
/// # Errors
/// When the file cannot be written.
pub fn publish_study(folder: &Path, name: &str, records: &[Record]) -> Result<PathBuf> {
    let path = study_file(folder, name);
    let text = records.iter().map(|record| line(record, LOSSES_IN_STUDY, &path)).collect::<Result<String>>()?;
    write_atomically(&path, text.as_bytes())?;
    Ok(path)
}

/// The records that were published of a study; none where it was not.
///
/// # Errors
/// As [`Record::read_lines`].
pub fn study(folder: &Path, name: &str) -> Result<Vec<Record>> {
    Ok(Record::read_lines(&study_file(folder, name))?.unwrap_or_default())
}

/// The folder of studies below that of published records.
const STUDIES: &str = "studies";

fn study_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(STUDIES).join(format!("{name}.{LINES}"))
}

/// The files of a folder with that extension, in the order of their names; none where there is no folder.
fn files_ending_in(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut paths = entries(folder)?;
    paths.retain(|path| path.extension().is_some_and(|end| end == extension));
    Ok(paths)
}

/// What lies beside the folders of runs and is no record.
const NO_RECORDS: [&str; 3] = ["digests.json", "speeds.json", "inputs.json"];

/// The files of the records in a folder, in the order of their names: of published ones and studies, of one run, or of all runs below it.
///
/// # Errors
/// When a folder cannot be read.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = files_ending_in(folder, "json")?;
    files.retain(|path| !NO_RECORDS.iter().any(|name| path.ends_with(name)));
    files.extend(files_ending_in(&folder.join(STUDIES), LINES)?);
    files.extend(entries(folder)?.into_iter().map(|entry| entry.join("record.json")).filter(|record| record.is_file()));
    Ok(files)
}
