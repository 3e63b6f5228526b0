//! EVA: A's that start from what flows into their layers, and ranks where most of it varies.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Tensor, TensorId, Var};
use serde::{Deserialize, Serialize};

use super::{InitLoraWeights, Lora};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::incremental_pca::IncrementalPca;
use crate::method::{Method, Targets};
use crate::model::{Model, ModelOptions};
use crate::pretrained::Pretrained;

/// The options of [`InitLoraWeights::Eva`], in the words of PEFT's `EvaConfig` (`tuners/lora/config.py`), with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaConfig {
    /// A layer may get up to this multiple of its rank, and the others less; 1 leaves all ranks as they are.
    pub rho: f64,
    /// A component has settled when the cosine of its angle to what it was one batch before is at least this.
    pub tau: f64,
    /// Divide each row of A by the root of its singular value.
    pub whiten: bool,
    /// Multiply a layer's `lora_alpha` by what its rank was multiplied by, so that its scaling stays.
    pub adjust_scaling_factors: bool,
}

impl Default for EvaConfig {
    fn default() -> Self {
        Self { rho: 2.0, tau: 0.99, whiten: false, adjust_scaling_factors: true }
    }
}

impl EvaConfig {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |field, found: f64, expected| {
            Err(Error::Adapter { method: "EVA", field, found: found.to_string(), expected })
        };
        match self {
            Self { rho, .. } if !rho.is_finite() || *rho < 1.0 => wrong("rho", *rho, "at least 1"),
            Self { tau, .. } if !(0.0..=1.0).contains(tau) => wrong("tau", *tau, "0 to 1"),
            _ => Ok(()),
        }
    }
}

/// A layer that is to be adapted.
struct Layer {
    path: String,
    r: usize,
    /// Which group it is of.
    group: usize,
}

/// Layers with one input, such as a query's and a key's, share its components.
struct Group {
    /// How many components are worked out: what a layer may get at most.
    most: usize,
    pca: IncrementalPca,
    /// Which components have settled.
    settled: Vec<bool>,
}

impl Group {
    /// Whether the first `rank` components have settled.
    fn has_settled(&self, rank: usize) -> bool {
        self.settled[..rank].iter().all(|settled| *settled)
    }
}

impl Model {
    /// A model whose LoRA starts as EVA (Paischer et al. 2024; PEFT's `initialize_lora_eva_weights`, `tuners/lora/eva.py`): each A
    /// holds the first principal components of what flows into its layer, worked out over `batches` until they settle, and B is
    /// zero. The sum of all ranks is kept, but each goes to the component, of all layers', that explains most of its layer's variance; a layer
    /// that is left without any gets no branch. The method of the model says what came of it, as PEFT's does: by the names of its
    /// `target_modules`, `rank_pattern` and `alpha_pattern`.
    ///
    /// The components are worked out in f64 and without the random sketch of PEFT's `svd_lowrank`. Where they have not settled at the
    /// end of the batches, they are taken as they are.
    ///
    /// # Errors
    /// As [`Model::new`], or when the method is no LoRA with this start, or no batch has as many tokens as a layer has components.
    pub fn with_eva_start<E: From<Error>>(
        pretrained: &Pretrained,
        options: &ModelOptions,
        batches: impl IntoIterator<Item = std::result::Result<Batch, E>>,
    ) -> std::result::Result<Self, E> {
        let wrong = |found: &str, expected| -> E {
            Error::Adapter { method: "LoRA", field: "init_lora_weights", found: found.into(), expected }.into()
        };
        let lora = match &options.method {
            Method::Lora(lora) if lora.init_lora_weights == InitLoraWeights::Eva => lora,
            _ => return Err(wrong("another", "\"eva\", for a start from data")),
        };
        let config = lora.eva_config.clone().unwrap_or_default();
        let model = Self::new(pretrained, options)?;
        let mut batches = batches.into_iter();
        let first = batches.next().ok_or_else(|| wrong("eva", "batches of data to start from"))??;
        let (layers, mut groups) = model.groups(&first, &config)?;
        let mut ranks: Vec<usize> = layers.iter().map(|layer| groups[layer.group].most).collect();
        for batch in std::iter::once(Ok(first)).chain(batches) {
            let batch = batch?;
            let is_wanted: Vec<bool> = groups
                .iter()
                .enumerate()
                .map(|(index, group)| !group.has_settled(leader(&layers, index).map_or(0, |layer| ranks[layer])))
                .collect();
            if !is_wanted.contains(&true) {
                break;
            }
            let inputs: BTreeMap<String, Tensor> = model.adapted_inputs(&batch)?.into_iter().collect();
            for (index, group) in groups.iter_mut().enumerate().filter(|(index, _)| is_wanted[*index]) {
                let input = leader(&layers, index).and_then(|layer| inputs.get(&layers[layer].path));
                let Some(input) = input.filter(|input| input.dims()[0] >= group.most) else { continue };
                if let Some(cosines) = group.pca.fit(input)? {
                    group.settled = cosines.into_iter().map(|cosine| cosine >= config.tau).collect();
                }
            }
            if let Some(divided) = divide(&layers, &groups)? {
                ranks = divided;
            }
        }

        let started = lora.with_ranks(&layers, &ranks, &config)?;
        let model = Self::new(pretrained, &ModelOptions { method: Method::Lora(started), ..options.clone() })?;
        for (layer, &rank) in layers.iter().zip(&ranks) {
            let Some((components, values)) = groups[layer.group].pca.components() else {
                return Err(wrong("eva", "batches with at least as many tokens as rho times r"));
            };
            let Some(a) = model.parameters().get(&format!("{}.lora_A.weight", layer.path)) else { continue };
            set_to_components(a, components, values, rank, config.whiten)?;
        }
        Ok(model)
    }

    /// The layers that are adapted, in the order of their paths, and those of one input together.
    fn groups(&self, batch: &Batch, config: &EvaConfig) -> Result<(Vec<Layer>, Vec<Group>)> {
        let inputs: BTreeMap<String, Tensor> = self.adapted_inputs(batch)?.into_iter().collect();
        let (mut layers, mut groups) = (Vec::new(), Vec::<Group>::new());
        let mut known: HashMap<TensorId, usize> = HashMap::new();
        for (path, input) in inputs {
            let Some(a) = self.parameters().get(&format!("{path}.lora_A.weight")) else { continue };
            let (r, columns) = a.dims2()?;
            let most = ((r as f64 * config.rho).round_ties_even() as usize).min(columns);
            let group = *known.entry(input.id()).or_insert(groups.len());
            match groups.get_mut(group) {
                Some(group) => group.most = group.most.max(most),
                None => groups.push(Group { most, pca: IncrementalPca::new(most), settled: Vec::new() }),
            }
            layers.push(Layer { path, r, group });
        }
        for group in &mut groups {
            (group.pca, group.settled) = (IncrementalPca::new(group.most), vec![false; group.most]);
        }
        Ok((layers, groups))
    }
}

/// Sets A to the first components, each divided by the root of its singular value if that is asked for.
fn set_to_components(a: &Var, components: &Tensor, values: &Tensor, rank: usize, whiten: bool) -> Result<()> {
    let mut rows = components.narrow(0, 0, rank)?;
    if whiten {
        rows = rows.broadcast_div(&values.narrow(0, 0, rank)?.sqrt()?.unsqueeze(1)?)?;
    }
    Ok(a.set(&rows.contiguous()?.to_dtype(a.dtype())?.to_device(a.device())?)?)
}

/// The first layer of a group.
fn leader(layers: &[Layer], group: usize) -> Option<usize> {
    layers.iter().position(|layer| layer.group == group)
}

/// Divides the ranks of all layers among the components that explain most of their layer's variance; nothing before every group has
/// components. The first layer of a group gets no less than the others (PEFT's `_get_rank_distribution`).
fn divide(layers: &[Layer], groups: &[Group]) -> Result<Option<Vec<usize>>> {
    let mut shares: Vec<(f64, usize)> = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let Some(ratios) = groups[layer.group].pca.explained_variance_ratio()? else { return Ok(None) };
        shares.extend(ratios.into_iter().map(|ratio| (ratio, index)));
    }
    shares.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut ranks = vec![0; layers.len()];
    let budget = layers.iter().map(|layer| layer.r).sum();
    for (_, layer) in shares.into_iter().take(budget) {
        ranks[layer] += 1;
    }
    for (index, layer) in layers.iter().enumerate() {
        if let Some(first) = leader(layers, layer.group).filter(|&first| ranks[first] < ranks[index]) {
            ranks.swap(first, index);
        }
    }
    Ok(Some(ranks))
}

impl Lora {
    /// With these ranks (PEFT's `_load_eva_state_dict`).
    fn with_ranks(&self, layers: &[Layer], ranks: &[usize], config: &EvaConfig) -> Result<Self> {
        let mut lora = Self { rank_pattern: BTreeMap::new(), alpha_pattern: BTreeMap::new(), ..self.clone() };
        let mut paths = Vec::new();
        for (layer, &rank) in layers.iter().zip(ranks).filter(|(_, rank)| **rank > 0) {
            let mut alpha = self.alpha_of(&layer.path)?;
            if config.adjust_scaling_factors {
                alpha *= rank as f64 / layer.r as f64;
            }
            if rank != self.r {
                lora.rank_pattern.insert(layer.path.clone(), rank);
            }
            if alpha != self.lora_alpha {
                lora.alpha_pattern.insert(layer.path.clone(), alpha);
            }
            paths.push(layer.path.clone());
        }
        lora.target_modules = Targets::Suffixes(paths);
        Ok(lora)
    }
}
