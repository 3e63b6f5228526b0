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

/// Who says the lines of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Voice {
    verbosity: Verbosity,
    /// Before each line.
    place: String,
}

impl Voice {
    pub fn new(verbosity: Verbosity) -> Self {
        Self { verbosity, place: String::new() }
    }

    /// With the place of a run among others before each of its lines, from 1, so that those of runs at once are told apart.
    pub fn at(self, place: usize, runs: usize) -> Self {
        let width = runs.to_string().len();
        Self { place: format!("[{place:>width$}/{runs}] "), ..self }
    }

    pub fn say(&self, line: &str) {
        if !self.is_silent() {
            println!("{}{line}", self.place);
        }
    }

    fn is_silent(&self) -> bool {
        self.verbosity == Verbosity::Silent
    }
}

const PAUSE: Duration = Duration::from_secs(10);

/// The lines of one run in training.
pub(crate) struct Lines {
    voice: Voice,
    steps: usize,
    first_step: usize,
    began: Instant,
    last: Instant,
    tokens: usize,
}

impl Lines {
    /// Lines for a run of `steps` steps of which `done` are behind it.
    pub fn new(voice: Voice, steps: usize, done: usize) -> Self {
        let now = Instant::now();
        Self { voice, steps, first_step: done, began: now, last: now, tokens: 0 }
    }

    pub fn say(&self, line: &str) {
        self.voice.say(line);
    }

    /// Whether it is time for a line.
    pub fn is_due(&self) -> bool {
        !self.voice.is_silent() && self.last.elapsed() >= PAUSE
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_among_others_has_its_place_before_each_line_as_wide_as_every_other() {
        let voice = |place| Voice::new(Verbosity::Lines).at(place, 10).place;
        assert_eq!([voice(3), voice(10)], ["[ 3/10] ", "[10/10] "]);
        assert_eq!(Voice::default().place, "");
    }
}
