//! Panics of other crates as errors. The crates that read tokenizers take a file at its word in places that cannot all be checked beforehand; what
//! a file of a stranger brings about there is told as any other fault of the file, without a trace. Nowhere else is a panic caught.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is told by an error.
    static IS_TOLD_BY_AN_ERROR: Cell<bool> = const { Cell::new(false) };
}

/// What some work on this thread gives, or what its panic says. What the work changes must not be used after a panic.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_TOLD_BY_AN_ERROR.get() {
                usual(panic);
            }
        }));
    });
    let before = IS_TOLD_BY_AN_ERROR.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_TOLD_BY_AN_ERROR.set(before);
    result.map_err(|payload| said(&*payload))
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no reason is told").into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)] // What is tested.

    use super::*;

    #[test]
    fn what_a_panic_says_is_an_error_and_the_thread_goes_on() {
        let place = 7;
        assert_eq!(caught(|| panic!("no token {place}")), Err::<(), _>("no token 7".into()));
        assert_eq!(caught(|| caught(|| panic!("inside")).is_err()), Ok(true));
        assert!(!IS_TOLD_BY_AN_ERROR.get());
        assert_eq!(caught(|| 3), Ok(3));
    }
}
