//! Writes a checkpoint once in a while, from which a run goes on after it was killed.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::checkpoint;
use crate::error::Result;
use crate::record::Stop;
use crate::training::Training;
use crate::training::observers::Observer;

/// Time between two checkpoints.
const PAUSE: Duration = Duration::from_secs(60);

/// The checkpoint of a run.
pub(crate) struct Checkpoints {
    path: PathBuf,
    saved: Instant,
}

impl Checkpoints {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, saved: Instant::now() }
    }

    /// Writes the checkpoint now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn save(&mut self, training: &mut Training) -> Result<()> {
        checkpoint::save(&self.path, &mut training.learner.optimizer, &training.state)?;
        self.saved = Instant::now();
        Ok(())
    }
}

impl Observer for Checkpoints {
    fn is_due(&self, step: usize, steps: usize) -> bool {
        step < steps && self.saved.elapsed() >= PAUSE
    }

    fn after_step(&mut self, training: &mut Training) -> Result<ControlFlow<Stop>> {
        self.save(training)?;
        Ok(ControlFlow::Continue(()))
    }
}
