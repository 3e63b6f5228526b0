//! A process's claim to a run: two that want the same one do not both make it.

use std::thread::sleep;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::events::{Event, JobLogger};
use crate::files::RunFolder;
use crate::limits::Limits;
use crate::record::Stop;
use crate::run::Run;

/// How often the lock of another process is tried.
const PAUSE: Duration = Duration::from_millis(200);

/// Takes a run for this job; waits for another that is at work on it, if it `waits`. The lock goes where the job ends, and with the process.
///
/// On a file system without locks there is none, which is told: files are whole all the same, and the work may be done twice.
///
/// # Errors
/// When another is at work and nobody waits, or no longer; and when the lock's file cannot be opened.
pub(crate) fn claim(
    folder: &RunFolder,
    run: &Run,
    waits: bool,
    limits: &Limits,
    logger: &mut dyn JobLogger,
) -> Result<Option<::files::Lock>> {
    let path = folder.lock();
    let mut is_told = false;
    loop {
        let holder = match ::files::try_lock(&path).map_err(|source| Error::File { path: path.clone(), source })? {
            ::files::Attempt::Taken(lock) => return Ok(Some(lock)),
            ::files::Attempt::Unsupported(error) => {
                logger.log(&Event::NoLocks { path: &path, reason: &error });
                return Ok(None);
            }
            ::files::Attempt::Held(holder) => holder,
        };
        match limits.stop() {
            Some(Stop::Interrupted) => return Err(Error::Interrupted { place: run.description() }),
            None if waits => {}
            _ => return Err(Error::Busy { run: run.description(), holder, path }),
        }
        if !is_told {
            logger.log(&Event::Waiting { run, holder: &holder });
            is_told = true;
        }
        sleep(PAUSE);
    }
}
