//! LoRA that stands for another adapter: PEFT's `convert_to_lora`.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};

use crate::adapter_files::{Adapter, AdapterConfig, PREFIX, Weights};
use crate::error::{Error, Result};
use crate::layers::AdaptedLayer;
use crate::model::Model;
use crate::pretrained::Pretrained;
use crate::tuners::config::Bias;
use crate::tuners::{ConversionRank, ConvertedLayer, Method, to_lora};

/// LoRA that stands for another adapter, and how well.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// The LoRA, with the head and all else that was trained.
    pub adapter: Adapter,
    /// Each layer that has a branch.
    pub layers: Vec<ConvertedLayer>,
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
        let Adapter { config, weights, conditions, .. } = self.adapter()?;
        let of_adapter: BTreeSet<String> = self.parameters().of_adapters().map(|name| self.key(name)).collect();
        let is_of_adapter = |key: &str| of_adapter.contains(key) || self.is_shared(key);
        let kept = weights.iter().filter(|(key, _)| !is_of_adapter(key));
        let mut tensors: BTreeMap<String, Tensor> =
            kept.map(|(key, tensor)| (key.to_string(), tensor.clone())).collect();

        let merged = self.adapted().iter().map(AdaptedLayer::merged).collect::<Result<Vec<_>>>()?;
        let exact = |weight: &Tensor| weight.to_device(&Device::Cpu)?.to_dtype(DType::F64);
        let (mut deltas, mut biases, mut changes_biases) = (Vec::new(), Vec::new(), false);
        for (layer, merged) in self.adapted().iter().zip(&merged) {
            let weight = merged.weight.tensor(); // (out, in)
            let base = pretrained.required(&format!("{}.weight", layer.path), weight.dims())?;
            deltas.push((layer.path.as_str(), (exact(weight)? - exact(base)?)?));
            let id = |bias: &Option<Tensor>| bias.as_ref().map(Tensor::id);
            changes_biases |= id(&merged.bias) != id(&layer.base.bias);
            biases.extend(
                merged.bias.as_ref().map(|bias| (format!("{PREFIX}{}.base_layer.bias", layer.path), bias.detach())),
            );
        }
        if changes_biases {
            tensors.extend(biases);
        }
        let bias = if changes_biases { Bias::LoraOnly } else { self.method().config().bias() };
        let modules_to_save = self.method().config().modules_to_save().to_vec();
        let (lora, branches, layers) = to_lora(deltas, rank, bias, modules_to_save)?;
        tensors.extend(branches.into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)));
        let config = AdapterConfig { method: Method::Lora(lora), ..config };
        Ok(Conversion {
            adapter: Adapter {
                config,
                warnings: Vec::new(),
                conditions,
                weights: Weights::new("a conversion", tensors),
            },
            layers,
        })
    }
}
