//! The parts of training that listen: each looks at every step, and may act after it or end the run.

mod budget;
mod checkpoints;
mod early_stopping;
mod evaluations;

use std::ops::ControlFlow;

use crate::error::Result;
use crate::record::Stop;
use crate::run::Evaluate;
use crate::training::{StepPlan, Training};

pub(crate) use budget::Budget;
pub use checkpoints::CheckpointEvery;
pub(crate) use checkpoints::Checkpoints;
pub(crate) use early_stopping::EarlyStopping;
pub(crate) use evaluations::Evaluations;

/// A part of training that listens.
pub(crate) trait Observer {
    /// Whether it acts after this step, counted from 1, of so many. Losses are read before it does, for which a GPU is waited for.
    fn is_due(&self, step: usize, steps: usize) -> bool;

    /// Acts; or ends the run.
    ///
    /// # Errors
    /// When the model cannot be measured, or a file cannot be written.
    fn after_step(&mut self, training: &mut Training) -> Result<ControlFlow<Stop>>;
}

/// The steps after which a model is evaluated.
#[derive(Clone, Copy)]
pub(crate) struct EvaluationSteps {
    every: usize,
}

impl EvaluationSteps {
    pub(crate) fn new(evaluate: Evaluate, plan: &StepPlan) -> Self {
        let every = match evaluate {
            Evaluate::Epoch => plan.steps_per_epoch,
            Evaluate::Steps(every) => every,
        };
        Self { every: every.max(1) }
    }

    fn contain(self, step: usize, steps: usize) -> bool {
        step == steps || step.is_multiple_of(self.every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Settings;

    #[test]
    fn a_model_is_evaluated_after_each_epoch_or_so_many_steps_and_after_the_last() {
        let plan = StepPlan::new(&Settings::default(), 10, 4);
        for (evaluate, expected) in [
            (Evaluate::Epoch, vec![4, 8, 10]),
            (Evaluate::Steps(3), vec![3, 6, 9, 10]),
            (Evaluate::Steps(20), vec![10]),
        ] {
            let steps = EvaluationSteps::new(evaluate, &plan);
            let found: Vec<usize> = (1..=10).filter(|&step| steps.contain(step, 10)).collect();
            assert_eq!(found, expected);
        }
    }
}
