//! Events of a job while it trains, and the loggers that are told of them. This crate prints nothing by itself.

use std::fmt;
use std::path::Path;

use glue::Completeness;
use peft::Remark;

use crate::error::Error;
use crate::record::{Evaluation, StepLoss, Stop};
use crate::run::{Run, StartsFrom};

/// What is told of the jobs of a [`Trainer`](crate::Trainer): whole lines ([`LineLogger`](crate::LineLogger)), a progress bar,
/// or nothing ([`Silent`]).
pub trait Logger: Send + Sync {
    /// The logger of one job; with its place among several.
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger>;
}

/// What is told of one job, event by event.
pub trait JobLogger: Send {
    /// Takes the next event.
    fn log(&mut self, event: &Event);
}

/// The place of a job among several; prints as `[ 3/10] `, as wide as that of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counted from 1.
    pub number: usize,
    /// How many jobs there are.
    pub of: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let width = self.of.to_string().len();
        write!(f, "[{:>width$}/{}] ", self.number, self.of)
    }
}

/// What happens to a job. Prints as a line, some as several.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// What the run is made from is not what it was made from before: that record stays, and the run is made anew.
    Changed {
        /// The run.
        run: &'a Run,
        /// What is another, such as the data.
        changed: &'a [&'static str],
        /// Where the record of before lies.
        before: &'a Path,
    },
    /// Predictions of a test set were written.
    Predicted {
        /// The file.
        path: &'a Path,
        /// How much of the test set was here.
        completeness: Completeness,
    },
    /// The run has a record already.
    Found {
        /// The run.
        run: &'a Run,
    },
    /// Another process is making the run, and its record is waited for.
    Waiting {
        /// The run.
        run: &'a Run,
        /// Who is making it, such as `process 1234`.
        holder: &'a str,
    },
    /// The file system of the runs has no locks, so that another process may make the same run.
    NoLocks {
        /// The file that was to be locked.
        path: &'a Path,
        /// What the system says.
        reason: &'a std::io::Error,
    },
    /// Something should be known of how the model was read.
    Remark {
        /// What it is.
        remark: &'a Remark,
    },
    /// The model is there.
    Begun {
        /// The run.
        run: &'a Run,
        /// What the run starts from besides the pretrained model, and the names of the parameters that are new.
        start: Option<(&'a StartsFrom, Vec<String>)>,
        /// The run that made the pretrained model, if it tells.
        model_made_by: Option<&'a Run>,
    },
    /// The run goes on from its checkpoint.
    Resumed {
        /// The steps that are behind it.
        step: usize,
        /// The steps of the whole run.
        steps: usize,
    },
    /// The loss of a step is known.
    Step {
        /// The step.
        loss: StepLoss,
        /// The steps of the whole run.
        steps: usize,
        /// Since the run began or was resumed.
        tokens_per_second: f64,
        /// Until the last step, at that speed.
        seconds_left: f64,
    },
    /// Memory did not suffice for a batch: it is taken in parts.
    OutOfMemory {
        /// The step, counted from 1.
        step: usize,
        /// What a part has at most.
        part_tokens: usize,
    },
    /// The loss is not a finite number.
    Diverged {
        /// The step, counted from 1.
        step: usize,
        /// Its loss.
        loss: f64,
    },
    /// The model was measured on validation data.
    Evaluated {
        /// What was found.
        evaluation: &'a Evaluation,
        /// Whether no evaluation before was as good.
        is_best: bool,
    },
    /// The job came to its end or was stopped, and its record is written.
    Ended {
        /// Why.
        stop: Stop,
        /// Seconds spent in training steps.
        train_seconds: f64,
    },
    /// The job failed while others run.
    Failed {
        /// Why.
        error: &'a Error,
    },
}

/// A path as it reads from the project's root, if it is below that: a notebook that shows it is the same wherever the project lies.
fn below_project(path: &Path) -> &Path {
    path.strip_prefix(glue::project_root()).unwrap_or(path)
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Changed { run, changed, before } => {
                let (run, changed, before) =
                    (run.description(), changed.join(" and "), below_project(before).display());
                write!(f, "{run}: the {changed} changed since what lies in {before}, which stays; the run is made anew")
            }
            Self::Predicted { path, completeness } if completeness.is_partial() => {
                let path = below_project(path).display();
                write!(f, "{path} predicts {completeness} rows; GLUE's server takes predictions of all")
            }
            Self::Predicted { path, completeness } => {
                write!(f, "{} predicts {completeness} rows", below_project(path).display())
            }
            Self::Found { run } => write!(f, "{}: found its record", run.description()),
            Self::Waiting { run, holder } => {
                write!(f, "{}: {holder} is making it; its record is waited for", run.description())
            }
            Self::NoLocks { path, reason } => {
                let path = below_project(path).display();
                write!(
                    f,
                    "{path}: cannot be locked ({reason}); files stay whole, but have no other process make this run too"
                )
            }
            Self::Remark { remark } => write!(f, "note: {remark}"),
            Self::Begun { run, start, model_made_by } => write_begin(f, run, start.as_ref(), *model_made_by),
            Self::Resumed { step, steps } => write!(f, "  going on after step {step} of {steps}"),
            Self::Step {
                loss: StepLoss { step, epoch, loss, learning_rate },
                steps,
                tokens_per_second,
                seconds_left,
            } => {
                let (width, left) = (steps.to_string().len(), clock(*seconds_left));
                write!(f, "  step {step:>width$}/{steps}  epoch {epoch:5.2}  loss {loss:.4}  ")?;
                write!(f, "learning rate {learning_rate:.2e}  {tokens_per_second:>5.0} tokens/s  {left} left")
            }
            Self::OutOfMemory { step, part_tokens } => {
                write!(f, "  step {step}: out of memory; from here on in parts of {part_tokens} tokens")
            }
            Self::Diverged { step, loss } => write!(f, "  step {step}: the loss is {loss}"),
            Self::Evaluated { evaluation, is_best } => {
                let Evaluation { epoch, loss, scores, other_scores, .. } = evaluation;
                write!(f, "  epoch {epoch:5.2}  validation loss {loss:.4}")?;
                scores.0.iter().try_for_each(|(metric, value)| write!(f, "  {metric} {value:.4}"))?;
                for (split, scores) in other_scores {
                    write!(f, "  {split}:")?;
                    scores.0.iter().try_for_each(|(metric, value)| write!(f, "  {metric} {value:.4}"))?;
                }
                f.write_str(if *is_best { "  (best so far)" } else { "" })
            }
            Self::Ended { stop, train_seconds } => write!(f, "  {stop}; {} of training", clock(*train_seconds)),
            Self::Failed { error } => write!(f, "  failed: {error}"),
        }
    }
}

fn write_begin(
    f: &mut fmt::Formatter,
    run: &Run,
    start: Option<&(&StartsFrom, Vec<String>)>,
    model_made_by: Option<&Run>,
) -> fmt::Result {
    write!(f, "{}", run.description())?;
    if let Some((start, new)) = start {
        let new = if new.is_empty() { "nothing is new".into() } else { format!("new: {}", new.join(", ")) };
        write!(f, "\n  starts from {start}; {new}")?;
    }
    if let Some(made_by) = model_made_by {
        let output = if made_by.task.labels() == run.task.labels() { "kept" } else { "new" };
        let (model, made_by) = (&run.model, made_by.description());
        write!(f, "\n  the model {model} was made by {made_by}; its output layer is {output}")?;
    }
    Ok(())
}

/// Seconds as `m:ss`.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Logs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Logger for Silent {
    fn job(&self, _place: Option<Place>) -> Box<dyn JobLogger> {
        Box::new(Self)
    }
}

impl JobLogger for Silent {
    fn log(&mut self, _event: &Event) {}
}

impl<L: Logger + ?Sized> Logger for Box<L> {
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger> {
        (**self).job(place)
    }
}

/// Tells both.
impl<A: Logger, B: Logger> Logger for (A, B) {
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger> {
        Box::new((self.0.job(place), self.1.job(place)))
    }
}

impl JobLogger for (Box<dyn JobLogger>, Box<dyn JobLogger>) {
    fn log(&mut self, event: &Event) {
        self.0.log(event);
        self.1.log(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_the_project_is_told_from_its_root() {
        let below = glue::project_root().join("predictions/SST-2.tsv");
        assert_eq!(below_project(&below), Path::new("predictions/SST-2.tsv"));
        assert_eq!(below_project(Path::new("/elsewhere/SST-2.tsv")), Path::new("/elsewhere/SST-2.tsv"));
    }
}
