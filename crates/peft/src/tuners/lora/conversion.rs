//! LoRA branches that stand for any change of weights, `ΔW ≈ B A`, by singular value decomposition (PEFT `tuners/lora/conversion.py`).

use std::collections::BTreeMap;
use std::str::FromStr;

use candle_core::Tensor;

use super::config::Lora;
use crate::error::{Error, Result};
use crate::numerics::svd;
use crate::tuners::config::Bias;

/// The rank of each layer's branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConversionRank {
    /// The same of all.
    Fixed(usize),
    /// Of each the lowest that keeps this share, above 0 and at most 1, of the squared norm of `ΔW`.
    Threshold(f64),
}

impl FromStr for ConversionRank {
    type Err = String;

    /// `8`, or `0.95`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text.parse::<usize>(), text.parse::<f64>()) {
            (Ok(rank), _) if rank > 0 => Ok(Self::Fixed(rank)),
            (Err(_), Ok(share)) if share > 0.0 && share <= 1.0 => Ok(Self::Threshold(share)),
            _ => Err(format!("{text:?} is neither a rank of at least 1 nor a share such as 0.95")),
        }
    }
}

/// How well a branch stands for what an adapter does to a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvertedLayer {
    /// The layer's path.
    pub path: String,
    /// The branch's rank.
    pub rank: usize,
    /// The share of the squared (Frobenius) norm of `ΔW` that the branch has, from 0 to 1. 1: it has all.
    pub kept: f64,
}

/// LoRA, its tensors by parameter, and how well each branch stands for its layer's `ΔW` `(out, in)`, f64 on the CPU.
pub(crate) fn to_lora(
    deltas: Vec<(&str, Tensor)>,
    rank: ConversionRank,
    bias: Bias,
    modules_to_save: Vec<String>,
) -> Result<(Lora, BTreeMap<String, Tensor>, Vec<ConvertedLayer>)> {
    let (mut tensors, mut layers) = (BTreeMap::new(), Vec::with_capacity(deltas.len()));
    for (path, delta) in deltas {
        let branch = Branch::of(path, &delta, rank)?;
        tensors.insert(format!("{path}.lora_A.weight"), branch.a);
        tensors.insert(format!("{path}.lora_B.weight"), branch.b);
        layers.push(branch.layer);
    }
    let r = layers.iter().map(|layer| layer.rank).max().unwrap_or(1);
    let lora = Lora::on_ranks(r, layers.iter().map(|layer| (layer.path.as_str(), layer.rank)));
    Ok((Lora { bias, modules_to_save, ..lora }, tensors, layers))
}

/// One layer's branch.
struct Branch {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    layer: ConvertedLayer,
}

impl Branch {
    /// That of a `ΔW`, `(out, in)`.
    fn of(path: &str, delta: &Tensor, rank: ConversionRank) -> Result<Self> {
        let (outputs, inputs) = delta.dims2()?;
        let width = outputs.min(inputs);
        let (u, s, v) = svd(delta, width)?; // (out, width), (width), (width, in)
        let squares: Vec<f64> = s.to_vec1::<f64>()?.iter().map(|s| s * s).collect();
        let sums: Vec<f64> = squares
            .iter()
            .scan(0.0, |sum, square| {
                *sum += square;
                Some(*sum)
            })
            .collect();
        let total = sums.last().copied().unwrap_or_default();
        let (r, found) = match rank {
            ConversionRank::Fixed(r) => (r, r.to_string()),
            // PEFT's `_find_cutoff_index`: the first that reaches the share.
            ConversionRank::Threshold(share) => {
                (1 + sums.iter().take_while(|sum| **sum < share * total).count(), share.to_string())
            }
        };
        if r == 0 || r > width {
            let found = format!("{found} on {path} of {:?}", delta.dims());
            let expected = "at least 1 and no more than the layer's width, or a share above 0 and at most 1";
            return Err(Error::Adapter { method: "a conversion to LoRA", field: "rank", found, expected });
        }
        let kept = if total > 0.0 { sums[r - 1] / total } else { 1.0 };
        let b = u.narrow(1, 0, r)?.broadcast_mul(&s.narrow(0, 0, r)?.reshape((1, r))?)?;
        let a = v.narrow(0, 0, r)?.contiguous()?;
        Ok(Self { a, b, layer: ConvertedLayer { path: path.into(), rank: r, kept } })
    }
}
