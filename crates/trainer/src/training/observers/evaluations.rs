//! Measures the model on validation data while it trains, and keeps the weights and the predictions of the best evaluation; of the last one
//! as long as none has a score. A model whose outputs are not finite has diverged: nothing of it is kept, and the run ends.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::checkpoint::{self, State};
use crate::data::TaskData;
use crate::error::{Error, Result};
use crate::evaluation;
use crate::events::Event;
use crate::predictions::{Predicted, Predictions};
use crate::record::{Evaluation, Stop, best_evaluation};
use crate::run::Run;
use crate::training::Training;
use crate::training::observers::{EvaluationSteps, Observer};

/// The evaluations of a run.
pub(crate) struct Evaluations {
    run: Run,
    data: Arc<TaskData>,
    steps: EvaluationSteps,
    predictions: PathBuf,
    weights: Option<PathBuf>,
}

/// A model on validation data.
struct Measured {
    evaluation: Evaluation,
    /// Whether its loss is a finite number on every split.
    is_finite: bool,
    /// None where an output is not finite.
    predictions: Option<Predictions>,
}

impl Evaluations {
    /// Evaluations on `data`, the predictions of the best written to a file, and its weights if one is given for them.
    pub(crate) fn new(
        run: Run,
        data: Arc<TaskData>,
        steps: EvaluationSteps,
        predictions: PathBuf,
        weights: Option<PathBuf>,
    ) -> Self {
        Self { run, data, steps, predictions, weights }
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
        let Measured { evaluation, predictions, .. } = self.measure(training)?;
        training.logger.log(&Event::Evaluated { evaluation: &evaluation, is_best: false });
        if evaluation.loss.is_finite() && best_evaluation(&training.state.evaluations).is_none() {
            self.keep(training, predictions.as_ref())?;
        }
        training.state.evaluations.push(evaluation);
        Ok(())
    }

    fn measure(&self, training: &Training) -> Result<Measured> {
        let (task, step) = (self.data.task, training.state.step);
        let (mut results, mut splits, mut is_finite) = (Vec::new(), Vec::new(), true);
        for (split, examples) in &self.data.validation {
            let measured = evaluation::measure(&training.learner.model, task, examples)?;
            is_finite &= measured.loss.is_finite();
            results.push((*split, measured.loss, measured.scores));
            let labels = examples.targets.clone();
            splits.extend(measured.predicted.map(|predicted| Predicted { split: *split, predicted, labels }));
        }
        let mut results = results.into_iter();
        let (_, loss, scores) = results.next().ok_or_else(|| Error::NotTrainable {
            task: task.to_string(),
            what: "validation data",
            hint: "a run is measured on it",
        })?;
        let other_scores = results.map(|(split, _, scores)| (split, scores)).collect();
        let evaluation = Evaluation { step, epoch: training.epoch(), loss, scores, other_scores };
        let predictions = is_finite.then(|| Predictions { run: self.run.clone(), step, splits });
        Ok(Measured { evaluation, is_finite, predictions })
    }

    fn keep(&self, training: &Training, predictions: Option<&Predictions>) -> Result<()> {
        predictions.map_or(Ok(()), |predictions| predictions.write(&self.predictions))?;
        let (origin, parameters) = (&training.state.origin, training.learner.model.parameters());
        self.weights.iter().try_for_each(|path| checkpoint::save_weights(path, origin, parameters))
    }
}

impl Observer for Evaluations {
    fn is_due(&self, step: usize, steps: usize) -> bool {
        self.steps.contain(step, steps)
    }

    fn after_step(&mut self, training: &mut Training) -> Result<ControlFlow<Stop>> {
        let Measured { evaluation, is_finite, predictions } = self.measure(training)?;
        training.state.evaluations.push(evaluation.clone());
        let best = best_evaluation(&training.state.evaluations).map(|best| best.step);
        let is_best = best == Some(evaluation.step);
        training.logger.log(&Event::Evaluated { evaluation: &evaluation, is_best });
        if is_best || best.is_none() && evaluation.loss.is_finite() {
            self.keep(training, predictions.as_ref())?;
        }
        Ok(if is_finite { ControlFlow::Continue(()) } else { ControlFlow::Break(Stop::Diverged) })
    }
}
