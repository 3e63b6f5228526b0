//! Work that ends early where somebody asks for it: between two operations, within a part of a second even where a step takes many.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Error, Result};

thread_local! {
    /// What this thread looks at before each operation.
    static FLAG: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// What the operation fails with that would have been next.
#[derive(Debug)]
struct Interruption;

impl fmt::Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interruption {}

/// Does work that ends soon after `flag` is set: the next operation of this crate that it comes to, on this thread and by
/// [`on_workers`](crate::on_workers) on others, fails with an error of which [`is_interruption`] is true.
pub fn interruptible<R>(flag: &Arc<AtomicBool>, work: impl FnOnce() -> R) -> R {
    within(Some(flag.clone()), work)
}

/// Does work that is done whole or not at all, such as an optimizer's step, whoever has asked the work around it to end.
pub fn uninterrupted<R>(work: impl FnOnce() -> R) -> R {
    within(None, work)
}

/// Whether an error says that work was asked to end.
pub fn is_interruption(error: &Error) -> bool {
    match error {
        Error::WrappedContext { wrapped, .. } => wrapped.is::<Interruption>(),
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } | Error::WithPath { inner, .. } => {
            is_interruption(inner)
        }
        _ => false,
    }
}

/// What this thread looks at, for another that does a part of its work.
pub(crate) fn flag() -> Option<Arc<AtomicBool>> {
    FLAG.with_borrow(Clone::clone)
}

/// Does work with another flag, and puts that from before back, also when the work panics.
pub(crate) fn within<R>(flag: Option<Arc<AtomicBool>>, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<AtomicBool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FLAG.set(self.0.take());
        }
    }
    let _restore = Restore(FLAG.replace(flag));
    work()
}

/// Fails if somebody has asked this thread's work to end.
pub(crate) fn check() -> Result<()> {
    match FLAG.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))) {
        true => {
            Err(Error::WrappedContext { wrapped: Box::new(Interruption), context: "between two operations".into() })
        }
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use candle_core::{DType, Device, Tensor, Var};

    use super::*;
    use crate::{Precision, Weight, linear, on_workers, record, segment_mean};

    #[test]
    fn the_operation_after_the_flag_was_set_fails_also_on_a_worker_and_in_a_backward_pass_and_elsewhere_none() {
        let flag = Arc::new(AtomicBool::new(false));
        let x = Tensor::ones((2, 4), DType::F32, &Device::Cpu).unwrap();
        let weight = Weight::new(x.clone(), Precision::F32).unwrap();
        let bias = Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let apply = || linear(&x, &weight, Some(&bias));
        let segments = crate::Segments::from_lengths(&[2]);
        let recorded = record(|| segment_mean(&apply()?, &segments)).unwrap();
        interruptible(&flag, apply).unwrap();
        flag.store(true, Ordering::Relaxed);
        let error = |result: Result<Tensor>| is_interruption(&result.unwrap_err());
        assert!(error(interruptible(&flag, apply)));
        assert!(error(interruptible(&flag, || on_workers(&Device::Cpu, apply))));
        assert!(is_interruption(&interruptible(&flag, || recorded.gradients()).err().unwrap()));
        interruptible(&flag, || uninterrupted(apply)).unwrap();
        apply().unwrap();
        assert!(!is_interruption(&Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap().reshape(2).unwrap_err()));
    }
}
