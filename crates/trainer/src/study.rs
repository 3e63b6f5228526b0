//! Studies of many runs: hyper-parameter search, and runs over seeds or ranks.

use glue::Task;
use peft::Method;

use crate::error::Result;
use crate::record::Record;
use crate::run::Run;
use crate::statistics::best_by;
use crate::trainer::Trainer;

/// What a search tries for each of three settings.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchSpace {
    /// Learning rates.
    pub learning_rates: Vec<f64>,
    /// Batch sizes.
    pub batch_sizes: Vec<usize>,
    /// Warm-up ratios.
    pub warmup_ratios: Vec<f64>,
}

impl SearchSpace {
    /// How many runs a search makes: of each setting after the first, the value it stands at has been tried.
    pub fn runs(&self) -> usize {
        let others = [self.batch_sizes.len(), self.warmup_ratios.len()];
        self.learning_rates.len() + others.map(|values| values.saturating_sub(1)).iter().sum::<usize>()
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Search {
    /// Every run, in the order it was made.
    pub records: Vec<Record>,
    /// The run with the best score.
    pub best: Run,
}

/// Searches one setting after the other: the learning rate, then the batch size and then the warm-up at the best of what
/// came before. Settings that interact strongly would need the whole grid; this costs their sum instead of their product. The
/// values of one setting are tried at once where the trainer is to ([`Trainer::at_once`]).
///
/// # Errors
/// As [`Trainer::run`].
pub fn search(trainer: &mut Trainer, start: &Run, space: &SearchSpace) -> Result<Search> {
    let mut search = Search { records: Vec::new(), best: start.clone() };
    search.try_all(
        trainer,
        space.learning_rates.iter().map(|&rate| move |run: &mut Run| run.settings.learning_rate = rate),
    )?;
    search
        .try_all(trainer, space.batch_sizes.iter().map(|&size| move |run: &mut Run| run.settings.batch_size = size))?;
    search.try_all(
        trainer,
        space.warmup_ratios.iter().map(|&ratio| move |run: &mut Run| run.settings.warmup_ratio = ratio),
    )?;
    Ok(search)
}

impl Search {
    fn try_all(&mut self, trainer: &mut Trainer, changes: impl Iterator<Item = impl FnOnce(&mut Run)>) -> Result<()> {
        let mut runs: Vec<Run> = Vec::new();
        for change in changes {
            let mut run = self.best.clone();
            change(&mut run);
            if self.records.iter().map(|record| &record.run).chain(&runs).all(|other| *other != run) {
                runs.push(run);
            }
        }
        self.records.extend(trainer.run_all(&runs)?);
        if let Some(record) = best_record(&self.records) {
            self.best = record.run.clone();
        }
        Ok(())
    }
}

/// The record with the highest score, the first of equals; never one without a score.
pub fn best_record(records: &[Record]) -> Option<&Record> {
    best_by(records, Record::best_score)
}

/// The run with the highest score among those of a method on a task, if there is one.
pub fn best_run(records: &[Record], task: Task, method: &Method) -> Option<Run> {
    let of_both = |record: &&Record| record.run.task == task && record.run.method == *method;
    best_by(records.iter().filter(of_both), Record::best_score).map(|record| record.run.clone())
}

/// `run` with each seed.
pub fn over_seeds(run: &Run, seeds: &[u64]) -> Vec<Run> {
    seeds.iter().map(|&seed| run.clone().seed(seed)).collect()
}

/// A LoRA run at each rank, `lora_alpha` growing with it so that the scaling stays. Empty for another method.
pub fn over_ranks(run: &Run, ranks: &[usize]) -> Vec<Run> {
    let Method::Lora(lora) = &run.method else { return Vec::new() };
    ranks.iter().map(|&r| Run { method: Method::Lora(lora.at_rank(r)), ..run.clone() }).collect()
}
