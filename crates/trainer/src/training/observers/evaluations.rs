//! Measures the model on validation data while it trains, and keeps the weights of the best evaluation; of the last one as long as none
//! has a score.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::checkpoint::{self, State};
use crate::data::TaskData;
use crate::error::{Error, Result};
use crate::evaluation::evaluate;
use crate::events::Event;
use crate::record::{Evaluation, Stop, best_evaluation};
use crate::training::Training;
use crate::training::observers::{EvaluationSteps, Observer};

/// The evaluations of a run.
pub(crate) struct Evaluations {
    data: Arc<TaskData>,
    steps: EvaluationSteps,
    weights: Option<PathBuf>,
}

impl Evaluations {
    /// Evaluations on `data`, the weights of the best written to a file if one is given.
    pub(crate) fn new(data: Arc<TaskData>, steps: EvaluationSteps, weights: Option<PathBuf>) -> Self {
        Self { data, steps, weights }
    }

    /// Whether the evaluation after the last step of a state is due and was not made, since it was interrupted.
    pub(crate) fn is_missing(&self, state: &State, steps: usize) -> bool {
        let last = state.evaluations.last().map_or(0, |last| last.step);
        state.step > last && self.steps.contain(state.step, steps)
    }

    /// Measures what there is so far of a run that was interrupted, for the caller. It comes after the checkpoint and so is not in it:
    /// the run that goes on equals one that was never interrupted.
    ///
    /// # Errors
    /// As [`Observer::after_step`].
    pub(crate) fn measure_interrupted(&self, training: &mut Training) -> Result<()> {
        if training.state.evaluations.last().is_some_and(|last| last.step >= training.state.step) {
            return Ok(());
        }
        let evaluation = self.measure(training)?;
        training.logger.log(&Event::Evaluated { evaluation: &evaluation, is_best: false });
        if best_evaluation(&training.state.evaluations).is_none() {
            self.keep_weights(training)?;
        }
        training.state.evaluations.push(evaluation);
        Ok(())
    }

    fn measure(&self, training: &Training) -> Result<Evaluation> {
        let task = self.data.task;
        let mut results = Vec::new();
        for (split, examples) in &self.data.validation {
            results.push((*split, evaluate(&training.learner.model, task, examples)?));
        }
        let mut results = results.into_iter();
        let (_, (loss, scores)) = results.next().ok_or_else(|| Error::NotTrainable {
            task: task.to_string(),
            what: "validation data",
            hint: "a run is measured on it",
        })?;
        let other_scores = results.map(|(split, (_, scores))| (split, scores)).collect();
        Ok(Evaluation { step: training.state.step, epoch: training.epoch(), loss, scores, other_scores })
    }

    fn keep_weights(&self, training: &Training) -> Result<()> {
        self.weights.iter().try_for_each(|path| checkpoint::save_weights(path, training.learner.model.parameters()))
    }
}

impl Observer for Evaluations {
    fn is_due(&self, step: usize, steps: usize) -> bool {
        self.steps.contain(step, steps)
    }

    fn after_step(&mut self, training: &mut Training) -> Result<ControlFlow<Stop>> {
        let evaluation = self.measure(training)?;
        training.state.evaluations.push(evaluation.clone());
        let best = best_evaluation(&training.state.evaluations).map(|best| best.step);
        let is_best = best == Some(evaluation.step);
        training.logger.log(&Event::Evaluated { evaluation: &evaluation, is_best });
        if is_best || best.is_none() {
            self.keep_weights(training)?;
        }
        Ok(ControlFlow::Continue(()))
    }
}
