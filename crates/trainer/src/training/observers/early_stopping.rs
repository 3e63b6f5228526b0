//! Stops a run whose score on validation data improves no more.

use std::ops::ControlFlow;

use crate::error::Result;
use crate::record::{Evaluation, Stop, best_evaluation};
use crate::training::Training;
use crate::training::observers::{EvaluationSteps, Observer};

/// Ends a run when its last `patience` evaluations brought no better score; comes after what evaluates.
pub(crate) struct EarlyStopping {
    steps: EvaluationSteps,
    patience: Option<usize>,
}

impl EarlyStopping {
    /// Without patience it never ends a run.
    pub(crate) fn new(steps: EvaluationSteps, patience: Option<usize>) -> Self {
        Self { steps, patience }
    }
}

impl Observer for EarlyStopping {
    fn is_due(&self, step: usize, steps: usize) -> bool {
        self.patience.is_some() && step < steps && self.steps.contain(step, steps)
    }

    fn after_step(&mut self, training: &mut Training) -> Result<ControlFlow<Stop>> {
        let stale = evaluations_since_best(&training.state.evaluations);
        let is_over = self.patience.is_some_and(|patience| stale >= patience);
        Ok(if is_over { ControlFlow::Break(Stop::EarlyStopping) } else { ControlFlow::Continue(()) })
    }
}

/// How many evaluations came after the best; all, where none has a score.
fn evaluations_since_best(evaluations: &[Evaluation]) -> usize {
    let best = best_evaluation(evaluations).map(|best| best.step);
    evaluations.iter().rev().take_while(|evaluation| Some(evaluation.step) > best).count()
}

#[cfg(test)]
mod tests {
    use glue::{Metric, Scores};

    use super::*;

    #[test]
    fn only_evaluations_after_the_best_count_against_a_run() {
        const NO_SCORE: f64 = f64::NAN;
        for (scores, expected) in [
            (&[][..], 0),
            (&[0.5], 0),
            (&[0.5, 0.6, 0.7], 0),
            (&[0.5, 0.4], 1),
            (&[0.5, 0.5, 0.5], 2), // The first of equals is the best.
            (&[0.5, 0.4, NO_SCORE], 2),
            (&[0.5, NO_SCORE, 0.6], 0),
            (&[0.3, 0.6, 0.5, 0.4, 0.2], 3),
            (&[-0.1, -0.3], 1),
            (&[NO_SCORE, NO_SCORE], 2),
        ] {
            let evaluation = |(index, &score): (usize, &f64)| Evaluation {
                step: 10 * (index + 1),
                epoch: 0.0,
                loss: 0.0,
                scores: Scores([(Metric::Pearson, score)].into()),
                other_scores: Vec::new(),
            };
            let evaluations: Vec<Evaluation> = scores.iter().enumerate().map(evaluation).collect();
            assert_eq!(evaluations_since_best(&evaluations), expected, "{scores:?}");
        }
    }
}
