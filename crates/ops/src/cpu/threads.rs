//! The threads that operations work on: those of rayon's pool.

use crate::autograd::tape;

/// Does some work on one of the threads that the operations work on. Called from outside, every operation wakes a worker and
/// waits to be woken itself; from within, it begins at once.
///
/// A worker that waits for others in the midst of one piece of work may begin another one meanwhile, such as a step of another run.
/// Nothing that one records is of the other.
pub fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| tape::apart(work))
}

/// How many threads the operations work on: all cores, or what the variable `RAYON_NUM_THREADS` says.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
