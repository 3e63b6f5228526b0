//! The weighted sum of several adapters' vectors (PEFT `tuners/ia3/model.py`, `add_weighted_adapter`).

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::Ia3;
use crate::error::Result;
use crate::targets::Targets;
use crate::tuners::combination::{Combination, CombinationType, refuse};
use crate::tuners::config::Part;

pub(super) fn combine(
    parts: &[Part],
    combination: &Combination,
    modules_to_save: Vec<String>,
) -> Result<(Ia3, BTreeMap<String, Tensor>)> {
    if combination.combination_type != CombinationType::Linear {
        let kind = combination.combination_type;
        return refuse(format!("(IA)³ has no factors for {kind}; use linear, the weighted sum of its vectors"));
    }
    let mut vectors: BTreeMap<&str, Tensor> = BTreeMap::new();
    for part in parts {
        if part.config.downcast_ref::<Ia3>().is_none() {
            return refuse(format!("{} is {}, the first (IA)³", part.name, part.config));
        }
        for module in part.modules_with(".ia3_l") {
            let weighted = (part.tensor(&format!("{module}.ia3_l"))?.to_dtype(DType::F64)? * part.weight)?;
            let sum = match vectors.get(module) {
                Some(sum) if sum.dims() != weighted.dims() => {
                    let (one, other) = (sum.dims(), weighted.dims());
                    return refuse(format!("{module} is scaled by {one:?} in one adapter and by {other:?} in another"));
                }
                Some(sum) => (sum + weighted)?,
                None => weighted,
            };
            vectors.insert(module, sum);
        }
    }
    // The vector of a layer whose input is scaled is a row.
    let is_feedforward = |vector: &Tensor| vector.dims().first() == Some(&1);
    let feedforward = vectors.iter().filter(|(_, vector)| is_feedforward(vector)).map(|(module, _)| module);
    let ia3 = Ia3 {
        target_modules: Targets::suffixes(vectors.keys()),
        feedforward_modules: Targets::suffixes(feedforward),
        exclude_modules: None,
        modules_to_save,
    };
    Ok((ia3, vectors.into_iter().map(|(module, vector)| (format!("{module}.ia3_l"), vector)).collect()))
}
