//! The training loop.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use peft::Model;

use crate::batches::epoch_batches;
use crate::checkpoint::{self, Progress};
use crate::data::TaskData;
use crate::error::{Error, Result};
use crate::evaluation::evaluate;
use crate::optimizer::Optimizer;
use crate::progress::{Lines, Voice};
use crate::record::{Evaluation, StepLoss, Stop};
use crate::replicas::Replicas;
use crate::run::{Evaluate, Run};
use crate::schedule::Schedule;
use crate::statistics::best_by;
use crate::step::Step;

/// What may end a run before its last step, and what it keeps.
pub(crate) struct Conditions {
    /// Where checkpoint and weights lie.
    pub folder: PathBuf,
    /// Stop after this much time in this sitting.
    pub time_budget: Option<Duration>,
    /// Stop when one of these files exists.
    pub stop_files: Vec<PathBuf>,
    /// Keep the weights of the best evaluation.
    pub keep_weights: bool,
    pub voice: Voice,
}

impl Conditions {
    pub fn checkpoint(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    pub fn weights(&self) -> PathBuf {
        self.folder.join("weights.safetensors")
    }

    /// What ends a sitting that began then, if anything does by now.
    fn stop(&self, began: Instant) -> Option<Stop> {
        if self.time_budget.is_some_and(|budget| began.elapsed() >= budget) {
            return Some(Stop::TimeBudget);
        }
        self.stop_files.iter().any(|file| file.exists()).then_some(Stop::StopFile)
    }
}

/// Time between two checkpoints.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(60);

/// Trains `model` from its checkpoint, if it has one, to the end or until a condition stops it; with its replicas on other cards.
pub(crate) fn train(
    run: &Run,
    data: &TaskData,
    model: &Model,
    replicas: &Replicas,
    conditions: &Conditions,
) -> Result<(Progress, Stop)> {
    let settings = &run.settings;
    let lengths = data.train.lengths();
    let steps_per_epoch = lengths.len().div_ceil(settings.batch_size);
    let steps = settings.steps(lengths.len());
    let schedule = Schedule::new(steps, settings.warmup_ratio);
    let mut optimizer = Optimizer::new(model, settings)?;
    let mut progress = checkpoint::load(&conditions.checkpoint(), &mut optimizer)?.unwrap_or_default();
    let mut lines = Lines::new(conditions.voice.clone(), steps, progress.step);
    if progress.step > 0 {
        lines.say(&format!("  going on after step {} of {steps}", progress.step));
    }
    let (began, mut saved) = (Instant::now(), Instant::now());
    let mut unread = Unread::new(model.device());
    let mut batches = Vec::new();

    while progress.step < steps {
        let step = progress.step + unread.len();
        let (epoch, index) = (step / steps_per_epoch, step % steps_per_epoch);
        if index == 0 || batches.is_empty() {
            batches = epoch_batches(&lengths, settings.batch_size, settings.group_by_length, run.seed, epoch);
        }
        let step_began = Instant::now();
        let (batch, targets) = data.train.batch(&batches[index])?;
        let seed = run.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (step as u64) << 20;
        let factor = schedule.factor(step);
        let this = Step { index: step, seed, factor };
        let before = progress.part_tokens;
        let taken = replicas.step(model, &mut optimizer, &batch, &targets, this, &mut progress.part_tokens);
        if let (Some(tokens), true) = (progress.part_tokens, progress.part_tokens != before) {
            lines.say(&format!("  step {}: out of memory; from here on in parts of {tokens} tokens", step + 1));
        }
        let out_of_memory = match taken {
            Ok(loss) => {
                let epoch = (step + 1) as f64 / steps_per_epoch as f64;
                let learning_rate = settings.learning_rate * factor;
                unread.push(StepLoss { step: step + 1, epoch, loss: f64::NAN, learning_rate }, batch.tokens(), loss);
                None
            }
            Err(error @ Error::OutOfMemory { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        let evaluates = due(settings.evaluate, step + 1, steps_per_epoch, steps);
        let saves = saved.elapsed() >= CHECKPOINT_PAUSE;
        let stop = conditions.stop(began);
        let reads =
            out_of_memory.is_some() || evaluates || saves || stop.is_some() || lines.is_due() || unread.is_full();
        if reads {
            replicas.wait(model)?;
            if unread.read(&mut progress, &mut lines)?.is_break() {
                return Ok((progress, Stop::Diverged));
            }
        }
        progress.train_seconds += step_began.elapsed().as_secs_f64();
        if let Some(error) = out_of_memory {
            checkpoint::save(&conditions.checkpoint(), &mut optimizer, &progress)?;
            return Err(error);
        }
        if evaluates {
            let evaluation = evaluation(model, data, &progress, steps_per_epoch)?;
            progress.evaluations.push(evaluation.clone());
            let best = best(&progress.evaluations).is_some_and(|best| best.step == progress.step);
            lines.evaluation(&evaluation, best);
            if best && conditions.keep_weights {
                checkpoint::save_weights(&conditions.weights(), model.parameters())?;
            }
            if stale(&progress.evaluations, settings.patience) && progress.step < steps {
                return Ok((progress, Stop::EarlyStopping));
            }
        }
        if progress.step == steps {
            break;
        }
        if stop.is_some() || saves {
            checkpoint::save(&conditions.checkpoint(), &mut optimizer, &progress)?;
            saved = Instant::now();
        }
        if let Some(stop) = stop {
            // What there is so far is measured for the caller, but not logged: the run that goes on equals one that was
            // never interrupted.
            if progress.evaluations.last().is_none_or(|last| last.step < progress.step) {
                let evaluation = evaluation(model, data, &progress, steps_per_epoch)?;
                lines.evaluation(&evaluation, false);
                if progress.evaluations.is_empty() && conditions.keep_weights {
                    checkpoint::save_weights(&conditions.weights(), model.parameters())?;
                }
                progress.evaluations.push(evaluation);
            }
            return Ok((progress, stop));
        }
    }
    Ok((progress, Stop::Finished))
}

/// The steps whose losses nobody has looked at. On a GPU that would be to wait for it, so that it idles until the next step is there.
struct Unread {
    steps: Vec<(StepLoss, usize, Tensor)>,
    most: usize,
}

impl Unread {
    fn new(device: &Device) -> Self {
        Self { steps: Vec::new(), most: if device.is_cpu() { 1 } else { 64 } }
    }

    /// A step without its loss, its tokens, and its loss on the device.
    fn push(&mut self, step: StepLoss, tokens: usize, loss: Tensor) {
        self.steps.push((step, tokens, loss));
    }

    fn len(&self) -> usize {
        self.steps.len()
    }

    fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// Waits for the losses and logs them; up to one that is not finite, which breaks the run.
    fn read(&mut self, progress: &mut Progress, lines: &mut Lines) -> Result<ControlFlow<()>> {
        for (mut logged, tokens, loss) in self.steps.drain(..) {
            logged.loss = f64::from(loss.to_scalar::<f32>()?);
            if !logged.loss.is_finite() {
                lines.say(&format!("  step {}: the loss is {}", logged.step, logged.loss));
                return Ok(ControlFlow::Break(()));
            }
            progress.step = logged.step;
            progress.tokens += tokens;
            lines.step(&logged, tokens);
            progress.losses.push(logged);
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn evaluation(model: &Model, data: &TaskData, progress: &Progress, steps_per_epoch: usize) -> Result<Evaluation> {
    let (step, epoch) = (progress.step, progress.step as f64 / steps_per_epoch as f64);
    let mut results = Vec::new();
    for (split, labelled) in &data.validation {
        results.push((*split, evaluate(model, data.task, labelled)?));
    }
    let mut results = results.into_iter();
    let (_, (loss, scores)) = results.next().ok_or(Error::NotTrainable {
        task: data.task.to_string(),
        what: "validation data",
        hint: "a run is measured on it",
    })?;
    Ok(Evaluation { step, epoch, loss, scores, other_scores: results.map(|(split, (_, s))| (split, s)).collect() })
}

/// The best evaluation: the highest score, the first of equals; never one that is not a number.
pub(crate) fn best(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    best_by(evaluations, |evaluation| evaluation.scores.mean())
}

/// Whether the last `patience` evaluations brought nothing better.
fn stale(evaluations: &[Evaluation], patience: Option<usize>) -> bool {
    let since = match best(evaluations) {
        Some(best) => evaluations.iter().rev().take_while(|evaluation| evaluation.step > best.step).count(),
        None => evaluations.len(),
    };
    patience.is_some_and(|patience| since >= patience)
}

fn due(evaluate: Evaluate, step: usize, steps_per_epoch: usize, steps: usize) -> bool {
    step == steps
        || match evaluate {
            Evaluate::Epoch => step.is_multiple_of(steps_per_epoch),
            Evaluate::Steps(every) => step.is_multiple_of(every.max(1)),
        }
}

#[cfg(test)]
mod tests {
    use glue::{Metric, Scores};

    use super::*;

    fn scored(step: usize, value: f64) -> Evaluation {
        let scores = Scores([(Metric::Pearson, value)].into());
        Evaluation { step, epoch: 0.0, loss: 0.0, scores, other_scores: Vec::new() }
    }

    #[test]
    fn a_score_that_is_not_a_number_never_wins_and_never_blocks() {
        let evaluations = [scored(1, f64::NAN), scored(2, 0.3), scored(3, f64::NAN), scored(4, 0.5), scored(5, 0.5)];
        assert_eq!(best(&evaluations).unwrap().step, 4);
        assert!(best(&evaluations[..1]).is_none());
    }

    #[test]
    fn patience_counts_evaluations_since_the_best() {
        let evaluations = [scored(1, 0.5), scored(2, 0.4), scored(3, f64::NAN)];
        assert!(stale(&evaluations, Some(2)) && !stale(&evaluations, Some(3)) && !stale(&evaluations, None));
    }
}
