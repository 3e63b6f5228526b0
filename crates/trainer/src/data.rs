//! The tokenised training and validation data of a task, and packed batches of it.

use std::time::Instant;

use candle_core::{Device, Tensor};
use glue::{Dataset, Glue, Split, Targets, Task};
use peft::{Batch, Sequence};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::record::DataSummary;
use crate::run::Settings;
use crate::tokenizer::Tokenizer;

/// Tokenised examples with their labels.
pub struct Labeled {
    /// The examples.
    pub sequences: Vec<Sequence>,
    /// One label each.
    pub targets: Targets,
}

impl Labeled {
    /// The examples of these rows, all where none are named.
    fn new(dataset: &Dataset, rows: Option<&[usize]>, tokenizer: &Tokenizer, limits: &Limits) -> Result<Self> {
        let targets = dataset.targets()?.ok_or_else(|| no(dataset.task, "labels", "choose a labeled split"))?;
        let (examples, targets) = match rows {
            Some(rows) => (dataset.examples_of(rows.iter().copied())?, selected(&targets, rows)),
            None => (dataset.examples()?, targets),
        };
        Ok(Self { sequences: tokenizer.encode_within(&examples, limits)?, targets })
    }

    /// How many examples.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// How many tokens each example has.
    pub fn lengths(&self) -> Vec<usize> {
        self.sequences.iter().map(Sequence::len).collect()
    }

    /// The packed batch of these examples, and their labels: class ids `(sequences)` in u32, or scores in f32.
    pub(crate) fn batch(&self, indices: &[usize]) -> Result<(Batch, Tensor)> {
        let batch = Batch::new(indices.iter().map(|&index| &self.sequences[index]))?;
        let count = indices.len();
        let targets = match &self.targets {
            Targets::Classes(ids) => {
                let ids: Vec<u32> = indices.iter().map(|&index| ids[index] as u32).collect();
                Tensor::from_vec(ids, count, &Device::Cpu)?
            }
            Targets::Values(values) => {
                let values: Vec<f32> = indices.iter().map(|&index| values[index] as f32).collect();
                Tensor::from_vec(values, count, &Device::Cpu)?
            }
        };
        Ok((batch, targets))
    }

    /// The examples at `indices` only.
    pub(crate) fn selected(&self, indices: &[usize]) -> Self {
        let sequences = indices.iter().map(|&index| self.sequences[index].clone()).collect();
        Self { sequences, targets: selected(&self.targets, indices) }
    }
}

/// The labels at `indices`.
fn selected(targets: &Targets, indices: &[usize]) -> Targets {
    match targets {
        Targets::Classes(ids) => Targets::Classes(indices.iter().map(|&index| ids[index]).collect()),
        Targets::Values(values) => Targets::Values(indices.iter().map(|&index| values[index]).collect()),
    }
}

/// What a run trains on and is measured by.
pub struct TaskData {
    /// The task.
    pub task: Task,
    /// Training examples.
    pub train: Labeled,
    /// Validation examples, split by split; the first decides which step is the best.
    pub validation: Vec<(Split, Labeled)>,
    /// How complete they are.
    pub summary: DataSummary,
}

impl TaskData {
    /// Loads and tokenises a task, as these settings say: with `train_limit`, a random subset of the training set, the same for every
    /// run; with `train_extra`, that of GLUE's rows and further ones.
    ///
    /// # Errors
    /// When a file is missing or broken, the task has nothing to train on (AX), or the deadline passes before all is tokenised.
    pub fn load(
        glue: &Glue,
        task: Task,
        tokenizer: &Tokenizer,
        settings: &Settings,
        deadline: Option<Instant>,
    ) -> Result<Self> {
        Self::load_within(glue, task, tokenizer, settings, &Limits { deadline, ..Limits::default() })
    }

    /// The same, within limits.
    pub(crate) fn load_within(
        glue: &Glue,
        task: Task,
        tokenizer: &Tokenizer,
        settings: &Settings,
        limits: &Limits,
    ) -> Result<Self> {
        check_trainable(task)?;
        let rows = if settings.train_extra { glue.load_with_extra(task)? } else { glue.load(task, Split::Train)? };
        let limited = settings.train_limit.filter(|&limit| limit < rows.len()).map(|limit| {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
            order.truncate(limit);
            order.sort_unstable();
            order
        });
        let train = Labeled::new(&rows, limited.as_deref(), tokenizer, limits)?;
        let mut validation = Vec::new();
        let mut validation_rows = Vec::new();
        for &split in task.validation_splits() {
            let rows = glue.load(task, split)?;
            validation.push((split, Labeled::new(&rows, None, tokenizer, limits)?));
            validation_rows.push((split, rows.completeness));
        }
        let summary = DataSummary {
            train_used: train.len(),
            train: rows.completeness,
            validation: validation_rows,
            dropped: rows.dropped,
            origin: glue.origin().to_string(),
            synthetic: task == Task::Synthetic,
        };
        Ok(Self { task, train, validation, summary })
    }
}

/// Fails for a task that has nothing to train on.
pub(crate) fn check_trainable(task: Task) -> Result<()> {
    match task.validation_splits() {
        [] => Err(no(task, "training data", "it is predicted with a model trained on MNLI")),
        _ => Ok(()),
    }
}

fn no(task: Task, what: &'static str, hint: &'static str) -> Error {
    Error::NotTrainable { task: task.to_string(), what, hint }
}
