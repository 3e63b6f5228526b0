//! Measures the model on validation data while it trains, and keeps the weights of the best evaluation; of the last one as long as none
//! has a score. A model whose outputs are not finite has diverged: nothing of it is kept, and the run ends.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::checkpoint;
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

/// A model on validation data.
struct Measured {
    evaluation: Evaluation,
    /// Whether its loss is a finite number on every split.
    is_finite: bool,
}

impl Evaluations {
    /// Evaluations on `data`, the weights of the best written to a file if one is given.
    pub(crate) fn new(data: Arc<TaskData>, steps: EvaluationSteps, weights: Option<PathBuf>) -> Self {
        Self { data, steps, weights }
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
        let Measured { evaluation, .. } = self.measure(training)?;
        training.logger.log(&Event::Evaluated { evaluation: &evaluation, is_best: false });
        if evaluation.loss.is_finite() && best_evaluation(&training.state.evaluations).is_none() {
            self.keep_weights(training)?;
        }
        training.state.evaluations.push(evaluation);
        Ok(())
    }

    fn measure(&self, training: &Training) -> Result<Measured> {
        let task = self.data.task;
        let mut results = Vec::new();
        for (split, examples) in &self.data.validation {
            results.push((*split, evaluate(&training.learner.model, task, examples)?));
        }
        let is_finite = results.iter().all(|(_, (loss, _))| loss.is_finite());
        let mut results = results.into_iter();
        let (_, (loss, scores)) = results.next().ok_or_else(|| Error::NotTrainable {
            task: task.to_string(),
            what: "validation data",
            hint: "a run is measured on it",
        })?;
        let other_scores = results.map(|(split, (_, scores))| (split, scores)).collect();
        let evaluation = Evaluation { step: training.state.step, epoch: training.epoch(), loss, scores, other_scores };
        Ok(Measured { evaluation, is_finite })
    }

    fn keep_weights(&self, training: &Training) -> Result<()> {
        let (origin, parameters) = (&training.state.origin, training.learner.model.parameters());
        self.weights.iter().try_for_each(|path| checkpoint::save_weights(path, origin, parameters))
    }
}

impl Observer for Evaluations {
    fn is_due(&self, step: usize, steps: usize) -> bool {
        self.steps.contain(step, steps)
    }

    fn after_step(&mut self, training: &mut Training) -> Result<ControlFlow<Stop>> {
        let Measured { evaluation, is_finite } = self.measure(training)?;
        training.state.evaluations.push(evaluation.clone());
        let best = best_evaluation(&training.state.evaluations).map(|best| best.step);
        let is_best = best == Some(evaluation.step);
        training.logger.log(&Event::Evaluated { evaluation: &evaluation, is_best });
        if is_best || best.is_none() && evaluation.loss.is_finite() {
            self.keep_weights(training)?;
        }
        Ok(if is_finite { ControlFlow::Continue(()) } else { ControlFlow::Break(Stop::Diverged) })
    }
}
