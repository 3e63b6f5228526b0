//! OFT: the input of each layer is rotated, block by block.

mod adapter;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::{Bias, TunerConfig};
use super::config_file::{ConfigFile, Fields, PromptSizes, one_or_many, some_or_many};
use super::options::{BIAS, EXCLUDED, LAYERS, MODULES_TO_SAVE, MethodOption, OptionKind, TARGETS, option};
use super::selected_layers::SelectedLayers;
use super::selection::{fields, is_default};
use crate::architectures::Architecture;
use crate::builder::Tuner;
use crate::error::{ConfigError, Error, Result};
use crate::targets::Targets;

use adapter::Rotation;

/// Terms of the series: each costs a product of matrices, and beyond some tens they are below rounding wherever the series converges.
const MOST_TERMS: usize = 100;

/// OFT (Qiu et al. 2023, "Controlling text-to-image diffusion by orthogonal finetuning", section 3), in the words of PEFT's
/// `OFTConfig` (`tuners/oft/config.py`), with its defaults.
///
/// A layer `x Wᵀ + b` becomes `(x R) Wᵀ + b` with R block-diagonal. Of a skew-symmetric Q, whose numbers above the diagonal are
/// trained, a block of R is [`ops::cayley`], orthogonal, or with `use_cayley_neumann` [`ops::cayley_neumann`] (`tuners/oft/layer.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Oft {
    /// Blocks of each layer, or 0. Where it does not divide the layer's inputs, the nearest number that does takes its place.
    pub r: usize,
    /// Inputs that a block rotates, or 0 where `r` is given; likewise.
    pub oft_block_size: usize,
    /// The linear layers whose input is rotated.
    pub target_modules: Targets,
    /// Of these, the ones that are left as they are after all.
    pub exclude_modules: Option<Targets>,
    /// The biases that are trained besides.
    pub bias: Bias,
    /// `true`: Q zero, so that nothing is rotated. `false`: normal with standard deviation 0.1, which serves tests.
    pub init_weights: bool,
    /// COFT: the norm of a block's Q stays within `eps / sqrt(blocks)`.
    pub coft: bool,
    /// How far COFT may rotate.
    pub eps: f64,
    /// Whether the blocks of a layer are one and the same.
    pub block_share: bool,
    /// Whether the transform is a series.
    pub use_cayley_neumann: bool,
    /// Terms of that series, the highest power and one; but 3 are as many as 4.
    pub num_cayley_neumann_terms: usize,
    /// Only layers of these numbers are rotated; not with a regular expression as target.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "some_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names before that number, where the first number is not the layer's: `layer`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "one_or_many")]
    pub layers_pattern: Vec<String>,
    /// Modules that are trained whole, by the end of their path, besides the head. They are not rotated.
    pub modules_to_save: Vec<String>,
}

impl Default for Oft {
    /// PEFT's defaults for BERT: blocks of 32 on query and value.
    fn default() -> Self {
        Self {
            r: 0,
            oft_block_size: 32,
            target_modules: Targets::suffixes(["query", "value"]),
            exclude_modules: None,
            bias: Bias::None,
            init_weights: true,
            coft: false,
            eps: 6e-5,
            block_share: false,
            use_cayley_neumann: true,
            num_cayley_neumann_terms: 5,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
        }
    }
}

impl Oft {
    /// How many of a layer's inputs a block rotates (PEFT `tuners/oft/layer.py`, `adjust_oft_parameters`).
    fn block_size_of(&self, inputs: usize) -> usize {
        let divisors = || (1..=inputs).filter(|divisor| inputs.is_multiple_of(*divisor));
        let nearest = |asked: usize| divisors().min_by_key(|divisor| divisor.abs_diff(asked)).unwrap_or(1);
        if self.r > 0 { inputs / nearest(self.r) } else { nearest(self.oft_block_size) }
    }

    fn check(&self) -> Result<()> {
        let Self { r, oft_block_size: size, use_cayley_neumann, num_cayley_neumann_terms: terms, eps, .. } = *self;
        let rules = [
            ((r > 0) != (size > 0), "oft_block_size", size.to_string(), "0 where r is given, else at least 2"),
            (
                !use_cayley_neumann || (2..=MOST_TERMS).contains(&terms),
                "num_cayley_neumann_terms",
                terms.to_string(),
                "2 to 100",
            ),
            (!self.coft || (eps > 0.0 && eps.is_finite()), "eps", eps.to_string(), "a finite number above 0"),
        ];
        let wrong = |(_, field, found, expected)| Err(Error::Adapter { method: "OFT", field, found, expected });
        rules.into_iter().find(|(holds, ..)| !holds).map_or(Ok(()), wrong)
    }
}

impl TunerConfig for Oft {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        let oft = self.clone();
        Ok(Arc::new(SelectedLayers::new(
            "OFT".into(),
            &fields!(self, "OFT"),
            self.bias,
            move |builder, path, weight| Ok((Rotation::build(builder, path, weight.dims2()?.1, &oft)?, weight)),
        )?))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("r", self.r), ("oft_block_size", self.oft_block_size)]
    }

    fn set_default_layers(&mut self, architecture: Architecture) {
        self.target_modules = architecture.default_targets();
    }

    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        1e-3
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn computed_by(&self) -> Vec<(&'static str, String)> {
        let terms = self.use_cayley_neumann.then_some(self.num_cayley_neumann_terms);
        let eps = self.coft.then_some(self.eps);
        vec![("num_cayley_neumann_terms", format!("{terms:?}")), ("eps", format!("{eps:?}"))]
    }
}

impl ConfigFile for Oft {
    const PEFT_TYPE: &'static str = "OFT";
    const REQUIRED: Option<(&'static str, &'static str)> = Some(("target_modules", "name layers that are rotated"));
    const TENSORS: &'static [&'static str] = &[".oft_R."];

    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option("r", "r", OptionKind::Value, "Blocks of each layer, instead of their size"),
            option("oft-block-size", "oft_block_size", OptionKind::Value, "Inputs that a block rotates [default: 32]"),
            option("coft", "coft", OptionKind::Switch, "Bound how far a block rotates"),
            option("eps", "eps", OptionKind::Value, "That bound, times the root of the blocks [default: 6e-5]"),
            option("block-share", "block_share", OptionKind::Switch, "One block for all of a layer's inputs"),
            option("use-cayley-neumann", "use_cayley_neumann", OptionKind::Value, "Use a series [default: true]"),
            option("num-cayley-neumann-terms", "num_cayley_neumann_terms", OptionKind::Value, "Its terms [default: 5]"),
            option("init-weights", "init_weights", OptionKind::Value, "Begin without a rotation [default: true]"),
        ],
        TARGETS,
        EXCLUDED,
        LAYERS,
        BIAS,
        MODULES_TO_SAVE,
    ];

    /// PEFT makes a layer for `module_dropout` and never calls that (`tuners/oft/layer.py`, `oft_dropout`).
    fn peft_defaults() -> Value {
        json!({ "fan_in_fan_out": false, "layers_to_transform": null, "layers_pattern": null, "module_dropout": 0.0 })
    }

    fn complete(given: &mut Fields) -> std::result::Result<(), ConfigError> {
        if given.get("r").is_some_and(|r| *r != 0) {
            given.entry("oft_block_size").or_insert_with(|| json!(0));
        }
        Ok(())
    }

    fn finish(&self, fields: &mut Fields, _sizes: Option<PromptSizes>) {
        if self.bias == Bias::LoraOnly {
            fields.insert("bias".into(), json!("oft_only"));
        }
    }
}

impl fmt::Display for Oft {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.r > 0 { write!(f, "OFT r={}", self.r) } else { write!(f, "OFT block={}", self.oft_block_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PEFT 0.21.2's `adjust_oft_parameters` (`tuners/oft/layer.py`) gives.
    #[test]
    fn a_block_size_that_divides_no_layer_is_the_one_that_peft_adjusts_it_to() {
        for (inputs, asked, expected) in [
            (768, 32, 32),
            (768, 7, 6),
            (768, 5, 4),
            (32, 24, 16),
            (32, 40, 32),
            (312, 32, 26),
            (30, 4, 3),
            (7, 4, 1),
            (100, 15, 10),
            (96, 40, 32),
        ] {
            let oft = Oft { oft_block_size: asked, ..Oft::default() };
            assert_eq!(oft.block_size_of(inputs), expected, "{inputs} by {asked}");
            let oft = Oft { r: asked, oft_block_size: 0, ..oft };
            assert_eq!(oft.block_size_of(inputs), inputs / expected, "{inputs} in {asked}");
        }
    }

    #[test]
    fn a_value_that_makes_no_rotation_is_an_error_that_names_its_field() {
        let oft = Oft::default();
        for (oft, part) in [
            (Oft { r: 4, ..oft.clone() }, "oft_block_size is 32, expected 0 where r is given"),
            (Oft { oft_block_size: 0, ..oft.clone() }, "oft_block_size is 0"),
            (Oft { num_cayley_neumann_terms: 1, ..oft.clone() }, "num_cayley_neumann_terms is 1"),
            (Oft { coft: true, eps: 0.0, ..oft.clone() }, "eps is 0"),
            (Oft { coft: true, eps: f64::NAN, ..oft.clone() }, "eps is NaN"),
        ] {
            let error = oft.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(oft.check().is_ok());
        assert!(Oft { use_cayley_neumann: false, num_cayley_neumann_terms: 0, ..oft }.check().is_ok());
    }

    #[test]
    fn a_number_of_blocks_on_the_command_line_takes_the_place_of_their_size() {
        let mut given = Fields::from_iter([("r".to_string(), json!(4))]);
        assert!(Oft::complete(&mut given).is_ok());
        assert_eq!(Value::Object(given), json!({ "r": 4, "oft_block_size": 0 }));
    }
}
