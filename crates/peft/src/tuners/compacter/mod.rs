//! Compacter: bottleneck adapters whose matrices are sums of Kronecker products, of which all share a part.

mod adapter;

use std::fmt;
use std::sync::Arc;

use ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bottleneck::{AdapterStyle, Bottleneck, BottleneckAdapter, module_of};
use super::config::TunerConfig;
use super::config_file::{ConfigFile, Fields};
use super::options::{MethodOption, OptionKind, option};
use crate::builder::{Builder, Tuner};
use crate::error::{ConfigError, Error, Result};
use crate::layers::{Sublayer, SublayerAdapter};

use adapter::PhmLayer;

/// Compacter and Compacter++ (Mahabadi et al. 2021, section 3), in the words of AdapterHub's `CompacterConfig` (the Python package
/// `adapters` 1.3, `configuration/adapter_config.py`), with its defaults.
///
/// It is a [`Bottleneck`] adapter `A(x) = scaling * (f(x H_D + d) H_U + u)`. Each H is `Σᵢ Aᵢ ⊗ Wᵢ` over n terms, with A `(n, n, n)`, the
/// rule that all layers share, and W `(n, inputs / n, outputs / n)`, products of rank r (equation 6; `methods/modeling.py`, `PHMLayer`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compacter {
    /// Where adapters stand: Houlsby's places are Compacter, Pfeiffer's Compacter++.
    pub adapter_style: AdapterStyle,
    /// The bottleneck is the hidden size divided by this, rounded down.
    pub reduction_factor: usize,
    /// The activation f.
    pub non_linearity: Activation,
    /// What an adapter's output is multiplied by.
    pub scaling: f64,
    /// Dropout on an adapter's output.
    pub dropout: f64,
    /// n. It divides the hidden size and the bottleneck.
    pub phm_dim: usize,
    /// r, where W is a product.
    pub phm_rank: usize,
    /// Whether W is a product.
    #[serde(rename = "factorized_phm_W")]
    pub factorized_phm_w: bool,
    /// Whether all layers share W, of H_D and of H_U.
    #[serde(rename = "shared_W_phm")]
    pub shared_w_phm: bool,
    /// Whether A is a product, of rank 1.
    pub factorized_phm_rule: bool,
    /// Whether all layers share A.
    pub shared_phm_rule: bool,
    /// Whether there are d and u.
    pub phm_bias: bool,
    /// How A starts.
    pub phm_c_init: PhmCInit,
    /// The standard deviation of a normal start of a shared A.
    pub phm_init_range: f64,
}

/// How Compacter's rule starts (AdapterHub's `phm_c_init`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhmCInit {
    /// Normal: with the standard deviation `phm_init_range`, or 0.01 where each layer has a rule of its own.
    Normal,
    /// Uniform in ±1, or in ±0.01 where each layer has a rule of its own.
    Uniform,
}

impl Default for Compacter {
    fn default() -> Self {
        Self {
            adapter_style: AdapterStyle::Houlsby,
            reduction_factor: 32,
            non_linearity: Activation::Gelu,
            scaling: 1.0,
            dropout: 0.0,
            phm_dim: 4,
            phm_rank: 1,
            factorized_phm_w: true,
            shared_w_phm: false,
            factorized_phm_rule: false,
            shared_phm_rule: true,
            phm_bias: true,
            phm_c_init: PhmCInit::Normal,
            phm_init_range: 1e-4,
        }
    }
}

impl Compacter {
    /// The adapter around the two matrices.
    fn bottleneck(&self) -> Bottleneck {
        let &Self { adapter_style, reduction_factor, non_linearity, scaling, dropout, .. } = self;
        Bottleneck { reduction_factor, non_linearity, scaling, dropout, ..Bottleneck::new(adapter_style) }
    }
}

impl Tuner for Compacter {
    fn is_in_peft(&self) -> bool {
        false
    }

    fn sublayer(
        &self,
        builder: &mut Builder,
        sublayer: Sublayer,
        linear: &str,
        hidden: usize,
    ) -> Result<Option<Arc<dyn SublayerAdapter>>> {
        let (bottleneck, module) = (self.bottleneck(), module_of(linear));
        let (n, size) = (self.phm_dim, bottleneck.size(hidden));
        if !bottleneck.stands_at(sublayer) {
            return Ok(None);
        }
        if !hidden.is_multiple_of(n) || !size.is_multiple_of(n) {
            let expected = "a divisor of the hidden size and of the bottleneck, which follows from reduction_factor";
            return Err(Error::Adapter { method: "Compacter", field: "phm_dim", found: n.to_string(), expected });
        }
        let down = PhmLayer::new(builder, self, module, "down", [hidden, size])?;
        let up = PhmLayer::new(builder, self, module, "up", [size, hidden])?;
        Ok(Some(Arc::new(BottleneckAdapter::new(builder, &bottleneck, hidden, [down, up])?)))
    }
}

impl TunerConfig for Compacter {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.bottleneck().check()?;
        let range = self.phm_init_range;
        let rules = [
            (self.phm_dim > 0, "phm_dim", self.phm_dim.to_string(), "at least 1"),
            (self.phm_rank > 0, "phm_rank", self.phm_rank.to_string(), "at least 1"),
            (range > 0.0 && range.is_finite(), "phm_init_range", range.to_string(), "a finite number above 0"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, field, found, expected)) => Err(Error::Adapter { method: "Compacter", field, found, expected }),
            None => Ok(Arc::new(self.clone())),
        }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let Self { reduction_factor, phm_dim, phm_rank, .. } = *self;
        vec![("reduction_factor", reduction_factor), ("phm_dim", phm_dim), ("phm_rank", phm_rank)]
    }

    /// That of the paper's code.
    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        3e-3
    }

    fn computed_by(&self) -> Vec<(&'static str, String)> {
        self.bottleneck().computed_by()
    }
}

impl ConfigFile for Compacter {
    const PEFT_TYPE: &'static str = "COMPACTER";
    const TENSORS: &'static [&'static str] = &[".adapter_"];

    const OPTIONS: &'static [&'static [MethodOption]] = &[&[
        option("adapter-style", "adapter_style", OptionKind::Value, "houlsby, pfeiffer or parallel [default: houlsby]"),
        option("reduction-factor", "reduction_factor", OptionKind::Value, "Hidden size over bottleneck [default: 32]"),
        option("non-linearity", "non_linearity", OptionKind::Value, "The activation [default: gelu]"),
        option("adapter-scaling", "scaling", OptionKind::Value, "What the output is multiplied by [default: 1]"),
        option("adapter-dropout", "dropout", OptionKind::Value, "Dropout on the output [default: 0]"),
        option("phm-dim", "phm_dim", OptionKind::Value, "Kronecker products in each sum [default: 4]"),
        option("phm-rank", "phm_rank", OptionKind::Value, "The rank of their right factors [default: 1]"),
        option("factorized-phm-w", "factorized_phm_W", OptionKind::Value, "Right factors of that rank [default: true]"),
        option("shared-w-phm", "shared_W_phm", OptionKind::Switch, "Share the right factors among all layers"),
        option("factorized-phm-rule", "factorized_phm_rule", OptionKind::Switch, "Left factors of rank 1"),
        option("shared-phm-rule", "shared_phm_rule", OptionKind::Value, "Share the left factors [default: true]"),
        option("phm-bias", "phm_bias", OptionKind::Value, "Biases besides [default: true]"),
        option("phm-c-init", "phm_c_init", OptionKind::Value, "Their start: normal, uniform [default: normal]"),
        option("phm-init-range", "phm_init_range", OptionKind::Value, "Its deviation, where shared [default: 1e-4]"),
    ]];

    /// AdapterHub draws W from Glorot's normal distribution whatever `hypercomplex_nonlinearity` says (`methods/modeling.py`, `init_W`).
    fn peft_defaults() -> Value {
        json!({ "learn_phm": true, "hypercomplex_nonlinearity": "glorot-uniform" })
    }

    /// Fails where A is frozen: files hold what is trained.
    fn prepare(fields: &mut Fields) -> std::result::Result<(), ConfigError> {
        match fields.get("learn_phm").filter(|learns| **learns == false) {
            Some(value) => Err(ConfigError::NotSupported { field: "learn_phm".into(), value: value.clone() }),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Compacter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let places = match self.adapter_style {
            AdapterStyle::Houlsby => "Compacter",
            AdapterStyle::Pfeiffer => "Compacter++",
            AdapterStyle::Parallel => "Parallel Compacter",
        };
        write!(f, "{places} n={} /{}", self.phm_dim, self.reduction_factor)
    }
}
