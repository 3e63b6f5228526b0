//! LoRA that stands for another adapter: PEFT's `convert_to_lora` (`tuners/lora/conversion.py`).

use std::collections::BTreeMap;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};

use super::Adapter;
use super::config::AdapterConfig;
use super::weights::{PREFIX, VERA_A, VERA_B, Weights};
use crate::decomposition::svd;
use crate::error::{Error, Result};
use crate::layers::AdaptedLayer;
use crate::method::{Bias, Lora, Method};
use crate::model::Model;
use crate::pretrained::Pretrained;

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

/// LoRA that stands for another adapter, and how well.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// The LoRA, with the head and all else that was trained.
    pub adapter: Adapter,
    /// Each layer that has a branch.
    pub layers: Vec<ConvertedLayer>,
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

impl Model {
    /// LoRA that computes what this model's adapter does, as nearly as its rank allows (PEFT's `convert_to_lora`).
    ///
    /// Each adapted layer's `ΔW`, merged weight minus checkpoint's weight, is `U S Vᵀ`; of the r largest singular values
    /// `B = U S` and `A = Vᵀ` are made, with scaling 1: no branch of that rank is nearer (Eckart and Young 1936). It is exact
    /// where r is at least the rank of `ΔW`: that of LoRA, and of PiSSA and OLoRA, which start from the weight, twice as much.
    ///
    /// It goes further than PEFT, which converts DoRA without its magnitude, PiSSA and OLoRA without the residual, and (IA)³ not at
    /// all. Where an adapter changes biases, as (IA)³ does, the result has them with `bias: "lora_only"`.
    ///
    /// # Errors
    /// When the method changes no weight by an adapter, or has a trained parameter that a weight cannot hold; when a rank is 0 or
    /// more than a layer's width; when `pretrained` is not the model's checkpoint.
    pub fn convert_to_lora(&self, pretrained: &Pretrained, rank: ConversionRank) -> Result<Conversion> {
        self.check_mergeable()?;
        if self.adapted().is_empty() {
            return Err(Error::NotConvertible { method: self.method().to_string() });
        }
        let Adapter { config, weights, .. } = self.adapter()?;
        let is_of_adapter = |key: &str| {
            [VERA_A, VERA_B].contains(&key) || self.parameters().of_adapters().any(|name| self.key(name) == key)
        };
        let kept = weights.iter().filter(|(key, _)| !is_of_adapter(key));
        let mut tensors: BTreeMap<String, Tensor> =
            kept.map(|(key, tensor)| (key.to_string(), tensor.clone())).collect();

        let merged = self.adapted().iter().map(AdaptedLayer::merged).collect::<Result<Vec<_>>>()?;
        let (mut layers, mut changes_biases) = (Vec::new(), false);
        for (layer, merged) in self.adapted().iter().zip(&merged) {
            let path = &layer.path;
            let weight = merged.weight.tensor(); // (out, in)
            let base = pretrained.required(&format!("{path}.weight"), weight.dims())?;
            let exact = |weight: &Tensor| weight.to_device(&Device::Cpu)?.to_dtype(DType::F64);
            let branch = Branch::of(path, &(exact(weight)? - exact(base)?)?, rank)?;
            tensors.insert(format!("{PREFIX}{path}.lora_A.weight"), branch.a);
            tensors.insert(format!("{PREFIX}{path}.lora_B.weight"), branch.b);
            layers.push(branch.layer);
            let id = |bias: &Option<Tensor>| bias.as_ref().map(Tensor::id);
            changes_biases |= id(&merged.bias) != id(&layer.base.bias);
        }
        if changes_biases {
            let biases =
                self.adapted().iter().zip(&merged).filter_map(|(layer, merged)| Some((layer, merged.bias.as_ref()?)));
            tensors
                .extend(biases.map(|(layer, bias)| (format!("{PREFIX}{}.base_layer.bias", layer.path), bias.detach())));
        }
        let bias = if changes_biases { Bias::LoraOnly } else { self.method().bias() };
        let modules_to_save = self.method().modules_to_save().to_vec();
        let r = layers.iter().map(|layer| layer.rank).max().unwrap_or(1);
        let lora = Lora::on_ranks(r, layers.iter().map(|layer| (layer.path.as_str(), layer.rank)));
        let method = Method::Lora(Lora { bias, modules_to_save, ..lora });
        let config = AdapterConfig { method, ..config };
        Ok(Conversion {
            adapter: Adapter { config, warnings: Vec::new(), weights: Weights::new("a conversion", tensors) },
            layers,
        })
    }
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
