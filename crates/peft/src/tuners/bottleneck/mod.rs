//! Bottleneck adapters: small networks within an encoder's layers.

mod adapter;

use std::fmt;
use std::sync::Arc;

use ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::TunerConfig;
use super::config_file::{ConfigFile, Fields};
use super::options::{MethodOption, OptionKind, option};
use crate::builder::{Builder, Tuner};
use crate::error::{ConfigError, Error, Result};
use crate::layers::{Sublayer, SublayerAdapter};

use adapter::Dense;
pub(super) use adapter::{BottleneckAdapter, Projection, module_of};

/// Bottleneck adapters in the words of AdapterHub's `BnConfig` (the Python package `adapters` 1.3,
/// `configuration/adapter_config.py`), with the defaults that it has for each style.
///
/// An adapter is `A(x) = scaling * (f(x Dᵀ + d) Uᵀ + u)` with D `(bottleneck, hidden)`, d `(bottleneck)`, U
/// `(hidden, bottleneck)` and u `(hidden)` trained. Let x be what goes into attention or a feed-forward network, h what comes
/// out, r the residual and LN the layer norm of their sum. Then `LN(r + h)` becomes
///
/// | style | | where | AdapterHub |
/// | --- | --- | --- | --- |
/// | Houlsby | `LN(r + h + A(h))` | attention and feed-forward network | `DoubleSeqBnConfig` |
/// | Pfeiffer | `LN(r + h + A(LN(r + h)))` | feed-forward network | `SeqBnConfig` |
/// | parallel | `LN(r + h + A(x))` | feed-forward network | `ParBnConfig` |
///
/// Where norms come first, as in ModernBERT, no norm follows the sum. Each formula is then the one without LN, `r + h + A(r + h)`
/// for Pfeiffer, as AdapterHub has it of such models; the x of a parallel adapter is the network's own input, which is normed, as
/// He et al. 2021 have it, where AdapterHub takes r.
///
/// An adapter has `2 * hidden * bottleneck + bottleneck + hidden` numbers; there is one in each layer, or two in Houlsby's style.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Bottleneck {
    /// Where adapters stand, and what they see.
    pub adapter_style: AdapterStyle,
    /// The bottleneck is the hidden size divided by this, rounded down, and at least 1.
    pub reduction_factor: usize,
    /// The bottleneck itself, whatever the reduction factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck_size: Option<usize>,
    /// The activation f.
    pub non_linearity: Activation,
    /// What an adapter's output is multiplied by.
    pub scaling: f64,
    /// Dropout on an adapter's output.
    pub dropout: f64,
    /// How D and U start.
    pub init_weights: InitWeights,
    /// Train every layer norm of the encoder too, as Houlsby et al. 2019 do (section 2.1); AdapterHub leaves them frozen.
    pub train_layer_norms: bool,
}

/// Where bottleneck adapters stand. The formulas are those of [`Bottleneck`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterStyle {
    /// Behind attention and behind the feed-forward network, before the sum with the residual (Houlsby et al. 2019, figure 2).
    Houlsby,
    /// Behind the feed-forward network only, on the normed sum (Pfeiffer et al. 2021, "AdapterFusion").
    #[default]
    Pfeiffer,
    /// Beside the feed-forward network (He et al. 2021, "Towards a unified view", "scaled parallel adapter").
    Parallel,
}

/// How a bottleneck adapter's D and U start; d and u start at zero (AdapterHub's `init_weights`, `methods/modeling.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitWeights {
    /// Both normal with standard deviation 0.02: the adapter changes the model by little.
    Bert,
    /// D uniform in `±1 / sqrt(hidden)` (Kaiming, a = sqrt(5)), U zero: the adapter changes nothing at its start.
    MamAdapter,
}

/// [`Bottleneck`] in JSON: what is not there has the style's default.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    adapter_style: AdapterStyle,
    reduction_factor: Option<usize>,
    bottleneck_size: Option<usize>,
    non_linearity: Option<Activation>,
    scaling: Option<f64>,
    dropout: Option<f64>,
    init_weights: Option<InitWeights>,
    train_layer_norms: Option<bool>,
}

impl From<Written> for Bottleneck {
    fn from(written: Written) -> Self {
        let default = Self::new(written.adapter_style);
        Self {
            adapter_style: written.adapter_style,
            reduction_factor: written.reduction_factor.unwrap_or(default.reduction_factor),
            bottleneck_size: written.bottleneck_size,
            non_linearity: written.non_linearity.unwrap_or(default.non_linearity),
            scaling: written.scaling.unwrap_or(default.scaling),
            dropout: written.dropout.unwrap_or(default.dropout),
            init_weights: written.init_weights.unwrap_or(default.init_weights),
            train_layer_norms: written.train_layer_norms.unwrap_or(default.train_layer_norms),
        }
    }
}

impl Default for Bottleneck {
    /// Pfeiffer's.
    fn default() -> Self {
        Self::new(AdapterStyle::default())
    }
}

impl Bottleneck {
    /// AdapterHub's defaults for a style.
    pub fn new(adapter_style: AdapterStyle) -> Self {
        let sequential = Self {
            adapter_style,
            reduction_factor: 16,
            bottleneck_size: None,
            non_linearity: Activation::Relu,
            scaling: 1.0,
            dropout: 0.0,
            init_weights: InitWeights::Bert,
            train_layer_norms: false,
        };
        match adapter_style {
            AdapterStyle::Houlsby => Self { non_linearity: Activation::Swish, ..sequential },
            AdapterStyle::Pfeiffer => sequential,
            AdapterStyle::Parallel => {
                Self { reduction_factor: 2, scaling: 4.0, init_weights: InitWeights::MamAdapter, ..sequential }
            }
        }
    }

    /// Numbers between D and U in an encoder of that width.
    pub fn size(&self, hidden: usize) -> usize {
        self.bottleneck_size.unwrap_or_else(|| (hidden / self.reduction_factor.max(1)).max(1))
    }

    /// Whether a sublayer of that kind has an adapter.
    pub(super) fn stands_at(&self, sublayer: Sublayer) -> bool {
        sublayer == Sublayer::FeedForward || self.adapter_style == AdapterStyle::Houlsby
    }

    pub(super) fn check(&self) -> Result<()> {
        let wrong = |field, found: String, expected| {
            Err(Error::Adapter { method: "bottleneck adapter", field, found, expected })
        };
        match self {
            Self { reduction_factor: 0, .. } => wrong("reduction_factor", "0".into(), "at least 1"),
            Self { bottleneck_size: Some(0), .. } => wrong("bottleneck_size", "0".into(), "at least 1"),
            Self { scaling, .. } if !scaling.is_finite() || *scaling == 0.0 => {
                wrong("scaling", scaling.to_string(), "a finite number other than 0")
            }
            Self { dropout, .. } if !(0.0..1.0).contains(dropout) => {
                wrong("dropout", dropout.to_string(), "at least 0 and below 1")
            }
            _ => Ok(()),
        }
    }
}

impl Tuner for Bottleneck {
    fn trains_layer_norms(&self) -> bool {
        self.train_layer_norms
    }

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
        if !self.stands_at(sublayer) {
            return Ok(None);
        }
        let layers = Dense::pair(builder, self, linear, hidden)?;
        Ok(Some(Arc::new(BottleneckAdapter::new(builder, self, hidden, layers)?)))
    }
}

impl TunerConfig for Bottleneck {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        Ok(Arc::new(self.clone()))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        match self.bottleneck_size {
            Some(size) => vec![("bottleneck_size", size)],
            None => vec![("reduction_factor", self.reduction_factor)],
        }
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        1e-3
    }

    fn computed_by(&self) -> Vec<(&'static str, String)> {
        vec![
            ("adapter_style", self.adapter_style.to_string()),
            ("non_linearity", format!("{:?}", self.non_linearity)),
            ("scaling", self.scaling.to_string()),
            ("train_layer_norms", self.train_layer_norms.to_string()),
        ]
    }
}

impl ConfigFile for Bottleneck {
    const PEFT_TYPE: &'static str = "BOTTLENECK";
    const TENSORS: &'static [&'static str] = &[".adapter_"];

    const OPTIONS: &'static [&'static [MethodOption]] = &[&[
        option(
            "adapter-style",
            "adapter_style",
            OptionKind::Value,
            "houlsby (after attention and after the feed-forward network), pfeiffer (after the feed-forward network) or parallel (beside it) [default: pfeiffer]",
        ),
        option(
            "reduction-factor",
            "reduction_factor",
            OptionKind::Value,
            "The hidden size over the bottleneck's [default: 16; parallel: 2]",
        ),
        option(
            "bottleneck-size",
            "bottleneck_size",
            OptionKind::Value,
            "The bottleneck's size, instead of a reduction factor",
        ),
        option(
            "non-linearity",
            "non_linearity",
            OptionKind::Value,
            "relu, gelu, gelu_new, swish or tanh [default: relu; houlsby: swish]",
        ),
        option(
            "adapter-scaling",
            "scaling",
            OptionKind::Value,
            "What the adapter's output is multiplied by [default: 1; parallel: 4]",
        ),
        option("adapter-dropout", "dropout", OptionKind::Value, "Dropout on the adapter's output [default: 0]"),
        option(
            "init-weights",
            "init_weights",
            OptionKind::Value,
            "How the adapter starts: bert or mam_adapter [default: bert; parallel: mam_adapter]",
        ),
        option("train-layer-norms", "train_layer_norms", OptionKind::Switch, "Train the encoder's layer norms besides"),
    ]];

    fn complete(given: &mut Fields) -> std::result::Result<(), ConfigError> {
        match (given.get("bottleneck_size"), given.contains_key("reduction_factor")) {
            (Some(size), true) => {
                let advice = "it goes in the place of a reduction_factor, which is given too";
                Err(ConfigError::Unused { field: "bottleneck_size", value: size.clone(), advice })
            }
            _ => Ok(()),
        }
    }

    fn peft_defaults() -> Value {
        json!({ "bottleneck_size": null })
    }
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} adapter", self.adapter_style)?;
        match self.bottleneck_size {
            Some(size) => write!(f, " size={size}")?,
            None => write!(f, " /{}", self.reduction_factor)?,
        }
        if self.train_layer_norms { write!(f, ", LN") } else { Ok(()) }
    }
}

impl fmt::Display for AdapterStyle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Houlsby => "Houlsby",
            Self::Pfeiffer => "Pfeiffer",
            Self::Parallel => "Parallel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_does_not_say_has_the_default_of_its_style() {
        let read = |json: &str| serde_json::from_str::<Bottleneck>(json).unwrap();
        assert_eq!(read("{}"), Bottleneck::new(AdapterStyle::Pfeiffer));
        assert_eq!(read(r#"{"adapter_style": "houlsby"}"#), Bottleneck::new(AdapterStyle::Houlsby));
        let parallel = Bottleneck { reduction_factor: 4, ..Bottleneck::new(AdapterStyle::Parallel) };
        assert_eq!(read(r#"{"adapter_style": "parallel", "reduction_factor": 4}"#), parallel);
        assert_eq!(read(r#"{"non_linearity": "silu"}"#).non_linearity, Activation::Swish);
        let json = serde_json::to_string(&parallel).unwrap();
        assert!(json.contains(r#""non_linearity":"relu","scaling":4.0"#), "{json}");
        assert_eq!(read(&json), parallel);
    }

    #[test]
    fn a_bottleneck_is_at_least_one_wide_and_its_own_size_comes_first() {
        let pfeiffer = Bottleneck::default();
        assert_eq!([768, 100, 8].map(|hidden| pfeiffer.size(hidden)), [48, 6, 1]);
        assert_eq!(Bottleneck { bottleneck_size: Some(64), ..pfeiffer }.size(768), 64);
    }

    #[test]
    fn a_number_that_makes_no_adapter_is_an_error_that_names_its_field() {
        let pfeiffer = Bottleneck::default();
        for (bottleneck, part) in [
            (Bottleneck { reduction_factor: 0, ..pfeiffer.clone() }, "reduction_factor is 0, expected at least 1"),
            (Bottleneck { bottleneck_size: Some(0), ..pfeiffer.clone() }, "bottleneck_size is 0"),
            (Bottleneck { scaling: 0.0, ..pfeiffer.clone() }, "scaling is 0"),
            (Bottleneck { scaling: f64::INFINITY, ..pfeiffer.clone() }, "scaling is inf"),
            (Bottleneck { dropout: 1.0, ..pfeiffer.clone() }, "dropout is 1"),
        ] {
            let error = bottleneck.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(pfeiffer.check().is_ok());
    }
}
