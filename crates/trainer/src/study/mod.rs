//! Studies of many runs: those of a file, hyper-parameter search in a notebook, and runs over seeds or ranks.

mod file;
mod halving;
mod importance;
mod space;

pub use file::Study;
pub use importance::importance;

use std::fmt;

use glue::Task;
use peft::Method;

use crate::error::Result;
use crate::record::Record;
use crate::run::Run;
use crate::statistics::{best_by, mean_and_deviation};
use crate::trainer::Trainer;

/// What a study compares: a recipe with other values, over seeds.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The recipe's name.
    pub recipe: String,
    /// Of each field that the study varies, as they would be typed.
    pub values: Vec<String>,
    /// The recipe that its runs start from, if they start from one.
    pub starts_from: Option<String>,
    /// One for each seed.
    pub runs: Vec<Run>,
}

/// The scores of a candidate's runs: the mean of the task's metrics at the best evaluation; not a number for a run without a score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CandidateScores(pub Vec<f64>);

impl CandidateScores {
    /// Their mean; not a number if one of them is none, since a candidate that diverges with one of its seeds is no better for the others.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Their standard deviation.
    pub fn deviation(&self) -> f64 {
        mean_and_deviation(&self.0).1
    }
}

/// How far a study is.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// Counted from 1; a grid and a random search have one.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// What is compared in it.
    pub candidates: Vec<Candidate>,
    /// Of each candidate those runs that have a record.
    pub scores: Vec<CandidateScores>,
    /// The runs that have none yet, with the candidates they are of.
    pub missing: Vec<(usize, Run)>,
}

impl Stage {
    fn new(candidates: Vec<Candidate>, record: &mut impl FnMut(&Run) -> Result<Option<Record>>) -> Result<Self> {
        let (mut scores, mut missing) = (Vec::new(), Vec::new());
        for (index, candidate) in candidates.iter().enumerate() {
            let mut of_runs = Vec::new();
            for run in &candidate.runs {
                match record(run)? {
                    Some(record) => of_runs.push(record.best_score()),
                    None => missing.push((index, run.clone())),
                }
            }
            scores.push(CandidateScores(of_runs));
        }
        Ok(Self { number: 1, of: 1, candidates, scores, missing })
    }

    fn numbered(self, number: usize, of: usize) -> Self {
        Self { number, of, ..self }
    }

    /// The candidates, the best first; those without any score last.
    pub fn ranking(&self) -> Vec<(&Candidate, &CandidateScores)> {
        let mut ranking: Vec<_> = self.candidates.iter().zip(&self.scores).collect();
        ranking.sort_by(|(_, a), (_, b)| {
            let (a, b) = (a.mean(), b.mean());
            a.is_nan().cmp(&b.is_nan()).then(b.total_cmp(&a))
        });
        ranking
    }
}

impl fmt::Display for Stage {
    /// How far it is, such as `stage 1 of 3: 27 candidates, 4 of 27 runs have their records`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { number, of, candidates, missing, .. } = self;
        let runs: usize = candidates.iter().map(|candidate| candidate.runs.len()).sum();
        if *of > 1 {
            write!(f, "stage {number} of {of}: ")?;
        }
        write!(f, "{} candidates, {} of {runs} runs have their records", candidates.len(), runs - missing.len())
    }
}

/// Makes the runs of a study, stage by stage, until every one has its record or one of them is interrupted. Returns the last stage.
///
/// # Errors
/// As [`Trainer::run_all`].
pub fn make(trainer: &mut Trainer, study: &Study, mut told: impl FnMut(&Stage)) -> Result<Stage> {
    loop {
        let stage = study.stage(|run| trainer.record(run))?;
        told(&stage);
        let runs: Vec<Run> = stage.missing.iter().map(|(_, run)| run.clone()).collect();
        let records = trainer.run_all(&runs)?;
        if records.iter().any(|record| !record.stop.is_final()) || runs.is_empty() {
            return study.stage(|run| trainer.record(run));
        }
    }
}

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
