//! LoRA within a module that is trained whole, as PEFT had it before 0.5: the branch changes the module's weight.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::config::Lora;
use crate::error::Result;

/// Adds each branch within a saved module to the weight beside it, `W + scaling B A`, and takes it out. Files with such a branch have its
/// tensors under `modules_to_save` too; without those PEFT leaves the branch aside, and so does this crate.
pub(super) fn fold(lora: &Lora, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    let copies = tensors.keys().filter(|key| key.contains(".modules_to_save.") && key.contains(".lora_"));
    let branches: Vec<String> = copies.map(|key| key.replace(".modules_to_save.", ".")).collect();
    for name in &branches {
        let Some(module) = name.strip_suffix(".lora_A.weight") else { continue };
        let [weight, a, b] = ["weight", "lora_A.weight", "lora_B.weight"].map(|part| format!("{module}.{part}"));
        if let (Some(w), Some(a), Some(b)) = (tensors.get(&weight), tensors.get(&a), tensors.get(&b)) {
            let ((rows, columns), (outputs, _), (_, inputs)) = (w.dims2()?, b.dims2()?, a.dims2()?);
            if [outputs, inputs] != [rows, columns] {
                let (a, b, w) = (a.dims(), b.dims(), w.dims());
                let unfit = format!("{module}: A {a:?} and B {b:?} within a weight {w:?}, which they do not fit");
                return Err(candle_core::Error::Msg(unfit).into());
            }
            let exact = |tensor: &Tensor| tensor.to_dtype(DType::F64);
            let change = (exact(b)?.matmul(&exact(a)?)? * lora.scaling())?;
            let folded = (exact(w)? + change)?.to_dtype(w.dtype())?;
            tensors.insert(weight, folded);
        }
    }
    tensors
        .retain(|key, _| !branches.contains(&key.replace(".modules_to_save.", ".").replace(".original_module.", ".")));
    Ok(())
}
