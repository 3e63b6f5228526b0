//! A weighted combination of several adapters: PEFT's `add_weighted_adapter` (`tuners/lora/model.py`, `tuners/ia3/model.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use rand::RngExt;

use super::config::AdapterConfig;
use super::nearest::nearest;
use super::task_tensors::{MajoritySignMethod, Mixing, Prune};
use super::weights::{PREFIX, Weights};
use super::{Adapter, base_warning};
use crate::decomposition::svd;
use crate::error::{Error, Result};
use crate::method::{Bias, HEADS, Ia3, Lora, Method, Targets};
use crate::parameters::generator;

/// How adapters are combined, in the words of PEFT's `add_weighted_adapter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Of LoRA; (IA)³ knows [`CombinationType::Linear`] alone.
    pub combination_type: CombinationType,
    /// The rank of the result, where a type ends in `svd`; `None`: the highest of the adapters.
    pub svd_rank: Option<usize>,
    /// The share of numbers that is kept, above 0 and at most 1: of TIES, DARE and magnitude pruning, which need it.
    pub density: Option<f64>,
    /// Of TIES.
    pub majority_sign_method: MajoritySignMethod,
    /// Whose head and modules to save the result has, by its place among the adapters; `None`: those of the first, and all must
    /// have the same number of labels.
    pub head: Option<usize>,
    /// Of what DARE draws.
    pub seed: u64,
}

impl Combination {
    /// With PEFT's defaults for the rest; no density, and seed 1.
    pub fn new(combination_type: CombinationType) -> Self {
        let majority_sign_method = MajoritySignMethod::default();
        Self { combination_type, svd_rank: None, density: None, majority_sign_method, head: None, seed: 1 }
    }
}

/// What is combined, and how (PEFT's `combination_type`).
///
/// Each layer's `ΔW` is `scaling B A`. `Cat` and `Svd` combine these exactly, the latter as far as its rank goes. The others whose
/// names do not end in `svd` combine the As and the Bs by themselves, each with the root of weight and scaling, which is an
/// approximation and needs equal ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CombinationType {
    /// The sum of `ΔW`, cut to a rank.
    Svd,
    /// The sums of A and B.
    Linear,
    /// All As and Bs side by side: the rank is the sum of ranks.
    Cat,
    /// A and B by TIES (Yadav et al. 2023).
    Ties,
    /// `ΔW` by TIES, cut to a rank.
    TiesSvd,
    /// The sums of A and B after DARE (Yu et al. 2024).
    DareLinear,
    /// A and B by TIES after DARE.
    DareTies,
    /// The sum of `ΔW` after DARE, cut to a rank.
    DareLinearSvd,
    /// `ΔW` by TIES after DARE, cut to a rank.
    DareTiesSvd,
    /// The sums of the largest of A and B.
    MagnitudePrune,
    /// The sum of the largest of `ΔW`, cut to a rank.
    MagnitudePruneSvd,
}

/// On what a combination works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Factors,
    Products,
    Ranks,
}

impl CombinationType {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Svd,
        Self::Linear,
        Self::Cat,
        Self::Ties,
        Self::TiesSvd,
        Self::DareLinear,
        Self::DareTies,
        Self::DareLinearSvd,
        Self::DareTiesSvd,
        Self::MagnitudePrune,
        Self::MagnitudePruneSvd,
    ];

    /// PEFT's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Svd => "svd",
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Ties => "ties",
            Self::TiesSvd => "ties_svd",
            Self::DareLinear => "dare_linear",
            Self::DareTies => "dare_ties",
            Self::DareLinearSvd => "dare_linear_svd",
            Self::DareTiesSvd => "dare_ties_svd",
            Self::MagnitudePrune => "magnitude_prune",
            Self::MagnitudePruneSvd => "magnitude_prune_svd",
        }
    }

    fn space(self) -> Space {
        match self {
            Self::Cat => Space::Ranks,
            Self::Svd | Self::TiesSvd | Self::DareLinearSvd | Self::DareTiesSvd | Self::MagnitudePruneSvd => {
                Space::Products
            }
            _ => Space::Factors,
        }
    }

    /// Which numbers of a tensor are kept; `None`: all.
    fn prune(self) -> Option<Prune> {
        match self {
            Self::Svd | Self::Linear | Self::Cat => None,
            Self::DareLinear | Self::DareTies | Self::DareLinearSvd | Self::DareTiesSvd => Some(Prune::Random),
            Self::Ties | Self::TiesSvd | Self::MagnitudePrune | Self::MagnitudePruneSvd => Some(Prune::Magnitude),
        }
    }

    fn elects(self) -> bool {
        matches!(self, Self::Ties | Self::TiesSvd | Self::DareTies | Self::DareTiesSvd)
    }
}

impl fmt::Display for CombinationType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for CombinationType {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("no combination is called {text:?}{}; expected one of {}", nearest(text, names), names.join(", "))
        })
    }
}

impl Adapter {
    /// One adapter of several, each with its weight, which may be below 0: LoRA as `combination_type` says, (IA)³ by the weighted sum
    /// of its vectors. As PEFT's `add_weighted_adapter`, and where that would give something else than was meant, better:
    ///
    /// - The result names its layers by their whole paths, and its scaling is 1. PEFT keeps the first adapter's `use_rslora`,
    ///   `exclude_modules` and `layers_to_transform`, which are those of one.
    /// - What is not the method's is never mixed. PEFT refuses adapters that have a head; here all that is trained whole, the head
    ///   and modules to save, is one adapter's (see [`Combination::head`]).
    /// - DoRA, PiSSA and OLoRA, biases that are trained besides, and adapters of which one has modules to save that the other
    ///   has not, are errors: a sum of branches is not what they compute. [`crate::Model::convert_to_lora`] makes LoRA of them.
    ///
    /// A layer that only some adapters have is combined of these. PEFT's `svd_clamp` is left out: what it cuts hangs on the signs of
    /// singular vectors, which any decomposition may choose.
    ///
    /// # Errors
    /// When the adapters do not go together, or the options not with them.
    pub fn combine(adapters: &[(&Self, f64)], combination: &Combination) -> Result<Self> {
        let Some((first, _)) = adapters.first() else { return refuse("there is none; name at least one") };
        if let Some((_, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
            return refuse(format!("a weight is {weight}; give finite numbers"));
        }
        let Some((of_head, _)) = adapters.get(combination.head.unwrap_or(0)) else {
            return refuse(format!("head is {:?} of {} adapters", combination.head, adapters.len()));
        };
        check_labels(adapters, combination)?;
        let (method, mut tensors) = match &first.config.method {
            Method::Lora(_) => combine_lora(adapters, combination, of_head)?,
            Method::Ia3(_) => combine_ia3(adapters, combination, of_head)?,
            other => return refuse(format!("{} is {other}; LoRA and (IA)³ are combined", first.name())),
        };
        let is_whole = |key: &str| !key.contains(".lora_") && !key.ends_with(".ia3_l");
        let whole = of_head.weights.iter().filter(|(key, _)| is_whole(key));
        tensors.extend(whole.map(|(key, tensor)| (key.to_string(), tensor.clone())));
        let config = AdapterConfig { method, ..of_head.config.clone() };
        let base = config.base_model_name_or_path.as_deref();
        let other_base = |(adapter, _): &(&Self, f64)| base_warning(&adapter.config, base?);
        let warnings = adapters.iter().filter_map(other_base).collect();
        Ok(Self { config, warnings, weights: Weights::new("a combination", tensors) })
    }

    /// What messages call it.
    fn name(&self) -> String {
        self.weights.path().display().to_string()
    }

    /// The modules that have a tensor of that name, by their paths.
    fn modules_with(&self, last: &str) -> impl Iterator<Item = &str> {
        let module = move |(key, _)| str::strip_suffix(str::strip_prefix(key, PREFIX)?, last);
        self.weights.iter().filter_map(module)
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Combination { reason: reason.into() })
}

/// All adapters are of one pooling, and of one number of labels, unless the head was chosen.
fn check_labels(adapters: &[(&Adapter, f64)], combination: &Combination) -> Result<()> {
    let Some(((first, _), others)) = adapters.split_first() else { return Ok(()) };
    for (other, _) in others {
        if other.config.pooling != first.config.pooling {
            let (pooling, others) = (first.config.pooling, other.config.pooling);
            return refuse(format!("{} has pooling {pooling:?}, {} {others:?}", first.name(), other.name()));
        }
        let (labels, others) = (first.weights.num_labels()?, other.weights.num_labels()?);
        if labels != others && combination.head.is_none() {
            return refuse(format!(
                "{} has {labels} labels, {} {others}; say whose head the result is to have",
                first.name(),
                other.name()
            ));
        }
    }
    Ok(())
}

/// The modules that every adapter trains whole besides the head: the same of all.
fn modules_to_save(adapters: &[(&Adapter, f64)], of_head: &Adapter) -> Result<Vec<String>> {
    let names = |adapter: &Adapter| {
        let AdapterConfig { method, head, train_pooler, .. } = &adapter.config;
        let pooler = train_pooler.then(|| "pooler".to_string());
        let names = method.modules_to_save().iter().chain(head).cloned().chain(pooler);
        names.filter(|name| !HEADS.contains(&name.as_str())).collect::<BTreeSet<_>>()
    };
    match adapters.iter().find(|(adapter, _)| names(adapter) != names(of_head)) {
        Some((other, _)) => refuse(format!(
            "{} trains the modules {:?} whole, {} {:?}",
            of_head.name(),
            names(of_head),
            other.name(),
            names(other)
        )),
        None => Ok(of_head.config.method.modules_to_save().to_vec()),
    }
}

/// What one adapter has at one layer.
struct Term {
    weight: f64,
    scaling: f64,
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
}

type Combined = (Method, BTreeMap<String, Tensor>);

fn combine_lora(adapters: &[(&Adapter, f64)], combination: &Combination, of_head: &Adapter) -> Result<Combined> {
    let combination = &match adapters {
        // PEFT: of one adapter there is nothing to decompose, prune or elect.
        [_] => Combination { combination_type: CombinationType::Linear, ..combination.clone() },
        _ => combination.clone(),
    };
    let mixing = mixing(combination)?;
    let mut layers: BTreeMap<&str, Vec<Term>> = BTreeMap::new();
    let mut ranks = Vec::new();
    for (adapter, weight) in adapters {
        let lora = plain_lora(adapter)?;
        let mut highest = 0;
        for (module, scaling) in lora.scalings(adapter.modules_with(".lora_A.weight"))? {
            let factor = |name: &str| -> Result<Tensor> {
                Ok(adapter.weights.get(&format!("{PREFIX}{module}.{name}.weight"))?.to_dtype(DType::F64)?)
            };
            let (a, b) = (factor("lora_A")?, factor("lora_B")?);
            let ((r, _), (_, columns)) = (a.dims2()?, b.dims2()?);
            if r != columns {
                let (a, b) = (a.dims(), b.dims());
                return refuse(format!("{}: A {a:?} and B {b:?} of {module} do not fit", adapter.name()));
            }
            highest = highest.max(r);
            layers.entry(module).or_default().push(Term { weight: *weight, scaling, a, b });
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

    let modules_to_save = modules_to_save(adapters, of_head)?;
    let (mut tensors, mut ranks) = (BTreeMap::new(), Vec::new());
    for (module, terms) in layers {
        let (a, b) = match combination.combination_type.space() {
            Space::Ranks => side_by_side(&terms, rank)?,
            Space::Products => mixed_products(&terms, module, rank, &mixing, combination.seed)?,
            Space::Factors => mixed_factors(&terms, module, &mixing, combination.seed)?,
        };
        ranks.push((module, a.dim(0)?));
        tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), a);
        tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), b);
    }
    let lora = Lora { modules_to_save, ..Lora::on_ranks(rank, ranks) };
    Ok((Method::Lora(lora), tensors))
}

/// The LoRA of an adapter whose branches say all that it does.
fn plain_lora(adapter: &Adapter) -> Result<&Lora> {
    let Method::Lora(lora) = &adapter.config.method else {
        return refuse(format!("{} is {}, the first LoRA", adapter.name(), adapter.config.method));
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
    refuse(format!("{} {wrong}; convert it to LoRA, or train without", adapter.name()))
}

fn mixing(combination: &Combination) -> Result<Mixing> {
    let kind = combination.combination_type;
    let prune = match (kind.prune(), combination.density) {
        (None, _) => None,
        (Some(prune), Some(density)) if density > 0.0 && density <= 1.0 => Some((prune, density)),
        (Some(_), density) => {
            let found = density.map_or("not given".into(), |density| density.to_string());
            return refuse(format!("density is {found}; {kind} needs one above 0 and at most 1"));
        }
    };
    Ok(Mixing { prune, elect: kind.elects().then_some(combination.majority_sign_method) })
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
    let product = |term: &Term| Ok((term.b.matmul(&term.a)? * term.scaling)?);
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

/// Tensors of one shape mixed. Each has a generator of its own for what is drawn.
fn mix(tensors: &[Tensor], weights: &[f64], mixing: &Mixing, name: &str, seed: u64) -> Result<Tensor> {
    let Some(shape) = tensors.first().map(Tensor::dims) else { return refuse(format!("nothing to mix at {name}")) };
    if let Some(other) = tensors.iter().find(|tensor| tensor.dims() != shape) {
        return refuse(format!(
            "{name} has shape {shape:?} in one and {:?} in another; equal ranks are needed, or the type cat or one with svd",
            other.dims()
        ));
    }
    let values: Vec<Vec<f64>> =
        tensors.iter().map(|tensor| tensor.flatten_all()?.to_vec1()).collect::<candle_core::Result<_>>()?;
    let mut generator = generator(name, seed);
    let mixed = mixing.mix(&values, weights, &mut |density| generator.random_bool(density));
    Ok(Tensor::from_vec(mixed, shape, &Device::Cpu)?)
}

fn combine_ia3(adapters: &[(&Adapter, f64)], combination: &Combination, of_head: &Adapter) -> Result<Combined> {
    if combination.combination_type != CombinationType::Linear {
        let kind = combination.combination_type;
        return refuse(format!("(IA)³ has no factors for {kind}; use linear, the weighted sum of its vectors"));
    }
    let mut vectors: BTreeMap<&str, Tensor> = BTreeMap::new();
    for (adapter, weight) in adapters {
        if !matches!(adapter.config.method, Method::Ia3(_)) {
            return refuse(format!("{} is {}, the first (IA)³", adapter.name(), adapter.config.method));
        }
        for module in adapter.modules_with(".ia3_l") {
            let vector = adapter.weights.get(&format!("{PREFIX}{module}.ia3_l"))?.to_dtype(DType::F64)?;
            let weighted = (vector * *weight)?;
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
        modules_to_save: modules_to_save(adapters, of_head)?,
    };
    let tensors = vectors.into_iter().map(|(module, vector)| (format!("{PREFIX}{module}.ia3_l"), vector)).collect();
    Ok((Method::Ia3(ia3), tensors))
}
