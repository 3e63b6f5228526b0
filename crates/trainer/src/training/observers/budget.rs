//! Stops a run when its wall-clock budget is spent, somebody asks it to, or a stop file is there. Asked for again, the run goes on.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::error::Result;
use crate::limits::Limits;
use crate::record::Stop;
use crate::training::Training;
use crate::training::observers::Observer;

/// What may stop a run from outside.
pub(crate) struct Budget {
    limits: Limits,
    stop_files: Vec<PathBuf>,
}

impl Budget {
    /// A budget within the limits, and until one of the files exists.
    pub(crate) fn new(limits: Limits, stop_files: Vec<PathBuf>) -> Self {
        Self { limits, stop_files }
    }

    fn stop(&self) -> Option<Stop> {
        self.limits.stop().or_else(|| self.stop_files.iter().any(|file| file.exists()).then_some(Stop::StopFile))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn time_that_is_spent_a_flag_or_a_stop_file_stops_a_run_but_not_after_its_last_step() {
        let folder = tempfile::tempdir().unwrap();
        let stop_file = folder.path().join("stop");
        let budget = |deadline| {
            let limits = Limits { deadline, ..Limits::default() };
            Budget::new(limits, vec![folder.path().join("other"), stop_file.clone()])
        };
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!((budget(None).stop(), budget(Some(later)).stop()), (None, None));
        assert!(!budget(None).is_due(1, 10));
        assert_eq!(budget(Some(Instant::now())).stop(), Some(Stop::TimeBudget));
        std::fs::write(&stop_file, "").unwrap();
        assert_eq!(budget(None).stop(), Some(Stop::StopFile));
        let interrupted = budget(Some(Instant::now()));
        interrupted.limits.stop.store(true, Ordering::Relaxed);
        assert_eq!(interrupted.stop(), Some(Stop::Interrupted));
        assert!(budget(None).is_due(9, 10) && !budget(None).is_due(10, 10));
    }
}
