//! Stops a run when its wall-clock budget is spent or a stop file is there. Asked for again, the run goes on.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::record::Stop;
use crate::training::Training;
use crate::training::observers::Observer;

/// What may stop a run from outside.
pub(crate) struct Budget {
    began: Instant,
    time: Option<Duration>,
    stop_files: Vec<PathBuf>,
}

impl Budget {
    /// A budget of so much time from now on, if it is limited, and until one of the files exists.
    pub fn new(time: Option<Duration>, stop_files: Vec<PathBuf>) -> Self {
        Self { began: Instant::now(), time, stop_files }
    }

    fn stop(&self) -> Option<Stop> {
        if self.time.is_some_and(|time| self.began.elapsed() >= time) {
            return Some(Stop::TimeBudget);
        }
        self.stop_files.iter().any(|file| file.exists()).then_some(Stop::StopFile)
    }
}

impl Observer for Budget {
    fn is_due(&self, step: usize, steps: usize) -> bool {
        step < steps && self.stop().is_some()
    }

    fn after_step(&mut self, _training: &mut Training) -> Result<ControlFlow<Stop>> {
        Ok(self.stop().map_or(ControlFlow::Continue(()), ControlFlow::Break))
    }
}
