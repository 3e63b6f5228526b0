//! The weighted combination of several LoRA adapters (PEFT `tuners/lora/model.py`, `add_weighted_adapter`).

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::config::Lora;
use crate::error::{Error, Result};
use crate::numerics::svd;
use crate::sizes::count;
use crate::tuners::combination::{Combination, CombinationType, Space, mix, refuse};
use crate::tuners::config::{Bias, Part};
use crate::tuners::task_tensors::Mixing;

/// Numbers of the largest weight whose change is worked out as a whole: those of a layer of 4,096 by 16,384.
const LARGEST_WEIGHT: usize = 1 << 26;

/// What one adapter has at one layer.
struct Term {
    weight: f64,
    scaling: f64,
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
}

pub(super) fn combine(
    parts: &[Part],
    combination: &Combination,
    modules_to_save: Vec<String>,
) -> Result<(Lora, BTreeMap<String, Tensor>)> {
    let combination = &match parts {
        // PEFT: of one adapter there is nothing to decompose, prune or elect.
        [_] => Combination { combination_type: CombinationType::Linear, ..combination.clone() },
        _ => combination.clone(),
    };
    let mixing = combination.mixing()?;
    let mut layers: BTreeMap<&str, Vec<Term>> = BTreeMap::new();
    let mut ranks = Vec::new();
    for part in parts {
        let lora = plain_lora(part)?;
        let patterns = lora.patterns()?;
        let mut highest = 0;
        for module in part.modules_with(".lora_A.weight") {
            let (_, scaling) = lora.rank_and_scaling(&patterns, module);
            let factor =
                |name: &str| Ok::<_, Error>(part.tensor(&format!("{module}.{name}.weight"))?.to_dtype(DType::F64)?);
            let (a, b) = (factor("lora_A")?, factor("lora_B")?);
            let ((r, _), (_, columns)) = (a.dims2()?, b.dims2()?);
            if r != columns {
                let (a, b) = (a.dims(), b.dims());
                return refuse(format!("{}: A {a:?} and B {b:?} of {module} do not fit", part.name));
            }
            highest = highest.max(r);
            layers.entry(module).or_default().push(Term { weight: part.weight, scaling, a, b });
        }
        ranks.push(highest);
    }
    let highest = ranks.iter().copied().max().unwrap_or_default();
    let rank = match combination.combination_type.space() {
        Space::Ranks => ranks.iter().sum(),
        Space::Products => combination.svd_rank.unwrap_or(highest),
        Space::Factors => highest,
    };
    if rank == 0 {
        return refuse("the rank is 0; give svd_rank at least 1");
    }

    let (mut tensors, mut ranks) = (BTreeMap::new(), Vec::new());
    for (module, terms) in layers {
        let (a, b) = match combination.combination_type.space() {
            Space::Ranks => side_by_side(&terms, rank)?,
            Space::Products => mixed_products(&terms, module, rank, &mixing, combination.seed)?,
            Space::Factors => mixed_factors(&terms, module, &mixing, combination.seed)?,
        };
        ranks.push((module, a.dim(0)?));
        tensors.insert(format!("{module}.lora_A.weight"), a);
        tensors.insert(format!("{module}.lora_B.weight"), b);
    }
    let lora = Lora { modules_to_save, ..Lora::on_ranks(rank, ranks) };
    Ok((lora, tensors))
}

/// The LoRA of an adapter whose branches say all that it does.
fn plain_lora<'a>(part: &Part<'a>) -> Result<&'a Lora> {
    let Some(lora) = part.config.downcast_ref::<Lora>() else {
        return refuse(format!("{} is {}, the first LoRA", part.name, part.config));
    };
    let wrong = if lora.use_dora {
        "is DoRA, whose weights are not sums of branches"
    } else if lora.init_lora_weights.base_weight() != "true" {
        "stands beside a residual of the base weights, which others do not"
    } else if lora.bias != Bias::None {
        "trains biases besides"
    } else {
        return Ok(lora);
    };
    refuse(format!("{} {wrong}; convert it to LoRA, or train without", part.name))
}

/// All As and Bs, weight and scaling in A, filled up with zeros to a rank.
fn side_by_side(terms: &[Term], rank: usize) -> Result<(Tensor, Tensor)> {
    let a: Vec<Tensor> =
        terms.iter().map(|term| &term.a * (term.weight * term.scaling)).collect::<candle_core::Result<_>>()?;
    let b: Vec<&Tensor> = terms.iter().map(|term| &term.b).collect();
    let (a, b) = (Tensor::cat(&a, 0)?, Tensor::cat(&b, 1)?);
    let missing = rank - a.dims2()?.0;
    Ok((a.pad_with_zeros(0, 0, missing)?, b.pad_with_zeros(1, 0, missing)?))
}

/// `ΔW = scaling B A` mixed, then cut to a rank: `B = U S` and `A = Vᵀ`.
fn mixed_products(terms: &[Term], module: &str, rank: usize, mixing: &Mixing, seed: u64) -> Result<(Tensor, Tensor)> {
    let product = |term: &Term| {
        let shape = [term.b.dim(0)?, term.a.dim(1)?];
        if count(&shape).is_none_or(|count| count > LARGEST_WEIGHT) {
            return refuse(format!("{module} has the shape {shape:?}, more than {LARGEST_WEIGHT} numbers"));
        }
        Ok((term.b.matmul(&term.a)? * term.scaling)?)
    };
    let products: Vec<Tensor> = terms.iter().map(product).collect::<Result<_>>()?;
    let weights: Vec<f64> = terms.iter().map(|term| term.weight).collect();
    let mixed = mix(&products, &weights, mixing, &format!("{module}.weight"), seed)?;
    let (outputs, inputs) = mixed.dims2()?;
    if rank > outputs.min(inputs) {
        let width = outputs.min(inputs);
        return refuse(format!("rank {rank} is more than the width {width} of {module}; give a lower svd_rank"));
    }
    let (u, s, v) = svd(&mixed, rank)?; // (out, r), (r), (r, in)
    Ok((v, u.broadcast_mul(&s.reshape((1, rank))?)?))
}

/// The As and the Bs mixed by themselves. The root of a weight and its scaling is on either side, and its sign on A's.
fn mixed_factors(terms: &[Term], module: &str, mixing: &Mixing, seed: u64) -> Result<(Tensor, Tensor)> {
    let roots: Vec<f64> = terms.iter().map(|term| (term.weight * term.scaling).abs().sqrt()).collect();
    let signed =
        terms.iter().zip(&roots).map(|(term, root)| root.copysign(term.weight * term.scaling)).collect::<Vec<_>>();
    let a: Vec<Tensor> = terms.iter().map(|term| term.a.clone()).collect();
    let b: Vec<Tensor> = terms.iter().map(|term| term.b.clone()).collect();
    let (a_name, b_name) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    Ok((mix(&a, &signed, mixing, &a_name, seed)?, mix(&b, &roots, mixing, &b_name, seed)?))
}
