//! (IA)³: learned vectors that scale what flows through chosen layers.

use std::collections::BTreeSet;

use candle_core::Tensor;
use ops::{Precision, Weight};
use serde::{Deserialize, Serialize};

use super::saved::unmatched_name;
use super::targets::{Matcher, Targets, ends};
use crate::error::{Error, Result};
use crate::layers::{Adapter, BaseLayer, Pass};
use crate::parameters::{Builder, Start};

/// (IA)³ (Liu et al. 2022, section 3.3), in the words of PEFT's `IA3Config` (`tuners/ia3/config.py`), with its defaults for BERT.
///
/// A layer `x Wᵀ + b` becomes `l ∘ (x Wᵀ + b)` with l `(out)` trained, or, in the feed-forward network, `(l ∘ x) Wᵀ + b` with l
/// `(in)`: there the layer's input is the activation that the paper scales. l starts as ones (`tuners/ia3/layer.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ia3 {
    /// The linear layers that get a vector.
    pub target_modules: Targets,
    /// Of these, the ones whose input is scaled instead of their output.
    pub feedforward_modules: Targets,
    /// Of the targets, the ones that get none after all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// Modules that are trained whole, by the end of their path, besides the head. They get no vector.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
}

impl Default for Ia3 {
    /// PEFT's for BERT (`utils/constants.py`): key, value and the outputs of attention and of the feed-forward network, of which
    /// the latter two are scaled at their input.
    fn default() -> Self {
        Self {
            target_modules: Targets::suffixes(["key", "value", "output.dense"]),
            feedforward_modules: Targets::suffixes(["output.dense"]),
            exclude_modules: None,
            modules_to_save: Vec::new(),
        }
    }
}

impl Ia3 {
    pub(crate) fn check(&self) -> Result<()> {
        let (Targets::Suffixes(targets), Targets::Suffixes(inner)) = (&self.target_modules, &self.feedforward_modules)
        else {
            return Ok(());
        };
        if let Some(name) = inner.iter().find(|name| !targets.contains(name)) {
            let (method, field, found) = ("(IA)³", "feedforward_modules", name.clone());
            return Err(Error::Adapter { method, field, found, expected: "names that are in target_modules too" });
        }
        Ok(())
    }
}

/// An [`Ia3`] ready to be asked, module by module.
pub(super) struct Ia3Tuner {
    ia3: Ia3,
    targets: Matcher,
    feedforward: Matcher,
    excluded: Option<Matcher>,
}

impl Ia3Tuner {
    pub fn new(ia3: &Ia3) -> Result<Self> {
        ia3.check()?;
        Ok(Self {
            targets: ia3.target_modules.compile()?,
            feedforward: ia3.feedforward_modules.compile()?,
            excluded: ia3.exclude_modules.as_ref().map(Targets::compile).transpose()?,
            ia3: ia3.clone(),
        })
    }

    /// What a linear layer that is not trained whole gets.
    pub fn vector(&self, module: &str) -> Option<Vector> {
        let is_excluded = self.excluded.as_ref().is_some_and(|excluded| excluded.matches(module));
        let is_feedforward = self.feedforward.matches(module);
        (self.targets.matches(module) && !is_excluded).then_some(Vector { is_feedforward })
    }

    /// Fails where a name of the method names nothing.
    pub fn check_targets(&self, linear_layers: &BTreeSet<String>, modules: &BTreeSet<String>) -> Result<()> {
        let none = |targets: String, modules| {
            Err(Error::NoTarget { method: "(IA)³".into(), targets, choices: ends(modules) })
        };
        let unmatched = self.ia3.target_modules.unmatched(linear_layers.iter())?;
        if !unmatched.is_empty() || !linear_layers.iter().any(|module| self.vector(module).is_some()) {
            return none(unmatched.join(", "), linear_layers);
        }
        match unmatched_name(&self.ia3.modules_to_save, modules) {
            Some(name) => none(name.into(), modules),
            None => Ok(()),
        }
    }
}

/// What one linear layer's vector is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vector {
    is_feedforward: bool,
}

impl Vector {
    /// The vector of a layer with that weight, `(out, in)`. Its shape is that of PEFT's files: `(out, 1)` or `(1, in)`.
    pub fn build(self, builder: &mut Builder, path: &str, weight: &Tensor) -> Result<Box<dyn Adapter>> {
        let (outputs, inputs) = weight.dims2()?;
        let shape = if self.is_feedforward { [1, inputs] } else { [outputs, 1] };
        let scale = builder.adapter(format!("{path}.ia3_l"), &shape, Start::Ones)?;
        let (weight, precision) = (weight.clone(), builder.precision);
        Ok(Box::new(Scaled { scale, is_feedforward: self.is_feedforward, weight, precision }))
    }
}

struct Scaled {
    scale: Tensor, // (out, 1) or (1, in)
    is_feedforward: bool,
    weight: Tensor, // (out, in): that of the layer
    precision: Precision,
}

impl Adapter for Scaled {
    /// `l ∘ (x Wᵀ + b)`, or `(l ∘ x) Wᵀ + b`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, _pass: &Pass) -> Result<Tensor> {
        if self.is_feedforward {
            let x = ops::scale_columns(x, &self.scale, None)?;
            return Ok(ops::linear(&x, &base.weight, base.bias.as_ref())?);
        }
        let y = ops::linear(x, &base.weight, base.bias.as_ref())?;
        Ok(ops::scale_columns(&y, &self.scale, None)?)
    }

    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let scale = self.scale.detach();
        let weight = Weight::new(self.weight.broadcast_mul(&scale)?, self.precision)?;
        let bias = match base.bias {
            Some(bias) if !self.is_feedforward => Some((bias * scale.flatten_all()?)?),
            bias => bias,
        };
        Ok(BaseLayer { weight, bias })
    }
}
