//! Counting what GPUs are given to do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
/// How often each kernel was launched while that was counted.
static COUNTED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Notes a launch, if somebody counts them.
pub(super) fn note(name: impl FnOnce() -> String) {
    if IS_COUNTING.load(Ordering::Relaxed) {
        *COUNTED.lock().unwrap_or_else(PoisonError::into_inner).entry(name()).or_default() += 1;
    }
}

/// What `work` returns, and how often any thread launched each kernel of this crate meanwhile; matrix products, which are kernels of
/// cuBLASLt's, under the name `product`. One count at a time.
pub fn count_launches<R>(work: impl FnOnce() -> R) -> (R, BTreeMap<String, usize>) {
    COUNTED.lock().unwrap_or_else(PoisonError::into_inner).clear();
    IS_COUNTING.store(true, Ordering::Relaxed);
    let result = work();
    IS_COUNTING.store(false, Ordering::Relaxed);
    (result, std::mem::take(&mut *COUNTED.lock().unwrap_or_else(PoisonError::into_inner)))
}
