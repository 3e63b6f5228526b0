//! Signals that ask a command to end: INT (Ctrl-C), TERM and HUP.
//!
//! While a run trains, the first ends it as a stop file does, within an operation: with a checkpoint and a record. While none does there is
//! nothing to save, and it ends the command at once, as a second one always does. The exit status is 128 and the signal's number, as a shell
//! says it.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::Result;
use trainer::{Event, JobLogger, Logger, Place, Trainer};

/// What the trainers of this process look at.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// How many runs train now.
static TRAINING: AtomicUsize = AtomicUsize::new(0);
/// The last signal that came; 0: none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Has signals heeded from here on by the trainers of [`heeded_by`]. One that is ignored stays so: `nohup` has HUP ignored, and a shell has
/// INT for what it starts in the background.
///
/// # Errors
/// When the system takes no handler, or no thread.
#[cfg(unix)]
pub(crate) fn watch() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let heeded = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = signal_hook::iterator::Signals::new(heeded)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(receive))?;
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn watch() -> Result<()> {
    Ok(())
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: an action of zeros is one; no action is set, and the present one is written to memory that is this function's.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0).then_some(action)
    };
    action.is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

#[cfg(unix)]
fn receive(signal: i32) {
    let is_first = SIGNAL.swap(signal, Ordering::SeqCst) == 0;
    STOP.store(true, Ordering::SeqCst);
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
    if is_first && TRAINING.load(Ordering::SeqCst) > 0 {
        eprintln!("Note: {name}: writing the checkpoint; a second signal ends at once");
        return;
    }
    if is_first {
        eprintln!("Note: {name}: no run is under way that is not saved; the same command goes on from here");
    }
    // No destructor runs, which other threads may still need. What is half written is beside its place, and the next command removes it.
    signal_hook::low_level::exit(128 + signal);
}

/// The exit status of a command that a signal has ended, if one came.
pub(crate) fn status() -> Option<u8> {
    let signal = SIGNAL.load(Ordering::SeqCst);
    u8::try_from(128 + signal).ok().filter(|_| signal > 0)
}

/// A trainer that stops at a signal, and tells this logger what happens.
pub(crate) fn heeded_by(trainer: Trainer, logger: Box<dyn Logger>) -> Trainer {
    trainer.stop_when(STOP.clone()).logger(CountedRuns(logger))
}

/// Counts the runs that train.
struct CountedRuns(Box<dyn Logger>);

impl Logger for CountedRuns {
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger> {
        Box::new(CountedRun { logger: self.0.job(place), trains: false })
    }
}

/// One run, from the time that its model is there until its record is written.
struct CountedRun {
    logger: Box<dyn JobLogger>,
    trains: bool,
}

impl CountedRun {
    fn set(&mut self, trains: bool) {
        match (std::mem::replace(&mut self.trains, trains), trains) {
            (false, true) => TRAINING.fetch_add(1, Ordering::SeqCst),
            (true, false) => TRAINING.fetch_sub(1, Ordering::SeqCst),
            _ => 0,
        };
    }
}

impl JobLogger for CountedRun {
    fn log(&mut self, event: &Event) {
        match event {
            Event::Begun { .. } => self.set(true),
            Event::Ended { .. } | Event::Failed { .. } => self.set(false),
            _ => {}
        }
        self.logger.log(event);
    }
}

impl Drop for CountedRun {
    fn drop(&mut self) {
        self.set(false);
    }
}
