//! What a method trains, by name and in numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::names::is_head;
use super::registry::Parameters;

/// One trained tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainableTensor {
    /// Its path, such as `bert.encoder.layer.0.attention.self.query.lora_A.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TrainableTensor {
    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        self.shape.iter().copied().fold(1, usize::saturating_mul)
    }
}

/// Every trained tensor of a model. Its `Display` is the line that PEFT's `print_trainable_parameters` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainableReport {
    /// The trained tensors, in the order of their names.
    pub tensors: Vec<TrainableTensor>,
    /// Numbers in the model, frozen and trained.
    pub total: usize,
    /// Numbers that PEFT counts besides: under LoRA it trains a copy of the head and of each module to save, and counts the
    /// frozen originals too; and it keeps a number, `ranknum`, beside each of AdaLoRA's branches.
    pub copied: usize,
}

impl TrainableReport {
    pub(crate) fn new(parameters: &Parameters) -> Self {
        let tensors: Vec<TrainableTensor> = parameters
            .trainable()
            .map(|(name, variable)| TrainableTensor { name: name.into(), shape: variable.dims().to_vec() })
            .collect();
        Self { tensors, total: parameters.total_count(), copied: parameters.copied_count() }
    }

    /// How many numbers are trained, the head among them.
    pub fn trainable(&self) -> usize {
        sum(self.tensors.iter())
    }

    /// How many numbers are trained besides the head: what papers count.
    pub fn trainable_without_head(&self) -> usize {
        sum(self.tensors.iter().filter(|tensor| !is_head(&tensor.name)))
    }

    /// Trained numbers per hundred of the model's.
    pub fn percent(&self) -> f64 {
        100.0 * self.trainable() as f64 / self.total as f64
    }
}

/// Counts that a record says may be more than can be added up.
fn sum<'a>(tensors: impl Iterator<Item = &'a TrainableTensor>) -> usize {
    tensors.map(TrainableTensor::count).fold(0, usize::saturating_add)
}

impl fmt::Display for TrainableReport {
    /// `peft_model.py`, `print_trainable_parameters`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (trainable, all) = (self.trainable(), self.total.saturating_add(self.copied));
        let percent = 100.0 * trainable as f64 / all as f64;
        let (trainable, all) = (thousands(trainable), thousands(all));
        write!(f, "trainable params: {trainable} || all params: {all} || trainable%: {percent:.4}")
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_parted_by_commas() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(thousands).each_ref().map(|s| s.as_str())
        );
    }
}
