//! Shows the progress of runs: a bar for each on a terminal, whole lines in a file or a pipe.

use std::io::{IsTerminal, stdout};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use trainer::{Event, JobLogger, LineLogger, Logger, Place, Silent};

/// The logger for where the standard output goes. What should be known of a model goes to the standard error.
pub(crate) fn logger() -> Box<dyn Logger> {
    if stdout().is_terminal() {
        return Box::new(Notes(Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stdout()))));
    }
    Box::new(Notes(LineLogger::new(stdout())))
}

/// The logger of a command whose standard output is its own: only what should be known of a model, on the standard error.
pub(crate) fn notes() -> Box<dyn Logger> {
    Box::new(Notes(Silent))
}

/// Puts remarks on the standard error, and hands all other events on.
struct Notes<L>(L);

impl<L: Logger> Logger for Notes<L> {
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger> {
        Box::new(JobNotes(self.0.job(place)))
    }
}

/// The same of one run.
struct JobNotes(Box<dyn JobLogger>);

impl JobLogger for JobNotes {
    fn log(&mut self, event: &Event) {
        match event {
            Event::Remark { remark } => eprintln!("Note: {remark}"),
            Event::Changed { .. } | Event::Waiting { .. } | Event::NoLocks { .. } => eprintln!("Note: {event}"),
            Event::Predicted { completeness, .. } if completeness.is_partial() => eprintln!("Note: {event}"),
            Event::Predicted { .. } => {} // The command prints the files itself.
            other => self.0.log(other),
        }
    }
}

/// A bar for each run that trains, below the lines of what happened to all.
struct Bars(MultiProgress);

impl Logger for Bars {
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger> {
        let place = place.map(|place| place.to_string()).unwrap_or_default();
        Box::new(JobBar { bars: self.0.clone(), bar: None, place })
    }
}

/// The bar of one run; there is none before its first step.
struct JobBar {
    bars: MultiProgress,
    bar: Option<ProgressBar>,
    place: String,
}

impl JobLogger for JobBar {
    fn log(&mut self, event: &Event) {
        if let Event::Step { loss, steps, tokens_per_second, .. } = event {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(*steps as u64).with_style(style()).with_prefix(self.place.clone());
                bar.set_position(loss.step as u64 - 1);
                bar.reset_eta(); // Steps from before the run was resumed took no time.
                self.bars.add(bar)
            });
            bar.set_position(loss.step as u64);
            bar.set_message(format!("loss {:.4}  {tokens_per_second:.0} tokens/s", loss.loss));
            return;
        }
        for line in event.to_string().lines() {
            // A line that a terminal does not take is lost: no run fails for that.
            let _ = self.bars.println(format!("{}{line}", self.place));
        }
    }
}

impl Drop for JobBar {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

const TEMPLATE: &str = "{prefix}  step {pos}/{len} {wide_bar} {msg}  {eta} left";

fn style() -> ProgressStyle {
    ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_a_bar_is_understood() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
