//! Files of PEFT's earlier releases, brought to the form of today.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::weights::PREFIX;
use crate::error::Result;
use crate::tuners::Method;

/// Before 0.7 the bias of a layer that an adapter stands beside had its own name, and before 0.5 a module that was trained whole could have
/// LoRA within it besides.
pub(super) fn update(method: &Method, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    method.config().fold_into_saved(tensors)?;
    let beside: Vec<(String, String)> = tensors
        .keys()
        .filter_map(|key| Some((key, key.strip_suffix(".bias")?)))
        .filter(|(_, module)| has_adapter(tensors, module) && !tensors.contains_key(&format!("{module}.weight")))
        .map(|(key, module)| (key.clone(), format!("{module}.base_layer.bias")))
        .collect();
    let magnitudes: Vec<(String, String)> = tensors
        .keys()
        .filter_map(|key| Some((key.clone(), key.strip_suffix(".weight")?.to_string())))
        .filter(|(_, name)| name.ends_with(".lora_magnitude_vector"))
        .collect();
    for (old, new) in beside.into_iter().chain(magnitudes) {
        if let (false, Some(tensor)) = (tensors.contains_key(&new), tensors.remove(&old)) {
            tensors.insert(new, tensor);
        }
    }
    Ok(())
}

/// Whether a module has tensors of an adapter.
fn has_adapter(tensors: &BTreeMap<String, Tensor>, module: &str) -> bool {
    let within = format!("{module}.");
    let parts = || Method::ALL_TENSOR_NAMES.iter().copied().flatten();
    let names = tensors.range(within.clone()..).take_while(|(key, _)| key.starts_with(&within));
    module.starts_with(PREFIX)
        && names.into_iter().any(|(key, _)| parts().any(|part| key[module.len()..].starts_with(part)))
}
