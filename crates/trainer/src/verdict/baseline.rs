//! Whether a method is above a baseline.

use std::fmt;

use glue::{Baseline, Task};

use crate::numbers::{count, points};
use crate::statistics::Interval;
use crate::summary::Summary;
use crate::verdict::sentence::interval;

/// A method's mean score on a task, and a baseline of the task. As text it is a sentence without its full stop.
#[derive(Clone, Debug, PartialEq)]
pub struct AgainstBaseline {
    /// The task.
    pub task: Task,
    /// The method's name.
    pub method: String,
    /// The baseline.
    pub baseline: Baseline,
    /// The mean over the runs that have a score; not a number if none has.
    pub mean: f64,
    /// Where the mean over all seeds lies; `None` of fewer than two runs.
    pub interval: Option<Interval>,
    /// How many runs have a score.
    pub runs: usize,
    /// What must stand beside a score of these runs.
    pub caveat: Option<String>,
}

impl AgainstBaseline {
    /// Of each of the task's baselines.
    pub fn of(summary: &Summary) -> Vec<Self> {
        let record = summary.records[0];
        let against = |&baseline: &Baseline| {
            let (split, metric) = (baseline.split, baseline.metric);
            Self {
                task: record.run.task,
                method: summary.name(),
                baseline,
                mean: summary.mean_and_deviation_on(split, metric).0,
                interval: summary.interval_on(split, metric),
                runs: summary.scores_on(split, metric).len(),
                caveat: record.data.caveat(),
            }
        };
        record.run.task.baselines().iter().map(against).collect()
    }

    /// Whether the whole interval is above the baseline. `None` where there is no interval: then nothing can be said.
    pub fn is_above(&self) -> Option<bool> {
        self.interval.map(|interval| interval.low > self.baseline.value)
    }
}

impl fmt::Display for AgainstBaseline {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { task, method, baseline, .. } = self;
        let of_split = match task.validation_splits().first() {
            Some(first) if *first != baseline.split => format!(", {}", baseline.split),
            _ => String::new(),
        };
        let baseline = format!("the baseline of {} points of {}{of_split}", points(baseline.value), baseline.metric);
        let Some(found) = self.interval else {
            write!(f, "On {task} it cannot be said whether {method} is above {baseline}: ")?;
            return match self.runs {
                0 => f.write_str("no run has a score"),
                _ => write!(f, "there is one seed, with {}", points(self.mean)),
            };
        };
        let relation = match self.is_above() {
            Some(true) => "is above",
            _ if found.high < self.baseline.value => "is below",
            _ => "is not shown to be above",
        };
        let (mean, runs) = (points(self.mean), count(self.runs));
        write!(
            f,
            "On {task} {method} {relation} {baseline}: mean {mean}, 95 % interval {}, {runs} seeds",
            interval(found)
        )
    }
}
