//! Sizes that files and options name, compared with a limit before memory is taken for them.

use crate::error::{Error, Result};
use crate::pretrained::Pretrained;
use crate::tuners::Method;

/// So many numbers may be new in any model, however small its checkpoint.
const ALWAYS: usize = 1 << 22;
/// How many times the numbers of what it is loaded from, or else of the checkpoint, an adapter may have. At the full rank of every layer,
/// LoRA has twice as many as the layers' weights, LoHa four times.
const TIMES: usize = 4;

/// How many numbers a tensor of that shape holds, if that can be counted.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size))
}

/// How many numbers a model on this checkpoint may have besides the checkpoint's, where what it is loaded from has so many; where it is
/// loaded from nothing, that of the checkpoint counts in its place.
pub(crate) fn new_numbers(pretrained: &Pretrained, loaded: Option<usize>) -> usize {
    let own = pretrained.tensors().values().map(|tensor| tensor.elem_count()).sum::<usize>();
    own.saturating_add(TIMES.saturating_mul(loaded.unwrap_or(own))).saturating_add(ALWAYS)
}

/// How many numbers may still be new in a model that is being built.
pub(crate) struct Allowance {
    left: usize,
    limit: usize,
    /// What the sizes of new parameters follow from.
    method: String,
    sizes: String,
}

impl Allowance {
    pub(crate) fn new(limit: usize, method: &Method) -> Self {
        let sizes = method.config().sizes().into_iter().map(|(field, size)| format!("{field} {size}"));
        Self { left: limit, limit, method: method.to_string(), sizes: sizes.collect::<Vec<_>>().join(", ") }
    }

    /// Fails where the parameter at `path` would be more than what is left.
    pub(crate) fn check(&self, path: &str, shape: &[usize]) -> Result<usize> {
        count(shape).filter(|count| *count <= self.left).ok_or_else(|| Error::TooLarge {
            method: self.method.clone(),
            sizes: self.sizes.clone(),
            path: path.into(),
            shape: shape.to_vec(),
            limit: self.limit,
        })
    }

    /// The same, and takes it from what is left.
    pub(crate) fn take(&mut self, path: &str, shape: &[usize]) -> Result<()> {
        self.left -= self.check(path, shape)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_counted_are_none() {
        assert_eq!(count(&[3, 4, 5]), Some(60));
        assert_eq!(count(&[]), Some(1));
        assert_eq!(count(&[1 << 40, 1 << 40]), None);
        assert_eq!(count(&[usize::MAX, usize::MAX, 0]), None);
    }

    #[test]
    fn what_is_taken_is_not_given_twice() {
        let mut allowance = Allowance::new(100, &Method::lora(7));
        allowance.take("first", &[10, 6]).unwrap();
        let error = allowance.take("second", &[41]).unwrap_err().to_string();
        assert!(error.contains("r 7") && error.contains("second") && error.contains("at most 100"), "{error}");
        allowance.take("second", &[40]).unwrap();
    }
}
