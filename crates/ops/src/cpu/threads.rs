//! The threads that operations work on: those of rayon's pool.

use candle_core::Device;

use crate::autograd::tape;
use crate::interruption;

/// Does some work on the device's tensors: for the CPU on one of the threads that the operations work on. Called from outside, every
/// operation there wakes a worker and waits to be woken itself; from within, it begins at once. A GPU is told what to do by the calling
/// thread, and no worker is woken.
///
/// A worker that waits for others in the midst of one piece of work may begin another one meanwhile, such as a step of another run.
/// Nothing that one records is of the other.
pub fn on_workers<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    let flag = interruption::flag();
    let work = || interruption::within(flag, || tape::apart(work));
    match device {
        Device::Cpu => rayon::scope(|_| work()),
        _ => work(),
    }
}

/// Threads for each core: with more, a machine is busy with threads rather than with their work.
const MOST_PER_CORE: usize = 4;

/// How many threads are of use on this machine: four for each core.
pub fn most_threads() -> usize {
    MOST_PER_CORE * std::thread::available_parallelism().map_or(1, usize::from)
}

/// Sees to it, before the first operation, that no more than [`most_threads`] are started where the variable `RAYON_NUM_THREADS` asks for more.
/// Returns what it asked for then.
pub fn limit_threads() -> Option<usize> {
    let asked = asked(&std::env::var("RAYON_NUM_THREADS").ok()?, most_threads())?;
    // Where there are threads already, there are as many as there are.
    rayon::ThreadPoolBuilder::new().num_threads(most_threads()).build_global().ok().map(|()| asked)
}

/// How many threads a variable asks for, where these are more than there should be.
fn asked(variable: &str, most: usize) -> Option<usize> {
    let digits = variable.trim().strip_prefix('+').unwrap_or(variable.trim());
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(usize::MAX)).filter(|asked| *asked > most)
}

/// How many threads the operations work on: all cores, or what the variable `RAYON_NUM_THREADS` says.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_are_of_use_are_not_started() {
        assert_eq!(["", "0", "2", "8", "abc", "-1"].map(|variable| asked(variable, 8)), [None; 6]);
        assert_eq!(asked("9", 8), Some(9));
        assert_eq!(asked(" 10000 ", 8), Some(10_000));
        assert_eq!(asked("99999999999999999999999", 8), Some(usize::MAX));
        assert!(most_threads() >= MOST_PER_CORE);
    }
}
