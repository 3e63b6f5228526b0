//! Frozen weights that several models have in common.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::{Device, Result, Tensor, TensorId};

use super::{Precision, Weight};
use crate::backend::Prepared;

/// The frozen weights of several models on one checkpoint, each prepared for its products once, whatever the number of models.
///
/// It keeps none of them alive: a weight is freed with the last model that has it. Clones are the same collection.
#[derive(Clone, Debug, Default)]
pub struct SharedWeights(Arc<Mutex<Alive>>);

/// Each tensor's weight in each precision, as long as a model has it.
type Alive = HashMap<(TensorId, Precision), Weak<dyn Any + Send + Sync>>;

impl SharedWeights {
    /// The weight of a tensor on a device; where the tensor is frozen, lies there and was asked for before, the same one. A trained
    /// weight changes, and is nobody else's; nor is one of a tensor that lies elsewhere, which several devices may have copies of.
    ///
    /// # Errors
    /// As [`Weight::on`].
    pub fn weight(&self, tensor: Tensor, precision: Precision, device: &Device) -> Result<Weight> {
        if tensor.track_op() || !tensor.device().same_device(device) {
            return Weight::on(device, tensor, precision);
        }
        let key = (tensor.id(), precision);
        // A thread that failed in here left the collection whole.
        let mut alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = alive.get(&key).and_then(Weak::upgrade) {
            return Ok(Weight::with_prepared(tensor, precision, Prepared::from(shared)));
        }
        let weight = Weight::new(tensor, precision)?;
        alive.retain(|_, prepared| prepared.strong_count() > 0);
        alive.insert(key, Arc::downgrade(weight.prepared.shared()));
        Ok(weight)
    }

    /// How many weights are prepared for their products now, and alive.
    pub fn len(&self) -> usize {
        let alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        alive.values().filter(|prepared| prepared.strong_count() > 0).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use candle_core::{DType, Var};

    use super::*;

    fn prepared(weight: &Weight) -> &Arc<dyn Any + Send + Sync> {
        weight.prepared.shared()
    }

    #[test]
    fn a_frozen_weight_is_prepared_once_for_all_and_freed_with_the_last_that_has_it() {
        let shared = SharedWeights::default();
        let tensor = Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap();
        let first = shared.weight(tensor.clone(), Precision::Bf16, &Device::Cpu).unwrap();
        let second = shared.clone().weight(tensor.clone(), Precision::Bf16, &Device::Cpu).unwrap();
        assert!(Arc::ptr_eq(prepared(&first), prepared(&second)));
        let other = shared.weight(tensor.copy().unwrap(), Precision::Bf16, &Device::Cpu).unwrap();
        assert!(!Arc::ptr_eq(prepared(&first), prepared(&other)));
        let freed = Arc::downgrade(prepared(&first));
        assert_eq!(shared.len(), 2);
        drop((first, second));
        assert!(freed.upgrade().is_none());
        assert_eq!(shared.len(), 1);
        shared.weight(tensor, Precision::Bf16, &Device::Cpu).unwrap();
        // What is freed leaves no entry behind: there are that of the other tensor and the new one.
        assert_eq!(shared.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_trained_weight_is_not_shared() {
        let shared = SharedWeights::default();
        let variable = Var::ones((4, 3), DType::F32, &Device::Cpu).unwrap();
        let _weight = shared.weight(variable.as_tensor().clone(), Precision::Bf16, &Device::Cpu).unwrap();
        assert!(shared.is_empty());
    }
}
