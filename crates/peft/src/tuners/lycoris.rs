//! What the methods of LyCORIS share: a branch `y += x ΔWᵀ` whose weight is made anew of trained factors at each step (PEFT
//! `tuners/lycoris_utils.py`, `LycorisLayer`).

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use ops::{Precision, Weight};
use serde_json::{Value, json};

use super::config::Bias;
use super::options::{MethodOption, OptionKind, option};
use super::patterns::Patterns;
use super::selected_layers::SelectedLayers;
use super::selection::Fields;
use crate::builder::{Builder, Tuner};
use crate::error::{Error, Result};
use crate::layers::{BaseLayer, ForwardPass, LinearAdapter};

/// The options that they share, in PEFT's words.
pub(super) struct Lycoris<'a> {
    pub layers: Fields<'a>,
    pub r: usize,
    pub alpha: f64,
    pub rank_pattern: &'a BTreeMap<String, usize>,
    pub alpha_pattern: &'a BTreeMap<String, f64>,
    pub dropout: BranchDropout,
}

/// [`Lycoris`] of a method's options, whose fields have PEFT's names, the method's name, and whether its dropout rescales.
macro_rules! shared {
    ($options:expr, $method:literal, $rescales:expr) => {
        $crate::tuners::lycoris::Lycoris {
            layers: $crate::tuners::selection::fields!($options, $method),
            r: $options.r,
            alpha: $options.alpha,
            rank_pattern: &$options.rank_pattern,
            alpha_pattern: &$options.alpha_pattern,
            dropout: $crate::tuners::lycoris::BranchDropout {
                rank: $options.rank_dropout,
                rescales: $rescales,
                module: $options.module_dropout,
            },
        }
    };
}
pub(super) use shared;

/// A layer that gets a branch, with its weight's shape `(out, in)`, its rank and what its branch is multiplied by.
pub(super) struct Place<'a> {
    pub path: &'a str,
    pub outputs: usize,
    pub inputs: usize,
    pub r: usize,
    pub scaling: f64,
}

impl Lycoris<'_> {
    /// The tuner that adds to a layer's weight what `change` makes for it.
    pub(super) fn tuner<C: WeightChange + 'static>(
        self,
        change: impl Fn(&mut Builder, &Place) -> Result<C> + Send + Sync + 'static,
    ) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        let Self { layers, r, alpha, rank_pattern, alpha_pattern, dropout } = self;
        let patterns = Patterns::new(rank_pattern, alpha_pattern)?;
        let adapter = move |builder: &mut Builder, path: &str, weight: Tensor| {
            let ((outputs, inputs), r) = (weight.dims2()?, patterns.rank(path, r));
            let scaling = patterns.alpha(path, alpha) / r as f64;
            let change = change(builder, &Place { path, outputs, inputs, r, scaling })?;
            let branch = WeightBranch { change, dropout, precision: builder.precision };
            Ok((Box::new(branch) as Box<dyn LinearAdapter>, weight))
        };
        Ok(Arc::new(SelectedLayers::new(layers.method.into(), &layers, Bias::None, adapter)?))
    }

    /// Fails where a value makes no branch.
    fn check(&self) -> Result<()> {
        let method = self.layers.method;
        let wrong = |field, found, expected| Err(Error::Adapter { method, field, found, expected });
        let is_alpha = |alpha: &f64| alpha.is_finite() && *alpha != 0.0;
        if self.r == 0 {
            return wrong("r", "0".into(), "at least 1");
        }
        if let Some((name, _)) = self.rank_pattern.iter().find(|(_, r)| **r == 0) {
            return wrong("rank_pattern", format!("{name}=0"), "ranks of at least 1");
        }
        if !is_alpha(&self.alpha) {
            return wrong("alpha", self.alpha.to_string(), "a finite number other than 0");
        }
        if let Some((name, alpha)) = self.alpha_pattern.iter().find(|(_, alpha)| !is_alpha(alpha)) {
            return wrong("alpha_pattern", format!("{name}={alpha}"), "finite numbers other than 0");
        }
        let probabilities = [("rank_dropout", self.dropout.rank), ("module_dropout", self.dropout.module)];
        match probabilities.into_iter().find(|(_, probability)| !(0.0..1.0).contains(probability)) {
            Some((field, found)) => wrong(field, found.to_string(), "at least 0 and below 1"),
            None => Ok(()),
        }
    }

    /// The options that the sizes of the factors follow from.
    pub(super) fn sizes(&self) -> Vec<(&'static str, usize)> {
        let highest = self.rank_pattern.values().max().map(|r| ("rank_pattern", *r));
        [("r", self.r)].into_iter().chain(highest).collect()
    }

    /// The options by which two adapters compute differently from the same values.
    pub(super) fn computed_by(&self) -> Vec<(&'static str, String)> {
        vec![
            ("r", self.r.to_string()),
            ("alpha", self.alpha.to_string()),
            ("rank_pattern", format!("{:?}", self.rank_pattern)),
            ("alpha_pattern", format!("{:?}", self.alpha_pattern)),
        ]
    }
}

/// The options on a command line that they share.
pub(super) const BRANCH: &[MethodOption] = &[
    option("alpha", "alpha", OptionKind::Value, "The branch is multiplied by alpha / r [default: 8]"),
    option("rank-dropout", "rank_dropout", OptionKind::Value, "Dropout of the branch's outputs [default: 0]"),
    option("module-dropout", "module_dropout", OptionKind::Value, "Dropout of whole branches [default: 0]"),
];

/// PEFT's values of what a file need not have. `use_effective_conv2d` is of convolutions.
pub(super) fn peft_defaults() -> Value {
    json!({
        "exclude_modules": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_effective_conv2d": false,
    })
}

/// What is added to the weight of a layer.
pub(super) trait WeightChange: Send + Sync {
    /// ΔW, `(out, in)`, of the factors as they are, with their gradients.
    fn weight(&self) -> Result<Tensor>;
}

/// What is left out of a branch in training.
#[derive(Clone, Copy)]
pub(super) struct BranchDropout {
    /// The probability of each output, for all tokens.
    pub rank: f64,
    /// Whether what is left is divided by its share.
    pub rescales: bool,
    /// The probability of the whole branch.
    pub module: f64,
}

impl BranchDropout {
    /// What each output of a branch is multiplied by in this pass, `(1, out)`; `None`: 1. A branch that is left out has the factor 0, so
    /// that its gradient is zero, and not absent.
    fn factors(&self, pass: &ForwardPass, branch: &Tensor) -> Result<Option<Tensor>> {
        let (_, outputs) = branch.dims2()?;
        // 1 where something is kept, 0 where it is not.
        let kept = |probability: f64, count: usize| -> Result<Option<Tensor>> {
            let Some(dropout) = pass.dropout(probability) else { return Ok(None) };
            let ones = Tensor::ones((1, count), branch.dtype(), branch.device())?;
            Ok(Some((ops::dropout(&ones, Some(dropout))? * (1.0 - probability))?))
        };
        let rank = match kept(self.rank, outputs)? {
            // At least one output's share: where none is left, there is nothing to rescale.
            Some(kept) if self.rescales => {
                Some(kept.broadcast_div(&kept.mean_keepdim(1)?.maximum(0.5 / outputs as f64)?)?)
            }
            kept => kept,
        };
        Ok(match (rank, kept(self.module, 1)?) {
            (Some(rank), Some(module)) => Some(rank.broadcast_mul(&module)?),
            (None, Some(module)) => Some(module.broadcast_as((1, outputs))?.contiguous()?),
            (rank, None) => rank,
        })
    }
}

/// The branch beside a linear layer.
struct WeightBranch<C> {
    change: C,
    dropout: BranchDropout,
    /// Of the layer's products. The branch's own are never rounded to bf16.
    precision: Precision,
}

impl<C: WeightChange> LinearAdapter for WeightBranch<C> {
    /// `x Wᵀ + b + dropout(x ΔWᵀ)`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let change = Weight::new(self.change.weight()?, self.precision.of_f32())?;
        let mut branch = ops::linear(x, &change, None)?; // (tokens, out)
        if let Some(factors) = self.dropout.factors(pass, &branch)? {
            branch = ops::scale_columns(&branch, &factors, None)?;
        }
        Ok(ops::add(&branch, &base.forward(x)?)?)
    }

    /// `W + ΔW`.
    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let weight = (base.weight.unrounded()? + self.change.weight()?.detach())?;
        Ok(BaseLayer { weight: Weight::new(weight, self.precision)?, ..base })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use candle_core::{DType, Device};
    use ops::Segments;

    use super::*;

    /// The factors of a branch of 200 outputs at these probabilities.
    fn factors(rank: f64, rescales: bool, module: f64, step_seed: Option<u64>) -> Option<Vec<f64>> {
        let segments = Segments::from_lengths(&[3]);
        let pass = step_seed.map_or(ForwardPass::evaluation(&segments), |seed| ForwardPass::training(&segments, seed));
        let branch = Tensor::zeros((3, 200), DType::F64, &Device::Cpu).unwrap();
        let factors = BranchDropout { rank, rescales, module }.factors(&pass, &branch).unwrap();
        factors.map(|factors| factors.flatten_all().unwrap().to_vec1().unwrap())
    }

    /// PEFT `tuners/loha/layer.py`: `drop /= drop.mean()`; LoKr does so only with `rank_dropout_scale`.
    #[test]
    fn outputs_are_left_out_in_training_only_and_the_others_are_divided_by_their_share_where_it_is_asked_for() {
        assert_eq!(factors(0.3, true, 0.3, None), None);
        assert_eq!(factors(0.0, true, 0.0, Some(5)), None);
        let kept = factors(0.3, false, 0.0, Some(5)).unwrap();
        let count = kept.iter().filter(|factor| (**factor - 1.0).abs() < 1e-12).count();
        assert!(kept.iter().all(|factor| factor.abs() < 1e-12 || (factor - 1.0).abs() < 1e-12));
        assert!((110..170).contains(&count), "{count} of 200 at 0.7");
        let rescaled = factors(0.3, true, 0.0, Some(5)).unwrap();
        for (kept, rescaled) in kept.iter().zip(&rescaled) {
            assert!((rescaled - kept * 200.0 / count as f64).abs() < 1e-12);
        }
    }

    #[test]
    fn a_whole_branch_is_there_or_not() {
        let branches: Vec<f64> = (0..100)
            .map(|seed| {
                let factors = factors(0.0, true, 0.4, Some(seed)).unwrap();
                assert!(factors.iter().all(|factor| *factor == factors[0]));
                factors[0]
            })
            .collect();
        let there = branches.iter().filter(|factor| (**factor - 1.0).abs() < 1e-12).count();
        assert!(there + branches.iter().filter(|factor| **factor == 0.0).count() == 100);
        assert!((40..80).contains(&there), "{there} of 100 at 0.6");
    }
}
