//! Losses of steps that were not read yet. On a GPU, to read one is to wait for its step, while the GPU idles until the next is there.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::record::StepLoss;

/// After this time at the latest losses are read, for who follows the training.
const LONGEST: Duration = Duration::from_secs(1);

/// Steps whose losses lie on the device.
pub(crate) struct PendingLosses {
    /// A step without its loss, its tokens, and its loss: a scalar on the device.
    steps: Vec<(StepLoss, usize, Tensor)>,
    most: usize,
    last_read: Instant,
}

impl PendingLosses {
    pub(super) fn new(device: &Device) -> Self {
        Self { steps: Vec::new(), most: if device.is_cpu() { 1 } else { 64 }, last_read: Instant::now() }
    }

    pub(super) fn push(&mut self, step: StepLoss, tokens: usize, loss: Tensor) {
        self.steps.push((step, tokens, loss));
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether it is time to read them.
    pub(super) fn is_due(&self) -> bool {
        self.len() >= self.most || self.last_read.elapsed() >= LONGEST
    }

    /// Waits for the losses: each step with its loss, and its tokens.
    pub(super) fn read(&mut self) -> Result<Vec<(StepLoss, usize)>> {
        self.last_read = Instant::now();
        let read = |(step, tokens, loss): (StepLoss, usize, Tensor)| {
            Ok((StepLoss { loss: f64::from(loss.to_scalar::<f32>()?), ..step }, tokens))
        };
        self.steps.drain(..).map(read).collect()
    }
}
