//! Which layers get an AdaLoRA branch, the regularization of its vectors, and what its files say.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use super::adapter::{NAMES, SvdBranch};
use super::allocator::RankAllocator;
use super::config::AdaLora;
use crate::architectures::Architecture;
use crate::builder::Tuner;
use crate::error::{ConfigError, Error, Result};
use crate::parameters::{Modules, Parameters};
use crate::tuners::config::{AfterStep, Bias, TunerConfig};
use crate::tuners::config_file::{ConfigFile, Fields};
use crate::tuners::lora::{NOT_SUPPORTED, WITHOUT_EFFECT};
use crate::tuners::options::{BIAS, EXCLUDED, LAYERS, MODULES_TO_SAVE, MethodOption, OptionKind, TARGETS, option};
use crate::tuners::selected_layers::SelectedLayers;

impl TunerConfig for AdaLora {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        let (adalora, rank_pattern) = (self.clone(), self.rank_pattern.clone());
        let layers = SelectedLayers::new("AdaLoRA".into(), &self.fields(), self.bias, move |builder, path, weight| {
            let left = adalora.rank_pattern.get(&format!("{path}.{}", NAMES.e));
            let branch = SvdBranch {
                r: left.map_or(adalora.init_r, |left| left.iter().filter(|kept| **kept).count()),
                scaling: adalora.scaling(),
                dropout: adalora.lora_dropout,
                begins_as_nothing: adalora.init_lora_weights,
            };
            Ok((branch.build(builder, path, &weight)?, weight))
        })?;
        Ok(Arc::new(layers.checking(move |modules| check_pattern(&rank_pattern, modules))))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("init_r", self.init_r)]
    }

    fn set_default_layers(&mut self, architecture: Architecture) {
        self.target_modules = architecture.default_targets();
    }

    /// The singular values, which are trained first, start at zero between matrices of small numbers.
    fn learning_rate(&self, _hidden_size: usize) -> f64 {
        1e-2
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn set_total_steps(&mut self, steps: usize) {
        self.total_step.get_or_insert(steps);
    }

    fn needs_total_steps(&self) -> bool {
        self.total_step.is_none()
    }

    /// `orth_reg_weight` times the mean over the branches' matrices of how far they are from having orthonormal rows (A) or columns
    /// (B), `‖A Aᵀ - I‖` and `‖Bᵀ B - I‖` (Zhang et al. 2023, equation 4; PEFT `tuners/adalora/model.py`, `forward`).
    fn regularization(&self, parameters: &Parameters) -> Result<Option<Tensor>> {
        let of = |name: &str| match name.rsplit('.').next() {
            Some(last) if last == NAMES.a => Some(ops::Orthonormal::Rows),
            Some(last) if last == NAMES.b => Some(ops::Orthonormal::Columns),
            _ => None,
        };
        let matrices: Vec<_> =
            parameters.trainable().filter_map(|(name, variable)| Some((variable, of(name)?))).collect();
        // Branches that have nothing left count in PEFT's mean.
        let spent = self.rank_pattern.values().filter(|left| !left.contains(&true)).count();
        let scale = self.orth_reg_weight / (matrices.len() + 2 * spent) as f64;
        let mut sum: Option<Tensor> = None;
        for (matrix, of) in matrices {
            let term = ops::orthogonality(matrix, of, scale)?;
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &term)?,
                None => term,
            });
        }
        Ok(sum)
    }

    fn after_step(&self, parameters: &Parameters) -> Result<Option<Box<dyn AfterStep>>> {
        Ok(RankAllocator::new(self, parameters)?.map(|allocator| Box::new(allocator) as _))
    }

    fn computed_by(&self) -> Vec<(&'static str, String)> {
        vec![
            ("lora_alpha", self.lora_alpha.to_string()),
            ("init_r", self.init_r.to_string()),
            ("rank_pattern", format!("{:?}", self.rank_pattern)),
        ]
    }

    /// Of the branches, which values are left, by the name of E: those that are not zero. Nothing where none has been masked, or none
    /// has been trained.
    fn note_training(&mut self, parameters: &Parameters, _tuner: &dyn Tuner) -> Result<()> {
        if !self.rank_pattern.is_empty() {
            return Ok(());
        }
        let mut pattern = BTreeMap::new();
        for (name, variable) in parameters.trainable().filter(|(name, _)| name.ends_with(NAMES.e)) {
            let values: Vec<f64> = variable.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
            pattern.insert(name.to_string(), values.into_iter().map(|value| value != 0.0).collect::<Vec<_>>());
        }
        let (any, all) = (pattern.values().flatten().any(|left| *left), pattern.values().flatten().all(|left| *left));
        if any && !all {
            self.rank_pattern = pattern;
        }
        Ok(())
    }

    /// Takes the values that are not left, with their vectors (PEFT `tuners/adalora/model.py`, `resize_state_dict_by_rank_pattern`).
    fn leave_out(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
        for (name, left) in &self.rank_pattern {
            let indices: Vec<u32> = (0..).zip(left).filter(|(_, left)| **left).map(|(index, _)| index).collect();
            let count = indices.len();
            for (part, dimension) in [(NAMES.a, 0), (NAMES.b, 1), (NAMES.e, 0)] {
                let tensor = tensors.get_mut(&name.replace(NAMES.e, part));
                let Some(tensor) = tensor.filter(|tensor| tensor.dims()[dimension] != count) else { continue };
                *tensor = if count == 0 {
                    let mut shape = tensor.dims().to_vec();
                    shape[dimension] = 0;
                    Tensor::zeros(shape, tensor.dtype(), tensor.device())?
                } else {
                    let indices = Tensor::from_slice(&indices, count, tensor.device())?;
                    tensor.index_select(&indices, dimension)?
                };
            }
        }
        Ok(())
    }
}

/// Fails where a name of `rank_pattern` names no branch.
fn check_pattern(rank_pattern: &BTreeMap<String, Vec<bool>>, modules: &Modules) -> Result<()> {
    let names_branch = |key: &String| {
        key.strip_suffix(NAMES.e).is_some_and(|path| modules.linear_layers.contains(path.trim_end_matches('.')))
    };
    match rank_pattern.keys().find(|key| !names_branch(key)) {
        Some(key) => Err(Error::Adapter {
            method: "AdaLoRA",
            field: "rank_pattern",
            found: key.clone(),
            expected: "names of branches of this model, such as bert.encoder.layer.0.attention.self.query.lora_E",
        }),
        None => Ok(()),
    }
}

impl ConfigFile for AdaLora {
    const PEFT_TYPE: &'static str = "ADALORA";
    const REQUIRED: Option<(&'static str, &'static str)> =
        Some(("target_modules", "name the layers that have a branch"));
    const TENSORS: &'static [&'static str] = &[".lora_"];
    /// Of these of LoRA's fields PEFT makes nothing here.
    const WITHOUT_EFFECT: &'static [&'static [&'static str]] =
        &[WITHOUT_EFFECT, &["r", "alpha_pattern", "use_rslora", "eva_config"]];
    const NOT_SUPPORTED: &'static [&'static [&'static str]] = &[NOT_SUPPORTED, &["use_dora"]];

    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option("init-r", "init_r", OptionKind::Value, "The rank of each branch at first [default: 12]"),
            option("target-r", "target_r", OptionKind::Value, "The mean rank of the branches at last [default: 8]"),
            option("tinit", "tinit", OptionKind::Value, "Steps before the first singular value is masked [default: 0]"),
            option(
                "tfinal",
                "tfinal",
                OptionKind::Value,
                "Steps at the end, in which the same values stay masked [default: 0]",
            ),
            option("delta-t", "deltaT", OptionKind::Value, "Steps from one masking to the next [default: 1]"),
            option(
                "beta1",
                "beta1",
                OptionKind::Value,
                "How much of its mean an importance keeps with each step [default: 0.85]",
            ),
            option("beta2", "beta2", OptionKind::Value, "The same for how uncertain an importance is [default: 0.85]"),
            option(
                "orth-reg-weight",
                "orth_reg_weight",
                OptionKind::Value,
                "The weight of the term that keeps the branches' vectors near orthonormal [default: 0.5]",
            ),
            option(
                "total-step",
                "total_step",
                OptionKind::Value,
                "The steps over which the budget is spent [default: those of the run]",
            ),
            option(
                "lora-alpha",
                "lora_alpha",
                OptionKind::Value,
                "The branch is multiplied by lora_alpha / init_r [default: 8]",
            ),
            option("lora-dropout", "lora_dropout", OptionKind::Value, "Dropout on the branch's input [default: 0]"),
            option(
                "init-lora-weights",
                "init_lora_weights",
                OptionKind::Value,
                "Whether the branch begins as nothing: true or false [default: true]",
            ),
        ],
        TARGETS,
        EXCLUDED,
        LAYERS,
        BIAS,
        MODULES_TO_SAVE,
    ];

    fn peft_defaults() -> Value {
        json!({
            "r": 8,
            "total_step": null,
            "exclude_modules": null,
            "layers_to_transform": null,
            "layers_pattern": null,
            "bias": "none",
            "rank_pattern": null,
            "fan_in_fan_out": false,
            "lora_bias": false,
            "use_qalora": false,
            "use_dora": false,
            "use_rslora": false,
        })
    }

    /// LoRA's other ways to start are AdaLoRA's one.
    fn prepare(fields: &mut Fields) -> std::result::Result<(), ConfigError> {
        let begins_as_nothing = !matches!(fields.get("init_lora_weights"), Some(Value::Bool(false)));
        fields.insert("init_lora_weights".into(), json!(begins_as_nothing));
        Ok(())
    }
}

impl fmt::Display for AdaLora {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "AdaLoRA r={} to {}", self.init_r, self.target_r)
    }
}
