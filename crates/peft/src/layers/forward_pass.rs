//! The context of one forward pass: where sequences end, and the dropout masks of a training step.

use candle_core::Tensor;
use ops::{Dropout, Segments};

/// What one pass through a model needs besides its input: where sequences end, and the dropout of a training step.
pub struct ForwardPass<'a> {
    /// The sequences of the batch.
    pub segments: &'a Segments,
    step_seed: Option<u64>,
    applications: std::cell::Cell<u64>,
    /// Is told what flows into each layer that has an adapter, by its path.
    observer: Option<&'a Observer<'a>>,
}

pub(crate) type Observer<'a> = dyn Fn(&str, &Tensor) + 'a;

impl<'a> ForwardPass<'a> {
    /// A pass without dropout.
    pub fn evaluation(segments: &'a Segments) -> Self {
        Self { segments, step_seed: None, applications: 0.into(), observer: None }
    }

    /// A pass with dropout, whose masks follow from `step_seed`: give each step of a run a seed of its own.
    pub fn training(segments: &'a Segments, step_seed: u64) -> Self {
        Self { segments, step_seed: Some(step_seed), applications: 0.into(), observer: None }
    }

    /// A pass without dropout, in which `observer` is told what flows into each layer that has an adapter, by its path.
    pub(crate) fn observed(segments: &'a Segments, observer: &'a Observer<'a>) -> Self {
        Self { observer: Some(observer), ..Self::evaluation(segments) }
    }

    /// Tells the observer what flows into an adapted layer.
    pub(crate) fn observe(&self, path: &str, x: &Tensor) {
        if let Some(observer) = self.observer {
            observer(path, x);
        }
    }

    /// Whether it is one of training.
    pub(crate) fn is_training(&self) -> bool {
        self.step_seed.is_some()
    }

    /// The same pass over other segments: those of hidden states that virtual tokens are among.
    pub(crate) fn over<'b>(&'b self, segments: &'b Segments) -> ForwardPass<'b> {
        let Self { step_seed, observer, .. } = *self;
        ForwardPass { segments, step_seed, applications: self.applications.clone(), observer }
    }

    /// The mask for the next application of dropout.
    pub(crate) fn dropout(&self, probability: f64) -> Option<Dropout> {
        let application = self.applications.get();
        self.applications.set(application + 1);
        Dropout::new(
            probability,
            split_mix(self.step_seed?.wrapping_add(application.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        )
    }
}

/// SplitMix64's output function (Steele et al. 2014): neighboring inputs give unrelated outputs.
fn split_mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
