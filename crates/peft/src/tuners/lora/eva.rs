//! EVA: initial values of A from the principal components of what flows into each layer, and ranks where most of it varies.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Tensor, TensorId, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::numerics::IncrementalPca;
use crate::parameters::Parameters;
use crate::tuners::config::{DataInitializer, LayerRank};

/// The options of [`InitLoraWeights::Eva`](super::InitLoraWeights::Eva), in the words of PEFT's `EvaConfig` (`tuners/lora/config.py`), with its defaults.
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

/// EVA (Paischer et al. 2024; PEFT's `initialize_lora_eva_weights`, `tuners/lora/eva.py`): each A holds the first principal
/// components of what flows into its layer, worked out over batches until they settle, and B is zero. The sum of all ranks is kept,
/// but each goes to the component, of all layers', that explains most of its layer's variance; a layer that is left without any
/// gets no branch.
///
/// The components are worked out in f64 and without the random sketch of PEFT's `svd_lowrank`. Where they have not settled at the
/// end of the batches, they are taken as they are.
pub(super) struct Eva {
    config: EvaConfig,
    /// In the order of their paths.
    layers: Vec<Layer>,
    groups: Vec<Group>,
    ranks: Vec<usize>,
}

impl Eva {
    pub(super) fn new(config: EvaConfig) -> Self {
        Self { config, layers: Vec::new(), groups: Vec::new(), ranks: Vec::new() }
    }

    /// The layers that are adapted, and those of one input together.
    fn group(&mut self, inputs: &BTreeMap<String, Tensor>, parameters: &Parameters) -> Result<()> {
        let mut known: HashMap<TensorId, usize> = HashMap::new();
        for (path, input) in inputs {
            let Some(a) = parameters.get(&format!("{path}.lora_A.weight")) else { continue };
            let (r, columns) = a.dims2()?;
            let most = ((r as f64 * self.config.rho).round_ties_even() as usize).min(columns);
            let group = *known.entry(input.id()).or_insert(self.groups.len());
            match self.groups.get_mut(group) {
                Some(group) => group.most = group.most.max(most),
                None => self.groups.push(Group { most, pca: IncrementalPca::new(most), settled: Vec::new() }),
            }
            self.layers.push(Layer { path: path.clone(), r, group });
        }
        for group in &mut self.groups {
            (group.pca, group.settled) = (IncrementalPca::new(group.most), vec![false; group.most]);
        }
        self.ranks = self.layers.iter().map(|layer| self.groups[layer.group].most).collect();
        Ok(())
    }

    /// Of each group, whether components that its layers want have not settled.
    fn wanted(&self) -> Vec<bool> {
        let rank = |group| leader(&self.layers, group).map_or(0, |layer| self.ranks[layer]);
        self.groups.iter().enumerate().map(|(index, group)| !group.has_settled(rank(index))).collect()
    }
}

impl DataInitializer for Eva {
    fn observe(&mut self, inputs: BTreeMap<String, Tensor>, parameters: &Parameters) -> Result<bool> {
        if self.layers.is_empty() {
            self.group(&inputs, parameters)?;
        }
        let wanted = self.wanted();
        for (index, group) in self.groups.iter_mut().enumerate().filter(|(index, _)| wanted[*index]) {
            let input = leader(&self.layers, index).and_then(|layer| inputs.get(&self.layers[layer].path));
            let Some(input) = input.filter(|input| input.dims()[0] >= group.most) else { continue };
            if let Some(cosines) = group.pca.fit(input)? {
                group.settled = cosines.into_iter().map(|cosine| cosine >= self.config.tau).collect();
            }
        }
        if let Some(divided) = divide(&self.layers, &self.groups)? {
            self.ranks = divided;
        }
        Ok(self.wanted().contains(&true))
    }

    fn ranks(&self) -> Vec<LayerRank> {
        let layers = self.layers.iter().zip(&self.ranks);
        layers.map(|(layer, &given)| LayerRank { path: layer.path.clone(), asked: layer.r, given }).collect()
    }

    fn set(&self, parameters: &Parameters) -> Result<()> {
        for (layer, &rank) in self.layers.iter().zip(&self.ranks) {
            let Some((components, values)) = self.groups[layer.group].pca.components() else {
                return Err(Error::Adapter {
                    method: "LoRA",
                    field: "init_lora_weights",
                    found: "eva".into(),
                    expected: "batches with at least as many tokens as rho times r",
                });
            };
            let Some(a) = parameters.get(&format!("{}.lora_A.weight", layer.path)) else { continue };
            set_to_components(a, components, values, rank, self.config.whiten)?;
        }
        Ok(())
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
