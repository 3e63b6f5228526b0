//! The tokenized training and validation data of a task, and packed batches of it.

use candle_core::{Device, Tensor};
use glue::{Completeness, Dataset, Glue, Split, Targets, Task};
use peft::{Batch, Sequence};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::record::DataSummary;
use crate::run::Settings;
use crate::token_cache::TokenCache;
use crate::tokenizer::Tokenizer;

/// One in so many training rows is held out.
const HELD_OUT: usize = 10;

/// Tokenized examples with their labels.
pub struct Labeled {
    /// The examples.
    pub sequences: Vec<Sequence>,
    /// One label each.
    pub targets: Targets,
}

impl Labeled {
    /// All examples, their tokens from the cache where they are kept.
    fn whole(dataset: &Dataset, tokenizer: &Tokenizer, cache: Option<&TokenCache>, limits: &Limits) -> Result<Self> {
        let targets = targets(dataset)?;
        if let Some(sequences) = cache.and_then(|cache| cache.read(dataset.split, dataset.len())) {
            return Ok(Self { sequences, targets });
        }
        let rows: Vec<usize> = (0..dataset.len()).collect();
        let sequences = tokenizer.encode_rows(dataset, &rows, limits)?;
        if let Some(cache) = cache {
            cache.write(dataset.split, &sequences);
        }
        Ok(Self { sequences, targets })
    }

    /// The examples of these rows. They cost what they are, however many there are beside them.
    fn of_rows(dataset: &Dataset, rows: &[usize], tokenizer: &Tokenizer, limits: &Limits) -> Result<Self> {
        let targets = targets(dataset)?.at(rows);
        Ok(Self { sequences: tokenizer.encode_rows(dataset, rows, limits)?, targets })
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
        Self { sequences, targets: self.targets.at(indices) }
    }
}

fn targets(dataset: &Dataset) -> Result<Targets> {
    dataset.targets()?.ok_or_else(|| no(dataset.task, "labels", "choose a labeled split"))
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
    /// Loads and tokenizes a task, as these settings say: with `train_limit`, a random subset of the training set, the same for every
    /// run; with `train_extra`, that of GLUE's rows and further ones; with `held_out`, the validation data is a part of the training set that
    /// is not trained on.
    ///
    /// # Errors
    /// When a file is missing or broken, the task has nothing to train on (AX), or the deadline passes before all is tokenized.
    pub(crate) fn load(
        glue: &Glue,
        task: Task,
        tokenizer: &Tokenizer,
        settings: &Settings,
        cache: Option<&TokenCache>,
        limits: &Limits,
    ) -> Result<Self> {
        check_trainable(task)?;
        let rows = if settings.train_extra { glue.load_with_extra(task)? } else { glue.load(task, Split::Train)? };
        let (trained_on, held_out) = parted(rows.len(), settings);
        let train = match trained_on {
            Some(trained_on) => Labeled::of_rows(&rows, &trained_on, tokenizer, limits)?,
            None => Labeled::whole(&rows, tokenizer, cache, limits)?,
        };
        let mut validation = Vec::new();
        let mut validation_rows = Vec::new();
        if let Some(held_out) = held_out {
            let completeness = Completeness { found: held_out.len(), official: None, extra: None };
            validation.push((Split::Train, Labeled::of_rows(&rows, &held_out, tokenizer, limits)?));
            validation_rows.push((Split::Train, completeness));
        } else {
            for &split in task.validation_splits() {
                let rows = glue.load(task, split)?;
                validation.push((split, Labeled::whole(&rows, tokenizer, cache, limits)?));
                validation_rows.push((split, rows.completeness));
            }
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

/// Of so many training rows those that are trained on, none where that is all, and those held out to validate on. Both are drawn at random,
/// the same for every run, and stand in the order of the file.
fn parted(rows: usize, settings: &Settings) -> (Option<Vec<usize>>, Option<Vec<usize>>) {
    let shuffled = |mut rows: Vec<usize>, seed| {
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        rows
    };
    let sorted = |mut rows: Vec<usize>| {
        rows.sort_unstable();
        rows
    };
    let (pool, held_out) = if settings.held_out {
        let mut order = shuffled((0..rows).collect(), 1);
        let pool = order.split_off(rows.div_ceil(HELD_OUT));
        (sorted(pool), Some(sorted(order)))
    } else {
        ((0..rows).collect(), None)
    };
    match settings.train_limit.filter(|&limit| limit < pool.len()) {
        Some(limit) => {
            let mut order = shuffled(pool, 0);
            order.truncate(limit);
            (Some(sorted(order)), held_out)
        }
        None => (held_out.is_some().then_some(pool), held_out),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn rows_held_out_are_a_tenth_that_no_run_trains_on_and_the_same_for_all() {
        let of = |train_limit| parted(1001, &Settings { held_out: true, train_limit, ..Settings::default() });
        let (all, held_out) = of(None);
        let (all, held_out) = (all.unwrap(), held_out.unwrap());
        assert_eq!((all.len(), held_out.len()), (900, 101));
        let mut together = [all.clone(), held_out.clone()].concat();
        together.sort_unstable();
        assert_eq!(together, (0..1001).collect::<Vec<_>>());
        let (limited, again) = of(Some(50));
        let limited = limited.unwrap();
        assert_eq!((limited.len(), again.unwrap()), (50, held_out));
        assert!(limited.is_sorted() && limited.iter().all(|row| all.contains(row)));
    }

    #[test]
    fn a_run_that_holds_nothing_out_trains_on_the_rows_of_ever() {
        let of = |train_limit| parted(100, &Settings { train_limit, ..Settings::default() });
        assert_eq!((of(None), of(Some(100))), ((None, None), (None, None)));
        // As they were drawn before rows could be held out: shuffled by ChaCha8 with seed 0.
        let mut order: Vec<usize> = (0..100).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        order.truncate(7);
        order.sort_unstable();
        assert_eq!(of(Some(7)), (Some(order), None));
    }
}
