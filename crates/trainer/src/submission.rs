//! The submission to GLUE's server: each file predicted by the best run of its task, or the majority where there is none.
//!
//! ```no_run
//! use trainer::glue::Glue;
//! use trainer::{Trainer, results, submission};
//!
//! # fn main() -> trainer::Result<()> {
//! let records = results::load("results".as_ref())?;
//! let mut trainer = Trainer::new(Glue::locate()?, "runs").keep_weights(true);
//! let files = submission::files(trainer.glue(), &records, None);
//! submission::write(&mut trainer, &files, "submission.zip".as_ref())?;
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};

use glue::submission::{check, file_name, majority, splits, write_zip};
use glue::{Glue, Split, Task};

use crate::error::{Error, Result};
use crate::record::{Record, Stop};
use crate::run::{Run, StartsFrom};
use crate::statistics::best_by;
use crate::trainer::Trainer;

/// A file of a submission, and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct File<'a> {
    /// Whose test set it predicts.
    pub task: Task,
    /// Which of its test sets.
    pub split: Split,
    /// Where the predictions come from.
    pub source: Source<'a>,
}

/// Where the predictions of a file come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source<'a> {
    /// The run of this record.
    Run(&'a Record),
    /// The majority of the training set, as the test set is not here.
    NoTestSet,
    /// The majority of the training set, as no run of the task has a record with a score.
    NoRecord,
}

/// The record with the highest score among those of a task whose runs came to their end without diverging; of equals the first, so that
/// records in the order of [`results::load`](crate::results::load) give the same one each time. AX, which is not trained on, has MNLI's.
/// With a method only its runs count, by [`Method::id`](peft::Method::id).
pub fn best<'a>(records: &'a [Record], task: Task, method: Option<&str>) -> Option<&'a Record> {
    let trained = if task == Task::Ax { Task::Mnli } else { task };
    let counts = |record: &&Record| {
        record.run.task == trained && has_end(record.stop) && method.is_none_or(|id| record.run.method.id() == id)
    };
    best_by(records.iter().filter(counts), Record::best_score)
}

/// The eleven files, in the order of the zip. With a method only its runs predict.
pub fn files<'a>(glue: &Glue, records: &'a [Record], method: Option<&str>) -> Vec<File<'a>> {
    let source = |task, split| match best(records, task, method) {
        _ if !glue.splits(task).contains(&split) => Source::NoTestSet,
        Some(record) => Source::Run(record),
        None => Source::NoRecord,
    };
    splits().map(|(task, split)| File { task, split, source: source(task, split) }).collect()
}

/// The runs that [`write()`] makes, since their weights are not below the trainer's runs folder: each once, after what it starts from.
///
/// # Errors
/// When a record in the runs folder is not whole.
pub fn missing<'a>(trainer: &Trainer, files: &[File<'a>]) -> Result<Vec<&'a Run>> {
    let mut missing = Vec::new();
    for file in files {
        if let Source::Run(record) = file.source {
            add_missing(trainer, &record.run, &mut missing)?;
        }
    }
    Ok(missing)
}

fn add_missing<'a>(trainer: &Trainer, run: &'a Run, missing: &mut Vec<&'a Run>) -> Result<()> {
    if missing.contains(&run) || trainer.has_weights(run)? {
        return Ok(());
    }
    if let Some(StartsFrom::Run(first)) = &run.starts_from {
        add_missing(trainer, first, missing)?;
    }
    missing.push(run);
    Ok(())
}

/// Writes the zip of these files, each checked, to `path`. Runs without weights are made again, for which the trainer must keep weights
/// ([`Trainer::keep_weights`]).
///
/// # Errors
/// When a run cannot be made or does not come to its end, a file is not as the server takes it (of a part of a test set, say), a
/// training set for a majority is missing, or the zip cannot be written.
pub fn write(trainer: &mut Trainer, files: &[File], path: &Path) -> Result<()> {
    let failed = |source| Error::File { path: std::env::temp_dir(), source };
    let folder = tempfile::tempdir().map_err(failed)?;
    for file in files {
        check(&file.write(trainer, folder.path())?)?;
    }
    Ok(write_zip(folder.path(), path)?)
}

impl File<'_> {
    /// Its name in the zip, such as `CoLA.tsv`.
    pub fn name(&self) -> String {
        file_name(self.task, self.split)
    }

    /// Writes it to `folder`; returns its path.
    fn write(&self, trainer: &mut Trainer, folder: &Path) -> Result<PathBuf> {
        let (predictions, index) = match self.source {
            Source::Run(Record { run, .. }) => {
                let stop = trainer.run(run)?.stop;
                if !has_end(stop) {
                    return Err(Error::Unfinished { run: run.description(), stop: stop.to_string() });
                }
                let index = trainer.glue().load(self.task, self.split)?.index()?;
                (trainer.predict(run, self.task, self.split)?, index)
            }
            Source::NoTestSet | Source::NoRecord => {
                let predictions = majority(trainer.glue(), self.task, self.split)?;
                let index = (0..predictions.len() as i64).collect();
                (predictions, index)
            }
        };
        Ok(glue::submission::write(folder, self.task, self.split, &predictions, index)?)
    }
}

/// Whether there is a model at the end.
fn has_end(stop: Stop) -> bool {
    matches!(stop, Stop::Finished | Stop::EarlyStopping)
}

#[cfg(test)]
pub(crate) mod tests {
    use glue::{Completeness, Scores};
    use peft::Method;

    use super::*;
    use crate::environment::environment;
    use crate::record::{DataSummary, Evaluation, ParameterCounts};

    /// A record of nothing but a score.
    pub(crate) fn record(task: Task, method: Method, seed: u64, score: f64) -> Record {
        let scores = Scores(task.metrics().iter().map(|&metric| (metric, score)).collect());
        let best = Evaluation { step: 1, epoch: 1.0, loss: 0.5, scores, other_scores: Vec::new() };
        Record {
            run: Run::new(task, "a-model", method).seed(seed),
            inputs: None,
            model_made_by: None,
            parameters: ParameterCounts { trainable: 1, without_head: 0, total: 2 },
            data: DataSummary {
                train_used: 1,
                train: Completeness { found: 1, official: None, extra: None },
                validation: Vec::new(),
                dropped: 0,
                origin: "a test".into(),
                synthetic: false,
            },
            losses: Vec::new(),
            evaluations: vec![best.clone()],
            best: Some(best),
            movement: None,
            stop: Stop::Finished,
            train_seconds: 1.0,
            tokens: 1,
            peak_memory: 0,
            environment: environment(),
        }
    }

    fn seed_of_best(records: &[Record], task: Task, method: Option<&str>) -> Option<u64> {
        best(records, task, method).map(|record| record.run.seed)
    }

    #[test]
    fn a_tasks_best_record_is_that_of_the_highest_score_and_of_equals_the_first() {
        let of = |task, seed, score| record(task, Method::bitfit(), seed, score);
        let records = [of(Task::Cola, 1, 0.5), of(Task::Rte, 2, 0.9), of(Task::Cola, 3, 0.6), of(Task::Cola, 4, 0.6)];
        assert_eq!(seed_of_best(&records, Task::Cola, None), Some(3));
        assert_eq!(seed_of_best(&records, Task::Rte, None), Some(2));
        assert_eq!(seed_of_best(&records, Task::Wnli, None), None);
    }

    #[test]
    fn runs_that_diverged_or_did_not_end_or_have_no_score_are_never_the_best() {
        let of = |seed, score, stop| Record { stop, ..record(Task::StsB, Method::lora(8), seed, score) };
        let without_evaluation = Record { best: None, ..of(5, 0.9, Stop::Finished) };
        let none = [
            of(1, 0.9, Stop::Diverged),
            of(2, 0.9, Stop::TimeBudget),
            of(3, 0.9, Stop::StopFile),
            of(4, f64::NAN, Stop::Finished),
            without_evaluation,
        ];
        assert_eq!(seed_of_best(&none, Task::StsB, None), None);
        let records = [&none[..], &[of(6, -0.1, Stop::EarlyStopping)]].concat();
        assert_eq!(seed_of_best(&records, Task::StsB, None), Some(6));
    }

    #[test]
    fn with_a_method_only_its_runs_count() {
        let records = [record(Task::Rte, Method::bitfit(), 1, 0.7), record(Task::Rte, Method::lora(8), 2, 0.6)];
        assert_eq!(seed_of_best(&records, Task::Rte, None), Some(1));
        assert_eq!(seed_of_best(&records, Task::Rte, Some("lora")), Some(2));
        assert_eq!(seed_of_best(&records, Task::Rte, Some("full")), None);
    }

    #[test]
    fn the_run_of_mnli_predicts_ax_and_a_file_without_test_set_or_record_is_a_majority() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["AX/diagnostic.tsv", "MNLI/test_mismatched.tsv", "RTE/test.tsv"] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let records = [record(Task::Mnli, Method::lora(8), 1, 0.8)];
        let files = files(&Glue::at(folder.path()).unwrap(), &records, None);
        assert_eq!(files.len(), 11);
        let source = |name: &str| files.iter().find(|file| file.name() == name).unwrap().source;
        assert_eq!(source("MNLI-m.tsv"), Source::NoTestSet);
        assert_eq!(source("MNLI-mm.tsv"), Source::Run(&records[0]));
        assert_eq!(source("AX.tsv"), Source::Run(&records[0]));
        assert_eq!(source("RTE.tsv"), Source::NoRecord);
        assert_eq!(source("CoLA.tsv"), Source::NoTestSet);
    }
}
