//! The record of a run: losses, evaluations, parameter counts, time, memory and environment. It is the one source of every table, chart
//! and report.

mod file;

use std::fmt;

use glue::{Completeness, Metric, Scores, Split};
use serde::{Deserialize, Serialize};

use crate::inputs::Inputs;
use crate::movement::Movement;
use crate::run::Run;
use crate::statistics::best_by;

pub(crate) use file::LINES;
pub use file::{Condition, check, migrate};

/// Everything about a run: what it was, what it logged, what it reached, and under which conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The run.
    pub run: Run,
    /// What it was made from; records of before there were such have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Inputs>,
    /// The run that fine-tuned the model it started from, where that is a merged checkpoint which tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_made_by: Option<Run>,
    /// How many numbers were trained.
    pub parameters: ParameterCounts,
    /// How much data there was.
    pub data: DataSummary,
    /// The loss of each training step; of more than 2,000 steps the mean over each of at most 2,000 equal stretches, under the number of the
    /// stretch's last. Then all of them lie beside the record ([`Trainer::losses`](crate::Trainer::losses)).
    pub losses: Vec<StepLoss>,
    /// Every evaluation, in order.
    pub evaluations: Vec<Evaluation>,
    /// The best of them by the task's score on its first validation split, whose weights are kept. A score that is not a number never wins,
    /// and the evaluation of an interruption only where no other has a score.
    pub best: Option<Evaluation>,
    /// How far its last step left the model from where it began, where that was to be measured
    /// ([`Trainer::movement_examples`](crate::Trainer::movement_examples)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub movement: Option<Movement>,
    /// Why it ended.
    pub stop: Stop,
    /// Seconds spent in training steps, those before the run was resumed among them. Where runs were made concurrently
    /// ([`Environment::at_once`]) each waited for the others at times.
    #[serde(with = "glue::number")]
    pub train_seconds: f64,
    /// Tokens trained on, over all steps. There is no padding.
    pub tokens: usize,
    /// The highest memory use of the process so far, in bytes; on a GPU, of the card's memory; 0 where the system does not tell. It
    /// is of all runs together that were made concurrently.
    pub peak_memory: u64,
    /// By what it was computed.
    pub environment: Environment,
}

impl Record {
    /// Training tokens per second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.train_seconds
    }

    /// The best value of `metric` at the best evaluation; not a number if there was none.
    pub fn best_metric(&self, metric: Metric) -> f64 {
        self.scored().and_then(|best| best.scores.get(metric)).unwrap_or(f64::NAN)
    }

    /// The value of `metric` on a validation split at the best evaluation; not a number if there was none.
    pub fn score_on(&self, split: Split, metric: Metric) -> f64 {
        if self.run.task.validation_splits().first() == Some(&split) {
            return self.best_metric(metric);
        }
        let others = self.scored().into_iter().flat_map(|best| &best.other_scores);
        let scores = others.filter(|(other, _)| *other == split).find_map(|(_, scores)| scores.get(metric));
        scores.unwrap_or(f64::NAN)
    }

    /// Where a run that diverged did so, such as `at step 7`.
    pub(crate) fn divergence(&self) -> String {
        match self.evaluations.last() {
            Some(last) if !last.loss.is_finite() => format!("at the evaluation after step {}", last.step),
            _ => format!("at step {}", self.losses.last().map_or(1, |last| last.step + 1)),
        }
    }

    /// The task's score, the mean of its metrics, at the best evaluation; not a number if there was none.
    pub fn best_score(&self) -> f64 {
        self.scored().map_or(f64::NAN, |best| best.scores.mean())
    }

    /// The best evaluation. Records of before say some of models whose outputs were not finite, which counted as the first class.
    fn scored(&self) -> Option<&Evaluation> {
        self.best.as_ref().filter(|best| best.loss.is_finite())
    }
}

/// How many numbers a run trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCounts {
    /// Trained, the classifier among them.
    pub trainable: usize,
    /// Trained, without the classifier: what papers count.
    pub without_head: usize,
    /// In the whole model.
    pub total: usize,
}

/// How much data a run had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Examples trained on.
    pub train_used: usize,
    /// Examples in the training file, and in the official one.
    pub train: Completeness,
    /// The same for each validation split.
    pub validation: Vec<(Split, Completeness)>,
    /// Training rows left out because a field was missing (QQP has some).
    pub dropped: usize,
    /// Which data it was.
    pub origin: String,
    /// Whether the project made the data itself.
    pub synthetic: bool,
}

impl DataSummary {
    /// Whether a set was not whole, so that a score does not compare with a published one.
    pub fn is_partial(&self) -> bool {
        self.held_out().is_some()
            || self.train.is_partial()
            || self.validation.iter().any(|(_, completeness)| completeness.is_partial())
    }

    /// How many training examples the run was validated on, if not on GLUE's validation set.
    pub fn held_out(&self) -> Option<usize> {
        self.validation.iter().find(|(split, _)| *split == Split::Train).map(|(_, completeness)| completeness.found)
    }

    /// What must stand beside a score: `synthetic`, `partial data: ...`, `10000 of 67349 training examples`, or nothing.
    pub fn caveat(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.synthetic {
            parts.push("synthetic data".to_string());
        }
        if self.train.is_partial() {
            parts.push(format!("train {}", self.train));
        }
        for (split, completeness) in self.validation.iter().filter(|(_, completeness)| completeness.is_partial()) {
            parts.push(format!("{split} {completeness}"));
        }
        if let Some(held_out) = self.held_out() {
            parts.push(format!("validated on {held_out} held-out training examples"));
        }
        if self.train_used + self.held_out().unwrap_or(0) < self.train.rows() {
            parts.push(format!("trained on {} of {} examples", self.train_used, self.train.rows()));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The loss of one training step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLoss {
    /// From 1.
    pub step: usize,
    /// Passes over the training set, this step included: 1.0 after the first.
    #[serde(with = "glue::number")]
    pub epoch: f64,
    /// The mean loss of the batch, before the step.
    #[serde(with = "glue::number")]
    pub loss: f64,
    /// The learning rate of the step.
    #[serde(with = "glue::number")]
    pub learning_rate: f64,
}

/// The model on validation data, without dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After this many steps.
    pub step: usize,
    /// After this many passes over the training set.
    #[serde(with = "glue::number")]
    pub epoch: f64,
    /// The mean loss on the first validation split; not a number where the model's outputs are not finite.
    #[serde(with = "glue::number")]
    pub loss: f64,
    /// The metrics on the first validation split.
    pub scores: Scores,
    /// The metrics on the others: MNLI's mismatched one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_scores: Vec<(Split, Scores)>,
}

/// The best evaluation: the highest score, the first of equals; never one that is not a number.
pub(crate) fn best_evaluation(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    best_by(evaluations.iter().filter(|evaluation| evaluation.loss.is_finite()), |evaluation| evaluation.scores.mean())
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// All steps were taken.
    Finished,
    /// The score did not improve for `patience` evaluations.
    EarlyStopping,
    /// The loss of a step or of an evaluation was not a finite number: the learning rate is too high.
    Diverged,
    /// The wall-clock budget was spent. Asked for again, the run goes on.
    TimeBudget,
    /// The stop file was there. Asked for again, the run goes on.
    StopFile,
    /// Somebody asked it to stop, by a signal or [`Trainer::stop_when`](crate::Trainer::stop_when). Asked for again, the run goes on.
    Interrupted,
}

impl Stop {
    /// Whether there is nothing left to do.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::EarlyStopping | Self::Diverged)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "all steps taken",
            Self::EarlyStopping => "stopped early: the score did not improve",
            Self::Diverged => "diverged: the loss is not finite, try a lower learning rate",
            Self::TimeBudget => "time budget spent: run it again to go on",
            Self::StopFile => "stop file found: remove it and run again to go on",
            Self::Interrupted => "interrupted: run it again to go on",
        })
    }
}

/// The machine and program that a run was computed by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// This crate's version.
    pub version: String,
    /// The commit of the project's repository, with `-dirty` after it where files differed; outside a repository there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Operating system and processor architecture.
    pub platform: String,
    /// The processor's name, where the system tells.
    pub processor: String,
    /// The GPU that computed, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// How many GPUs shared each batch, if it was not one alone. The name is that of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cards: Option<usize>,
    /// How many runs were made concurrently, if it was not this one alone: then times and memory are not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<usize>,
    /// Threads of the computation on the CPU.
    pub threads: usize,
    /// When the run ended, in seconds since 1970.
    pub finished_at: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use proptest::prelude::*;

    use super::*;

    /// Any number, finite or not.
    pub(crate) fn number() -> impl Strategy<Value = f64> + Clone {
        prop_oneof![proptest::num::f64::ANY, Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0)]
    }

    /// Any text: empty, of quotes and control characters, of other scripts.
    pub(crate) fn text() -> impl Strategy<Value = String> {
        let characters = prop_oneof![any::<char>(), Just('"'), Just('\\'), Just('\u{1f}'), Just('{'), Just(' ')];
        proptest::collection::vec(characters, 0..12).prop_map(String::from_iter)
    }

    fn scores() -> impl Strategy<Value = Scores> {
        let metric = prop_oneof![Just(Metric::Accuracy), Just(Metric::F1), Just(Metric::Pearson)];
        proptest::collection::btree_map(metric, number(), 0..3).prop_map(Scores)
    }

    pub(crate) fn evaluation() -> impl Strategy<Value = Evaluation> {
        let others = proptest::collection::vec((Just(Split::ValidationMismatched), scores()), 0..2);
        (any::<usize>(), number(), number(), scores(), others).prop_map(|(step, epoch, loss, scores, other_scores)| {
            Evaluation { step, epoch, loss, scores, other_scores }
        })
    }

    pub(crate) fn step_loss() -> impl Strategy<Value = StepLoss> {
        (any::<usize>(), number(), number(), number()).prop_map(|(step, epoch, loss, learning_rate)| StepLoss {
            step,
            epoch,
            loss,
            learning_rate,
        })
    }

    fn scored(step: usize, value: f64) -> Evaluation {
        let scores = Scores([(Metric::Pearson, value)].into());
        Evaluation { step, epoch: 0.0, loss: 0.0, scores, other_scores: Vec::new() }
    }

    #[test]
    fn a_score_that_is_not_a_number_never_wins_and_never_blocks() {
        let evaluations = [scored(1, f64::NAN), scored(2, 0.3), scored(3, f64::NAN), scored(4, 0.5), scored(5, 0.5)];
        assert_eq!(best_evaluation(&evaluations).unwrap().step, 4);
        assert!(best_evaluation(&evaluations[..1]).is_none());
    }

    #[test]
    fn a_score_of_before_of_a_model_without_finite_outputs_is_none() {
        let mut record = crate::submission::tests::record(glue::Task::StsB, peft::Method::bitfit(), 1, 0.5);
        assert_eq!((record.best_score(), record.best_metric(Metric::Pearson)), (0.5, 0.5));
        record.best.as_mut().unwrap().loss = f64::NAN;
        assert!(record.best_score().is_nan() && record.best_metric(Metric::Pearson).is_nan());
        assert!(best_evaluation(&[record.best.unwrap()]).is_none());
    }
}
