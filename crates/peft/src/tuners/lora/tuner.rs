//! Which layers get a LoRA branch, of which rank and scaling, and what LoRA's files say.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::adapter::Branch;
use super::combine;
use super::config::{InitLoraWeights, Lora};
use super::eva::Eva;
use super::saved_modules;
use crate::architectures::Architecture;
use crate::builder::Tuner;
use crate::error::{ConfigError, Result};
use crate::targets::Targets;
use crate::tuners::combination::Combination;
use crate::tuners::config::{Bias, DataInitializer, LayerRank, Part, TunerConfig};
use crate::tuners::config_file::{ConfigFile, Fields, PromptSizes};
use crate::tuners::options::{
    BIAS, EXCLUDED, LAYERS, MODULES_TO_SAVE, MethodOption, OptionKind, PATTERNS, TARGETS, option,
};
use crate::tuners::patterns::Patterns;
use crate::tuners::selected_layers::SelectedLayers;

impl TunerConfig for Lora {
    fn tuner(&self) -> Result<Arc<dyn Tuner>> {
        self.check()?;
        let (lora, patterns) = (self.clone(), self.patterns()?);
        let tuner = SelectedLayers::new(self.to_string(), &self.fields(), self.bias, move |builder, path, weight| {
            let (r, scaling) = lora.rank_and_scaling(&patterns, path);
            let Lora { lora_dropout: dropout, init_lora_weights: initial, use_dora, .. } = lora;
            Branch { r, scaling, dropout, initial, use_dora }.build(builder, path, weight)
        })?;
        Ok(Arc::new(tuner))
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let highest = self.rank_pattern.values().max().map(|r| ("rank_pattern", *r));
        [("r", self.r)].into_iter().chain(highest).collect()
    }

    fn set_default_layers(&mut self, architecture: Architecture) {
        self.target_modules = architecture.default_targets();
    }

    fn learning_rate(&self, hidden_size: usize) -> f64 {
        if hidden_size >= 768 { 5e-4 } else { 1e-3 }
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn neutral_value(&self) -> Option<f64> {
        let leaves_the_weight = self.init_lora_weights.base_weight() == InitLoraWeights::Kaiming.base_weight();
        (leaves_the_weight && self.init_lora_weights != InitLoraWeights::Unset && !self.use_dora).then_some(0.0)
    }

    fn fold_into_saved(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
        saved_modules::fold(self, tensors)
    }

    fn data_initializer(&self) -> Option<Box<dyn DataInitializer>> {
        let is_eva = self.init_lora_weights == InitLoraWeights::Eva;
        is_eva.then(|| Box::new(Eva::new(self.eva_config.clone().unwrap_or_default())) as _)
    }

    /// PEFT's `_load_eva_state_dict` (`tuners/lora/eva.py`).
    fn set_ranks(&mut self, ranks: &[LayerRank]) -> Result<()> {
        let patterns = self.patterns()?;
        let adjusts = self.eva_config.clone().unwrap_or_default().adjust_scaling_factors;
        let mut lora = Self { rank_pattern: BTreeMap::new(), alpha_pattern: BTreeMap::new(), ..self.clone() };
        let mut paths = Vec::new();
        for LayerRank { path, asked, given } in ranks.iter().filter(|layer| layer.given > 0) {
            let mut alpha = patterns.alpha(path, self.lora_alpha);
            if adjusts {
                alpha *= *given as f64 / *asked as f64;
            }
            if *given != self.r {
                lora.rank_pattern.insert(path.clone(), *given);
            }
            if alpha != self.lora_alpha {
                lora.alpha_pattern.insert(path.clone(), alpha);
            }
            paths.push(path);
        }
        *self = lora.on(Targets::suffixes(paths));
        Ok(())
    }

    fn computed_by(&self) -> Vec<(&'static str, String)> {
        vec![
            ("lora_alpha", self.lora_alpha.to_string()),
            ("alpha_pattern", format!("{:?}", self.alpha_pattern)),
            ("rank_pattern", format!("{:?}", self.rank_pattern)),
            ("use_rslora", self.use_rslora.to_string()),
            ("use_dora", self.use_dora.to_string()),
            // Other initial values than these leave the base weight as it is.
            ("init_lora_weights", self.init_lora_weights.base_weight().to_string()),
        ]
    }

    fn combine(
        &mut self,
        parts: &[Part],
        combination: &Combination,
        modules_to_save: Vec<String>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let (lora, tensors) = combine::combine(parts, combination, modules_to_save)?;
        *self = lora;
        Ok(tensors)
    }
}

/// Fields of LoRA's files that change nothing for the linear layers of an encoder, or only their initial values, which are in the
/// tensors.
pub(in crate::tuners) const WITHOUT_EFFECT: &[&str] = &[
    "fan_in_fan_out",
    "megatron_config",
    "megatron_core",
    "runtime_config",
    "ensure_weight_tying",
    "qalora_group_size",
    "loftq_config",
    "corda_config",
];

/// Fields of LoRA's files that change what is computed, in ways that this crate does not do.
pub(in crate::tuners) const NOT_SUPPORTED: &[&str] = &[
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "lora_ga_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
    "use_bdlora",
];

impl ConfigFile for Lora {
    const PEFT_TYPE: &'static str = "LORA";
    const REQUIRED: Option<(&'static str, &'static str)> =
        Some(("target_modules", "name the layers that have a branch"));
    const TENSORS: &'static [&'static str] = &[".lora_"];
    const WITHOUT_EFFECT: &'static [&'static [&'static str]] = &[WITHOUT_EFFECT];
    const NOT_SUPPORTED: &'static [&'static [&'static str]] = &[NOT_SUPPORTED];

    const OPTIONS: &'static [&'static [MethodOption]] = &[
        &[
            option("r", "r", OptionKind::Value, "The rank of the branch [default: 8]"),
            option(
                "lora-alpha",
                "lora_alpha",
                OptionKind::Value,
                "The branch is multiplied by lora_alpha / r [default: 2 r]",
            ),
            option("lora-dropout", "lora_dropout", OptionKind::Value, "Dropout on the branch's input [default: 0]"),
            option("use-rslora", "use_rslora", OptionKind::Switch, "Multiply the branch by lora_alpha / sqrt(r)"),
            option(
                "use-dora",
                "use_dora",
                OptionKind::Switch,
                "Train the length of each row of the weight besides (DoRA)",
            ),
            option(
                "init-lora-weights",
                "init_lora_weights",
                OptionKind::Value,
                "How A and B start: true, false, gaussian, pissa, olora or eva [default: true]",
            ),
            option(
                "eva-rho",
                "eva_config.rho",
                OptionKind::Value,
                "With init_lora_weights eva: a layer's rank may grow to this multiple, while others' shrink [default: 2]",
            ),
            option(
                "eva-tau",
                "eva_config.tau",
                OptionKind::Value,
                "With init_lora_weights eva: the cosine between a component and what it was a batch before at which it has settled [default: 0.99]",
            ),
            option(
                "eva-whiten",
                "eva_config.whiten",
                OptionKind::Switch,
                "With init_lora_weights eva: divide each row of A by the root of its singular value",
            ),
            option(
                "eva-adjust-scaling-factors",
                "eva_config.adjust_scaling_factors",
                OptionKind::Value,
                "With init_lora_weights eva: let lora_alpha grow and shrink with a layer's rank [default: true]",
            ),
        ],
        PATTERNS,
        TARGETS,
        EXCLUDED,
        LAYERS,
        BIAS,
        MODULES_TO_SAVE,
    ];

    fn complete(given: &mut Fields) -> std::result::Result<(), ConfigError> {
        if let (Some(r), false) = (given.get("r").and_then(Value::as_u64), given.contains_key("lora_alpha")) {
            given.insert("lora_alpha".into(), json!(r.saturating_mul(2)));
        }
        let is_eva = given.get("init_lora_weights").is_some_and(|init| init == "eva");
        match given.get("eva_config") {
            None if is_eva => _ = given.insert("eva_config".into(), json!({})),
            Some(value) if !is_eva => {
                let advice = "they go with init_lora_weights eva";
                return Err(ConfigError::Unused { field: "eva_config", value: value.clone(), advice });
            }
            _ => {}
        }
        Ok(())
    }

    fn prepare(fields: &mut Fields) -> std::result::Result<(), ConfigError> {
        // A start that an adapter's own values have replaced, beside a base weight that it leaves as it is.
        let starts = ["orthogonal"];
        if fields.get("init_lora_weights").and_then(Value::as_str).is_some_and(|start| starts.contains(&start)) {
            fields.insert("init_lora_weights".into(), json!(true));
        }
        Ok(())
    }

    fn peft_defaults() -> Value {
        json!({
            "r": 8,
            "lora_alpha": 8,
            "exclude_modules": null,
            "layers_to_transform": null,
            "layers_pattern": null,
            "rank_pattern": {},
            "alpha_pattern": {},
            "bias": "none",
            "use_rslora": false,
            "use_dora": false,
            "init_lora_weights": true,
            "fan_in_fan_out": false,
            "lora_bias": false,
            "use_qalora": false,
        })
    }

    fn finish(&self, fields: &mut Fields, _sizes: Option<PromptSizes>) {
        fields.remove("eva_config");
        if self.init_lora_weights == InitLoraWeights::Eva {
            let mut eva = json!(self.eva_config.clone().unwrap_or_default());
            // PEFT's defaults, for labels of tokens, which sequence classifiers have not.
            eva["use_label_mask"] = json!(true);
            eva["label_mask_value"] = json!(-100);
            fields.insert("eva_config".into(), eva);
        }
    }
}

impl Lora {
    pub(super) fn patterns(&self) -> Result<Patterns> {
        Patterns::new(&self.rank_pattern, &self.alpha_pattern)
    }

    pub(super) fn rank_and_scaling(&self, patterns: &Patterns, module: &str) -> (usize, f64) {
        let r = patterns.rank(module, self.r);
        (r, self.scaling_of(r, patterns.alpha(module, self.lora_alpha)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;
    use crate::parameters::POOLER;
    use crate::tuners::selection::Selection;

    /// Which of these paths get a branch.
    fn adapted(lora: &Lora, paths: &[&str]) -> Vec<bool> {
        let selection = Selection::new(&lora.fields()).unwrap();
        paths.iter().map(|path| selection.adapts(path)).collect()
    }

    #[test]
    fn excluded_modules_get_no_branch() {
        let lora = Lora::default().on(Targets::AllLinear);
        let paths = ["bert.encoder.layer.0.output.dense", POOLER, "bert.encoder.layer.0.attention.self.key"];
        let exclude = |targets| Lora { exclude_modules: Some(targets), ..lora.clone() };
        assert_eq!(adapted(&lora, &paths), [true; 3]);
        assert_eq!(adapted(&exclude(Targets::suffixes(["pooler.dense", "key"])), &paths), [true, false, false]);
        assert_eq!(adapted(&exclude(Targets::pattern(r".*\.dense")), &paths), [false, false, true]);
    }

    #[test]
    fn a_layers_number_is_the_first_in_its_path_unless_a_pattern_says_where_it_stands() {
        let paths = ["blocks.1.experts.0.query", "blocks.0.experts.1.query", "pooler.query"];
        let lora = |layers: &[usize], pattern: &[&str]| Lora {
            layers_to_transform: Some(layers.to_vec()),
            layers_pattern: pattern.iter().map(|name| name.to_string()).collect(),
            ..Lora::default()
        };
        // `.blocks.` would be needed before the first number: PEFT's expression wants a name and a dot before it.
        assert_eq!(adapted(&lora(&[1], &["experts"]), &paths), [false, true, false]);
        assert_eq!(adapted(&lora(&[1], &["blocks"]), &paths), [true, false, false]);
        let paths = ["bert.layer.1.experts.0.query", "bert.layer.0.experts.1.query"];
        assert_eq!(adapted(&lora(&[1], &[]), &paths), [true, false]);
        assert_eq!(adapted(&lora(&[], &[]), &paths), [true, true]);
        // A whole path needs no number.
        let named = lora(&[1], &[]).on(Targets::suffixes([paths[1]]));
        assert_eq!(adapted(&named, &paths), [false, true]);
    }

    #[test]
    fn layer_numbers_go_with_a_list_of_targets_only_and_their_pattern_with_numbers_only() {
        let error = |lora: Lora| lora.tuner().err().unwrap().to_string();
        let layers = Lora { layers_to_transform: Some(vec![0]), ..Lora::default().on(Targets::AllLinear) };
        assert!(error(layers).contains("layers_to_transform is [0]"));
        let pattern = Lora { layers_pattern: vec!["layer".into()], ..Lora::default() };
        assert!(error(pattern).contains("layers_pattern is layer"));
    }
}
