//! How several adapters of one method are combined, in the words of PEFT's `add_weighted_adapter`.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Tensor};
use rand::RngExt;

use super::task_tensors::{MajoritySignMethod, Mixing, Prune};
use crate::error::{Error, Result};
use crate::parameters::generator;
use crate::similar_names::nearest;

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
pub(super) enum Space {
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

    pub(super) fn space(self) -> Space {
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

pub(crate) fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Combination { reason: reason.into() })
}

impl Combination {
    /// What becomes of the numbers of a tensor.
    pub(super) fn mixing(&self) -> Result<Mixing> {
        let kind = self.combination_type;
        let prune = match (kind.prune(), self.density) {
            (None, _) => None,
            (Some(prune), Some(density)) if density > 0.0 && density <= 1.0 => Some((prune, density)),
            (Some(_), density) => {
                let found = density.map_or("not given".into(), |density| density.to_string());
                return refuse(format!("density is {found}; {kind} needs one above 0 and at most 1"));
            }
        };
        Ok(Mixing { prune, elect: kind.elects().then_some(self.majority_sign_method) })
    }
}

/// Tensors of one shape mixed. Each has a generator of its own for what is drawn.
pub(super) fn mix(tensors: &[Tensor], weights: &[f64], mixing: &Mixing, name: &str, seed: u64) -> Result<Tensor> {
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
