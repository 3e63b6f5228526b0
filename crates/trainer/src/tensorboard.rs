//! Event files for TensorBoard, which draws the losses and scores of runs while they train.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};
use crate::events::{Event, JobLogger, Logger, Place};
use crate::files;
use crate::record::{Evaluation, StepLoss};

/// Writes an event file for each run into a folder of its own, named as the run's folder is: `tensorboard --logdir FOLDER` shows the loss,
/// learning rate and speed of each step, and the loss and metrics of each evaluation. A run that goes on has a second file there, from the
/// step on at which it does.
///
/// A file that cannot be written any more, as on a full disk, ends there, and no run fails for that.
#[derive(Clone, Debug)]
pub struct TensorBoard {
    folder: PathBuf,
}

impl TensorBoard {
    /// Event files below `folder`, which is made.
    ///
    /// # Errors
    /// When no file can be written there.
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        files::check_writable(&folder)?;
        std::fs::create_dir_all(&folder).map_err(|source| Error::File { path: folder.clone(), source })?;
        Ok(Self { folder })
    }
}

impl Logger for TensorBoard {
    fn job(&self, _place: Option<Place>) -> Box<dyn JobLogger> {
        Box::new(JobEvents { folder: self.folder.clone(), file: None })
    }
}

/// The event file of one run; there is none before it begins.
struct JobEvents {
    folder: PathBuf,
    file: Option<EventFile>,
}

impl JobLogger for JobEvents {
    fn log(&mut self, event: &Event) {
        let written = match event {
            Event::Begun { run, .. } => {
                EventFile::create(&self.folder.join(run.key())).map(|file| self.file = Some(file))
            }
            Event::Step { loss: StepLoss { step, loss, learning_rate, .. }, tokens_per_second, .. } => self.write(
                *step,
                &[
                    ("train/loss", *loss),
                    ("train/learning_rate", *learning_rate),
                    ("train/tokens_per_second", *tokens_per_second),
                ],
            ),
            Event::Evaluated { evaluation, .. } => self.evaluated(evaluation),
            Event::Ended { .. } => self.flush(),
            _ => Ok(()),
        };
        if written.is_err() {
            self.file = None;
        }
    }
}

impl JobEvents {
    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.write(step, values))
    }

    fn evaluated(&mut self, evaluation: &Evaluation) -> io::Result<()> {
        let Evaluation { step, loss, scores, other_scores, .. } = evaluation;
        self.write(*step, &[("validation/loss", *loss)])?;
        for (metric, value) in &scores.0 {
            self.write(*step, &[(&format!("validation/{metric}"), *value)])?;
        }
        for (split, scores) in other_scores {
            for (metric, value) in &scores.0 {
                self.write(*step, &[(&format!("{split}/{metric}"), *value)])?;
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.0.flush())
    }
}

/// A file of records, each an [`EventMessage`]. TensorBoard reads it while it grows, and passes over a last record that is not whole.
struct EventFile(BufWriter<File>);

impl EventFile {
    fn create(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        // TensorBoard takes what has `tfevents` in its name, in the order of the names.
        let name = format!("events.out.tfevents.{:.6}.{}", now(), std::process::id());
        let mut file = Self(BufWriter::new(File::create_new(folder.join(name))?));
        file.append(&EventMessage {
            wall_time: now(),
            what: Some(What::FileVersion("brain.Event:2".into())),
            ..Default::default()
        })?;
        Ok(file)
    }

    fn write(&mut self, step: usize, values: &[(&str, f64)]) -> io::Result<()> {
        let value = |&(tag, value): &(&str, f64)| Value { tag: tag.into(), simple_value: Some(value as f32) };
        let summary = Summary { value: values.iter().map(value).collect() };
        self.append(&EventMessage { wall_time: now(), step: step as i64, what: Some(What::Summary(summary)) })
    }

    fn append(&mut self, event: &EventMessage) -> io::Result<()> {
        self.0.write_all(&record(&event.encode_to_vec()))
    }
}

/// The length of the content, the checksum of that, the content, and its checksum (TensorFlow's `lib/io/record_writer.h`).
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let (of_length, of_content) = (masked_checksum(&length).to_le_bytes(), masked_checksum(content).to_le_bytes());
    [&length[..], &of_length, content, &of_content].concat()
}

/// CRC-32C, masked as TensorFlow does it (`lib/hash/crc32c.h`): a checksum of bytes that hold checksums would tell less.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// `tensorflow.Event` (`core/util/event.proto`), as far as it is written here.
#[derive(Clone, PartialEq, Message)]
struct EventMessage {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

/// `tensorflow.Summary` (`core/framework/summary.proto`).
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    /// What TensorBoard 2.21's own `RecordWriter` writes.
    #[test]
    fn a_record_is_that_of_tensorboard() {
        let expected = "0500000000000000eab2043e68656c6c6fbb1f1c19";
        assert_eq!(crate::numbers::hexadecimal(record(b"hello")), expected);
    }

    #[test]
    fn a_run_that_goes_on_has_a_second_file_and_a_folder_that_cannot_be_written_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::Run::new(glue::Task::Rte, "m", peft::Method::bitfit());
        for _ in 0..2 {
            let mut job = TensorBoard::new(folder.path()).unwrap().job(None);
            job.log(&Event::Begun { run: &run, start: None, model_made_by: None });
        }
        assert_eq!(std::fs::read_dir(folder.path().join(run.key())).unwrap().count(), 2);
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(TensorBoard::new(&file).unwrap_err().to_string().contains("file"));
    }
}
