//! What a run says while it runs: whole lines, since a notebook shows a line only when it ends.

use std::time::{Duration, Instant};

use crate::record::{Evaluation, StepLoss};

/// How much a run says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Nothing.
    Silent,
    /// A line at each evaluation, and one every ten seconds.
    #[default]
    Lines,
}

const PAUSE: Duration = Duration::from_secs(10);

/// Prints the lines of one run.
pub(crate) struct Lines {
    verbosity: Verbosity,
    steps: usize,
    first_step: usize,
    began: Instant,
    last: Instant,
    tokens: usize,
}

impl Lines {
    /// Lines for a run of `steps` steps of which `done` are behind it.
    pub fn new(verbosity: Verbosity, steps: usize, done: usize) -> Self {
        let now = Instant::now();
        Self { verbosity, steps, first_step: done, began: now, last: now, tokens: 0 }
    }

    pub fn say(&self, line: &str) {
        if self.verbosity == Verbosity::Lines {
            println!("{line}");
        }
    }

    /// Whether it is time for a line.
    pub fn is_due(&self) -> bool {
        self.verbosity == Verbosity::Lines && self.last.elapsed() >= PAUSE
    }

    pub fn step(&mut self, loss: &StepLoss, tokens: usize) {
        self.tokens += tokens;
        let StepLoss { step, epoch, loss, learning_rate } = *loss;
        if self.last.elapsed() < PAUSE && step < self.steps {
            return;
        }
        self.last = Instant::now();
        let seconds = self.began.elapsed().as_secs_f64();
        let left = seconds / (step - self.first_step).max(1) as f64 * (self.steps - step) as f64;
        let width = self.steps.to_string().len();
        self.say(&format!(
            "  step {step:>width$}/{}  epoch {epoch:5.2}  loss {loss:.4}  learning rate {learning_rate:.2e}  \
             {:>5.0} tokens/s  {} left",
            self.steps,
            self.tokens as f64 / seconds,
            clock(left),
        ));
    }

    pub fn evaluation(&self, evaluation: &Evaluation, best: bool) {
        let scores: Vec<String> =
            evaluation.scores.0.iter().map(|(metric, value)| format!("{metric} {value:.4}")).collect();
        self.say(&format!(
            "  epoch {:5.2}  validation loss {:.4}  {}{}",
            evaluation.epoch,
            evaluation.loss,
            scores.join("  "),
            if best { "  (best so far)" } else { "" },
        ));
    }
}

/// Seconds as `m:ss`.
pub(crate) fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
