//! What a run predicted for its validation data at its best evaluation: the examples behind its scores, from which two runs can be compared
//! one example at a time.
//!
//! In a safetensors file, for each split, `validation.predicted` and `validation.label` `(examples)`: classes in u8, or scores in f64. Its
//! metadata say of which run and evaluation they are. The labels given are there too, so that a reader needs no data to compare, and sees
//! whether two runs were measured on the same examples.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use glue::{Metric, Split, Targets};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::record::Record;
use crate::run::Run;
use crate::trainer::Trainer;

/// The end of the name of a published run's predictions, after the name of its record.
const ENDING: &str = ".predictions.safetensors";

/// The predictions of a run for its validation data.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// The run.
    pub run: Run,
    /// After how many steps they were made.
    pub step: usize,
    /// Of each of the task's validation splits.
    pub splits: Vec<Predicted>,
}

/// The predictions for one split, in the order of its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// The split.
    pub split: Split,
    /// What was predicted, `(examples)`.
    pub predicted: Targets,
    /// The labels given, `(examples)`.
    pub labels: Targets,
}

/// What they are of, in the file's metadata.
#[derive(Serialize, Deserialize)]
struct Source {
    run: Run,
    step: usize,
}

impl Predicted {
    /// The value of a metric on these examples, on all where none are named; not a number where the metric is not one of the labels' kind.
    pub fn score(&self, metric: Metric, examples: Option<&[usize]>) -> f64 {
        let value = match examples {
            Some(examples) => metric.value(&self.predicted.at(examples), &self.labels.at(examples)),
            None => metric.value(&self.predicted, &self.labels),
        };
        value.unwrap_or(f64::NAN)
    }

    /// Whether each prediction is the label; `None` where they are scores.
    pub fn right(&self) -> Option<Vec<bool>> {
        match (&self.predicted, &self.labels) {
            (Targets::Classes(predicted), Targets::Classes(labels)) => {
                Some(predicted.iter().zip(labels).map(|(predicted, label)| predicted == label).collect())
            }
            _ => None,
        }
    }
}

impl Predictions {
    /// Those for one of the validation splits.
    pub fn on(&self, split: Split) -> Option<&Predicted> {
        self.splits.iter().find(|predicted| predicted.split == split)
    }

    /// Whether they are those of the evaluation that a record calls the best: of the same run and step, with the same scores. A run that was
    /// made again elsewhere can have others.
    pub fn are_of(&self, record: &Record) -> bool {
        let has_scores = |predicted: &Predicted| {
            let is_equal = |&metric: &Metric| {
                let [found, recorded] = [predicted.score(metric, None), record.score_on(predicted.split, metric)];
                (found - recorded).abs() < 1e-9
            };
            record.run.task.metrics().iter().all(is_equal)
        };
        let step = record.best.as_ref().map(|best| best.step);
        self.run == record.run && step == Some(self.step) && self.splits.iter().all(has_scores)
    }

    /// Writes them to a file, as a whole. Equal predictions give equal bytes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let content = |found: String| Error::Predictions { path: path.into(), found };
        let mut tensors = Vec::new();
        for Predicted { split, predicted, labels } in &self.splits {
            for (what, targets) in [("predicted", predicted), ("label", labels)] {
                let bytes = to_bytes(targets).ok_or_else(|| content("a class above 255".into()))?;
                tensors.push((tensor_name(*split, what), targets.len(), bytes));
            }
        }
        let views = tensors
            .iter()
            .map(|(name, count, (dtype, bytes))| Ok((name, TensorView::new(*dtype, vec![*count], bytes)?)))
            .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
        let source = serde_json::to_string(&Source { run: self.run.clone(), step: self.step });
        // One entry: of several the order would not be told.
        let metadata = HashMap::from([("source".into(), source.map_err(|error| content(error.to_string()))?)]);
        let bytes = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
        files::write_atomically(path, &bytes.map_err(|error| content(error.to_string()))?)
    }

    /// Those in a file; `None` if there is no file.
    ///
    /// # Errors
    /// When the file is not one of predictions.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = files::read(path)? else { return Ok(None) };
        Self::parse(&bytes).map(Some).map_err(|found| Error::Predictions { path: path.into(), found })
    }

    /// Those in the bytes of a file; else what was found instead.
    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let source = header.metadata().as_ref().and_then(|metadata| metadata.get("source"));
        let source = source.ok_or("no run in its metadata")?;
        let Source { run, step } = serde_json::from_str(source).map_err(|error| error.to_string())?;
        let targets = |split, what| {
            let name = tensor_name(split, what);
            let view = file.tensor(&name).map_err(|error| format!("{name}: {error}"))?;
            from_bytes(&view).ok_or_else(|| format!("{name} of the type {:?}", view.dtype()))
        };
        let splits = run.task.validation_splits();
        // Rows held out of the training set stand in the place of the first.
        let splits = if run.settings.held_out { splits.get(..1).unwrap_or_default() } else { splits };
        let splits = splits.iter().map(|&split| {
            let (predicted, labels) = (targets(split, "predicted")?, targets(split, "label")?);
            if predicted.len() != labels.len() {
                return Err(format!("{} predictions and {} labels", predicted.len(), labels.len()));
            }
            Ok(Predicted { split, predicted, labels })
        });
        let splits = splits.collect::<std::result::Result<_, String>>()?;
        Ok(Self { run, step, splits })
    }
}

impl Trainer {
    /// What a run predicted for its validation data at its best evaluation, if it was made below this runs folder. Runs of before
    /// predictions were kept have none.
    ///
    /// # Errors
    /// When the file is not one of predictions.
    pub fn predictions(&self, run: &Run) -> Result<Option<Predictions>> {
        Predictions::read(&files::RunFolder::new(self.folder(run)).predictions())
    }
}

/// The predictions among these that are a record's ([`Predictions::are_of`]).
pub fn of<'a>(predictions: &'a [Predictions], record: &Record) -> Option<&'a Predictions> {
    predictions.iter().find(|predictions| predictions.are_of(record))
}

/// Publishes predictions in `folder` beside the record of that name, as `cola-lora-1.predictions.safetensors`. Returns the file.
///
/// # Errors
/// When the file cannot be written.
pub fn publish(folder: &Path, name: &str, predictions: &Predictions) -> Result<PathBuf> {
    let path = folder.join(format!("{name}{ENDING}"));
    predictions.write(&path)?;
    Ok(path)
}

/// All predictions that were published in `folder`, in the order of their names; none where there is no folder.
///
/// # Errors
/// When a file is not one of predictions.
pub fn load(folder: &Path) -> Result<Vec<Predictions>> {
    let mut paths = files::entries(folder)?;
    paths.retain(|path| path.to_string_lossy().ends_with(ENDING));
    paths.iter().filter_map(|path| Predictions::read(path).transpose()).collect()
}

/// Such as `validation_mismatched.label`.
fn tensor_name(split: Split, what: &str) -> String {
    let split = if split == Split::ValidationMismatched { "validation_mismatched" } else { "validation" };
    format!("{split}.{what}")
}

/// As they stand in a file; `None` where a class has no byte.
fn to_bytes(targets: &Targets) -> Option<(Dtype, Vec<u8>)> {
    Some(match targets {
        Targets::Classes(ids) => (Dtype::U8, ids.iter().map(|&id| u8::try_from(id).ok()).collect::<Option<_>>()?),
        Targets::Values(values) => (Dtype::F64, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    })
}

fn from_bytes(view: &TensorView) -> Option<Targets> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(f64::from_le_bytes);
    match view.dtype() {
        Dtype::U8 => Some(Targets::Classes(view.data().iter().map(|&id| usize::from(id)).collect())),
        Dtype::F64 => Some(Targets::Values(view.data().chunks_exact(8).map(number).collect::<Option<_>>()?)),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use glue::Task;
    use peft::Method;

    use super::*;
    use crate::record::Evaluation;
    use crate::submission::tests::record;

    /// A record and its predictions, of which these are the classes or scores.
    pub(crate) fn with_predictions(
        task: Task,
        method: Method,
        seed: u64,
        predicted: Targets,
        labels: Targets,
    ) -> (Record, Predictions) {
        let scores = task.score(&predicted, &labels).unwrap();
        let mut record = record(task, method, seed, 0.0);
        record.best = record.best.map(|best| Evaluation { scores, ..best });
        let splits = vec![Predicted { split: Split::Validation, predicted, labels }];
        let predictions = Predictions { run: record.run.clone(), step: 1, splits };
        (record, predictions)
    }

    #[test]
    fn what_was_written_is_read_again_to_the_bit_and_equal_predictions_are_equal_files() {
        let folder = tempfile::tempdir().unwrap();
        let classes = |ids: &[usize]| Targets::Classes(ids.to_vec());
        let (_, rte) = with_predictions(Task::Rte, Method::bitfit(), 1, classes(&[1, 0, 1]), classes(&[1, 1, 1]));
        let values = |first| Targets::Values(vec![first, 5.0, 0.1 + 0.2]);
        let (_, stsb) = with_predictions(Task::StsB, Method::lora(8), 2, values(-0.0), values(2.5));
        let (_, mut mnli) = with_predictions(Task::Mnli, Method::Full, 1, classes(&[2, 0]), classes(&[2, 1]));
        let mismatched =
            Predicted { split: Split::ValidationMismatched, predicted: classes(&[1]), labels: classes(&[0]) };
        mnli.splits.push(mismatched);
        for (name, predictions) in [("mnli-full-1", &mnli), ("rte-bitfit-1", &rte), ("stsb-lora-2", &stsb)] {
            let path = publish(folder.path(), name, predictions).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(Predictions::read(&path).unwrap().as_ref(), Some(predictions));
            predictions.write(&path).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes);
        }
        std::fs::write(folder.path().join("rte-bitfit-1.json"), "{}").unwrap();
        assert_eq!(load(folder.path()).unwrap(), [mnli, rte, stsb]);
        assert_eq!(load(&folder.path().join("none")).unwrap(), []);
    }

    #[test]
    fn predictions_for_rows_held_out_are_those_of_the_first_split_and_no_other_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let classes = |ids: &[usize]| Targets::Classes(ids.to_vec());
        let (_, mut mnli) = with_predictions(Task::Mnli, Method::Full, 1, classes(&[2, 0]), classes(&[2, 1]));
        let path = publish(folder.path(), "mnli-full-1", &mnli).unwrap();
        assert!(Predictions::read(&path).unwrap_err().to_string().contains("validation_mismatched"));
        mnli.run.settings.held_out = true;
        mnli.splits[0].split = Split::Train;
        mnli.write(&path).unwrap();
        let read = Predictions::read(&path).unwrap().unwrap();
        assert_eq!(read.splits.len(), 1);
        assert_eq!(read.on(Split::Validation).map(|read| &read.predicted), Some(&mnli.splits[0].predicted));
    }

    #[test]
    fn predictions_are_of_the_record_whose_run_step_and_scores_they_have() {
        let classes = |ids: &[usize]| Targets::Classes(ids.to_vec());
        let (record, predictions) =
            with_predictions(Task::Rte, Method::bitfit(), 1, classes(&[1, 0, 1]), classes(&[1, 1, 1]));
        assert!(predictions.are_of(&record));
        let other_seed = Record { run: record.run.clone().seed(2), ..record.clone() };
        let other_step = Predictions { step: 2, ..predictions.clone() };
        let mut other_scores = predictions.clone();
        other_scores.splits[0].predicted = classes(&[1, 1, 1]);
        assert!(!predictions.are_of(&other_seed) && !other_step.are_of(&record) && !other_scores.are_of(&record));
        assert_eq!(of(&[other_step, predictions.clone()], &record), Some(&predictions));
        assert!(!predictions.are_of(&Record { best: None, ..record }));
    }

    #[test]
    fn a_file_of_something_else_is_an_error_that_names_it_and_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.predictions.safetensors");
        std::fs::write(&path, b"\x10\0\0\0\0\0\0\0not json").unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a.predictions.safetensors") && error.contains("remove the file"), "{error}");
    }
}
