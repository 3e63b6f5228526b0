//! What may stop runs from outside: a deadline, or whoever sets a flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::error::Error;
use crate::record::Stop;

/// The limits of all runs of a trainer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    /// When the time budget is spent.
    pub deadline: Option<Instant>,
    /// Set by a signal, another thread or a button.
    pub stop: Arc<AtomicBool>,
}

impl Limits {
    /// Whether a run is to end now, and why.
    pub(crate) fn stop(&self) -> Option<Stop> {
        if self.is_interrupted() {
            return Some(Stop::Interrupted);
        }
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline).then_some(Stop::TimeBudget)
    }

    /// Whether the flag is set.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Whether an error says that work was asked to end.
pub(crate) fn is_interruption(error: &Error) -> bool {
    match error {
        Error::Tensor(error) | Error::Model(peft::Error::Tensor(error)) => ops::is_interruption(error),
        Error::OnDevice { source, .. } => is_interruption(source),
        _ => false,
    }
}
