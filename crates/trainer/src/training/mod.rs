//! The training loop: steps over batches until the last one, or until a part that listens ends it.

pub(crate) mod observers;
mod optimizer;
mod pending_losses;
pub(crate) mod replicas;
mod schedule;
pub(crate) mod step;

use std::ops::ControlFlow;
use std::time::Instant;

use crate::checkpoint::State;
use crate::error::Result;
use crate::events::{Event, JobLogger};
use crate::record::{StepLoss, Stop};
use crate::run::Settings;
use crate::training::observers::Observer;
use crate::training::pending_losses::PendingLosses;
use crate::training::replicas::Replicas;
use crate::training::step::{Learner, Shard, Update};

pub(crate) use optimizer::Optimizer;
use schedule::Schedule;

/// A model in training.
pub(crate) struct Training<'a> {
    pub learner: Learner,
    /// What was logged and counted, of the steps whose losses were read.
    pub state: State,
    pub logger: &'a mut dyn JobLogger,
    pub plan: StepPlan,
    replicas: Replicas,
    pending: PendingLosses,
    pace: Pace,
}

/// How many steps there are, and how fast each learns.
#[derive(Clone, Copy)]
pub(crate) struct StepPlan {
    pub steps: usize,
    pub steps_per_epoch: usize,
    schedule: Schedule,
    learning_rate: f64,
}

impl StepPlan {
    pub(crate) fn new(settings: &Settings, steps: usize, steps_per_epoch: usize) -> Self {
        let schedule = Schedule::new(steps, settings.warmup_ratio);
        Self { steps, steps_per_epoch, schedule, learning_rate: settings.learning_rate }
    }

    /// Passes over the training set after so many steps.
    pub(crate) fn epoch(&self, steps: usize) -> f64 {
        steps as f64 / self.steps_per_epoch as f64
    }
}

impl<'a> Training<'a> {
    /// Training that goes on from `state`, in which the learner and its replicas are.
    pub(crate) fn new(
        learner: Learner,
        replicas: Replicas,
        plan: StepPlan,
        state: State,
        logger: &'a mut dyn JobLogger,
    ) -> Self {
        let pending = PendingLosses::new(learner.model.device());
        let pace = Pace { began: Instant::now(), first_step: state.step, tokens: 0 };
        Self { learner, state, logger, replicas, plan, pending, pace }
    }

    /// Takes all steps that are left, each on what `batch` gives for its number, counted from 0, and calls the observers in their order.
    ///
    /// # Errors
    /// When a step or an observer fails. Out of memory no step is half taken.
    pub(crate) fn run(
        &mut self,
        mut batch: impl FnMut(usize) -> Result<Shard>,
        observers: &mut [&mut dyn Observer],
    ) -> Result<Stop> {
        let steps = self.plan.steps;
        while self.steps_taken() < steps {
            let began = Instant::now();
            self.take_step(&batch(self.steps_taken())?)?;
            let step = self.steps_taken();
            let due: Vec<_> = observers.iter_mut().filter(|observer| observer.is_due(step, steps)).collect();
            let reads = step == steps || !due.is_empty() || self.pending.is_due();
            if reads && let ControlFlow::Break(stop) = self.read_losses()? {
                return Ok(stop);
            }
            self.state.train_seconds += began.elapsed().as_secs_f64();
            for observer in due {
                if let ControlFlow::Break(stop) = observer.after_step(self)? {
                    return Ok(stop);
                }
            }
        }
        Ok(Stop::Finished)
    }

    /// Passes over the training set by now.
    pub(crate) fn epoch(&self) -> f64 {
        self.plan.epoch(self.state.step)
    }

    /// Waits for all steps so far and logs their losses; up to one that is not finite, which ends the run.
    ///
    /// # Errors
    /// When a device failed in one of the steps.
    pub(crate) fn read_losses(&mut self) -> Result<ControlFlow<Stop>> {
        self.replicas.wait(&self.learner.model)?;
        let steps = self.plan.steps;
        for (loss, tokens) in self.pending.read()? {
            let StepLoss { step, loss: value, .. } = loss;
            if !value.is_finite() {
                self.logger.log(&Event::Diverged { step, loss: value });
                return Ok(ControlFlow::Break(Stop::Diverged));
            }
            self.state.step = step;
            self.state.tokens += tokens;
            self.state.losses.push(loss);
            self.pace.tokens += tokens;
            let (tokens_per_second, seconds_left) = self.pace.at(step, steps);
            self.logger.log(&Event::Step { loss, steps, tokens_per_second, seconds_left });
        }
        Ok(ControlFlow::Continue(()))
    }

    fn steps_taken(&self) -> usize {
        self.state.step + self.pending.len()
    }

    fn take_step(&mut self, shard: &Shard) -> Result<()> {
        let index = self.steps_taken();
        let update = Update { index, factor: self.plan.schedule.factor(index) };
        let before = self.state.part_tokens;
        let loss = self.replicas.step(&mut self.learner, shard, update, &mut self.state.part_tokens);
        let step = index + 1;
        if let (Some(part_tokens), true) = (self.state.part_tokens, self.state.part_tokens != before) {
            self.logger.log(&Event::OutOfMemory { step, part_tokens });
        }
        let learning_rate = self.plan.learning_rate * update.factor;
        let unread = StepLoss { step, epoch: self.plan.epoch(step), loss: f64::NAN, learning_rate };
        self.pending.push(unread, shard.batch.tokens(), loss?);
        Ok(())
    }
}

/// The speed of the steps since training began or was resumed.
struct Pace {
    began: Instant,
    first_step: usize,
    tokens: usize,
}

impl Pace {
    /// Tokens per second, and the seconds left until the last step.
    fn at(&self, step: usize, steps: usize) -> (f64, f64) {
        let seconds = self.began.elapsed().as_secs_f64();
        let seconds_per_step = seconds / (step - self.first_step).max(1) as f64;
        (self.tokens as f64 / seconds, seconds_per_step * (steps - step) as f64)
    }
}
