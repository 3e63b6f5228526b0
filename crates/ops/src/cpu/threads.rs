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

/// How many threads the operations work on: all cores, or what the variable `RAYON_NUM_THREADS` says.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
