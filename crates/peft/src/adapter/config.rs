//! `adapter_config.json`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::nearest::nearest;
use super::prompt::{self, PromptSizes};
use super::warning::Warning;
use crate::error::{Error, Result};
use crate::method::{
    AdaLora, Bias, BitFit, Bottleneck, HEADS, Ia3, InitLoraWeights, LnTuning, Lora, Method, Targets, Vera,
    VirtualTokens,
};
use crate::model::{Model, Pooling};
use crate::parameters::is_head;

pub(super) const FILE: &str = "adapter_config.json";

/// The version of PEFT whose fields and defaults these are.
const PEFT_VERSION: &str = "0.21.2";

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The method, with PEFT's options.
    pub method: Method,
    /// The name or folder of the checkpoint that it was trained on.
    pub base_model_name_or_path: Option<String>,
    /// From hidden states to one vector.
    pub pooling: Pooling,
    /// The pooler was trained whole, by a method that has no `modules_to_save`.
    pub train_pooler: bool,
    /// Modules of the head that PEFT does not take for one, and trains only where it is told to, such as DistilBERT's
    /// `pre_classifier`. In a file they stand among `modules_to_save`.
    pub head: Vec<String>,
    /// Of prompt learning, the sizes of the base model, where the file has them.
    pub prompt: Option<PromptSizes>,
}

/// Fields of every configuration, which PEFT has for itself.
const COMMON: [&str; 9] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "modules_to_save",
    "pooling",
    "auto_mapping",
    "revision",
    "inference_mode",
    "peft_version",
];

/// Fields of LoRA that [`Lora`] has.
const LORA: [&str; 15] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "bias",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "eva_config",
];

/// Fields of LoRA that change nothing for the linear layers of an encoder, or by whose start alone, which is in the tensors.
const WITHOUT_EFFECT: [&str; 8] = [
    "fan_in_fan_out",
    "megatron_config",
    "megatron_core",
    "runtime_config",
    "ensure_weight_tying",
    "qalora_group_size",
    "loftq_config",
    "corda_config",
];

/// Fields of LoRA that change what is computed, in ways that this crate does not do: they must be null, false or empty.
const NOT_SUPPORTED: [&str; 12] = [
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

/// Fields of (IA)³. Its vectors start as ones whatever `init_ia3_weights` says, and are in the tensors.
const IA3: [&str; 5] =
    ["target_modules", "feedforward_modules", "exclude_modules", "fan_in_fan_out", "init_ia3_weights"];

/// Fields of bottleneck adapters: those of [`Bottleneck`].
const BOTTLENECK: [&str; 8] = [
    "adapter_style",
    "reduction_factor",
    "bottleneck_size",
    "non_linearity",
    "scaling",
    "dropout",
    "init_weights",
    "train_layer_norms",
];

/// Fields of VeRA. What its vectors start as is in the tensors, whatever `init_weights` says.
const VERA: [&str; 11] = [
    "r",
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
    "projection_prng_key",
    "save_projection",
    "vera_dropout",
    "d_initial",
    "bias",
    "fan_in_fan_out",
    "init_weights",
];

/// Fields of AdaLoRA that [`AdaLora`] has. It takes LoRA's others, too, of which PEFT makes nothing.
const ADALORA: [&str; 18] = [
    "init_r",
    "target_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "rank_pattern",
];

/// The `peft_type` of a method: PEFT's, or one of this crate's.
pub(super) fn peft_type(method: &Method) -> &'static str {
    match method {
        Method::Full => "FULL",
        Method::Head => "HEAD",
        Method::BitFit(_) => "BITFIT",
        Method::Lora(_) => "LORA",
        Method::Ia3(_) => "IA3",
        Method::LnTuning(_) => "LN_TUNING",
        Method::Vera(_) => "VERA",
        Method::AdaLora(_) => "ADALORA",
        Method::Bottleneck(_) => "BOTTLENECK",
        Method::PrefixTuning(_) => "PREFIX_TUNING",
        Method::PromptTuning(_) => "PROMPT_TUNING",
        Method::PTuning(_) => "P_TUNING",
    }
}

const PEFT_TYPES: [&str; 12] = [
    "LORA",
    "ADALORA",
    "VERA",
    "IA3",
    "LN_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
    "BOTTLENECK",
    "BITFIT",
    "HEAD",
    "FULL",
];

impl AdapterConfig {
    /// Reads `adapter_config.json` in `folder`, and what in it was passed over. Fields that are not there have PEFT's defaults.
    ///
    /// # Errors
    /// When the file is missing or no configuration, the `peft_type` is not known, a value makes no adapter, or a field means
    /// something that this crate does not do.
    pub fn read(folder: &Path) -> Result<(Self, Vec<Warning>)> {
        let path = folder.join(FILE);
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::AdapterFile { path: path.clone(), source })?;
        let invalid = |found: String| Error::AdapterConfig { path: path.clone(), found };
        let fields: Map<String, Value> = serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        Self::parse(fields).map_err(invalid)
    }

    /// The configuration and its warnings, or what is wrong.
    fn parse(mut fields: Map<String, Value>) -> std::result::Result<(Self, Vec<Warning>), String> {
        let text = |field: &str| match fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(format!("{field} {other}, which is not a text")),
        };
        let kind = text("peft_type")?.ok_or("no peft_type")?;
        let base_model_name_or_path = text("base_model_name_or_path")?;
        if let Some(task) = text("task_type")?.filter(|task| task != "SEQ_CLS") {
            return Err(format!("task_type {task:?}; adapters of sequence classifiers, \"SEQ_CLS\", are read"));
        }
        let pooling = fields.get("pooling").map_or(Ok(Pooling::Cls), |pooling| serde_json::from_value(pooling.clone()));
        let pooling = pooling.map_err(|error| format!("pooling: {error}"))?;
        let mut saved = names(&fields, "modules_to_save")?;
        saved.retain(|name| !HEADS.contains(&name.as_str()));
        let train_pooler = saved.iter().any(|name| name == "pooler");

        let known: Vec<&str> = match kind.as_str() {
            "LORA" => [&COMMON[..], &LORA, &WITHOUT_EFFECT, &NOT_SUPPORTED].concat(),
            "ADALORA" => [&COMMON[..], &ADALORA, &LORA, &WITHOUT_EFFECT, &NOT_SUPPORTED].concat(),
            "VERA" => [&COMMON[..], &VERA].concat(),
            "IA3" => [&COMMON[..], &IA3].concat(),
            "LN_TUNING" => [&COMMON[..], &["target_modules", "exclude_modules"]].concat(),
            "BOTTLENECK" => [&COMMON[..], &BOTTLENECK].concat(),
            "PREFIX_TUNING" => [&COMMON[..], &prompt::COMMON, &prompt::PREFIX_TUNING].concat(),
            "PROMPT_TUNING" => [&COMMON[..], &prompt::COMMON, &prompt::PROMPT_TUNING].concat(),
            "P_TUNING" => [&COMMON[..], &prompt::COMMON, &prompt::P_TUNING].concat(),
            "BITFIT" => [&COMMON[..], &["target_modules"]].concat(),
            _ => COMMON.to_vec(),
        };
        let unknown = fields.keys().filter(|field| !known.contains(&field.as_str()));
        let warnings = unknown
            .map(|field| Warning::UnknownField { field: field.clone(), nearest: nearest(field, known.iter().copied()) })
            .collect();
        let method = match kind.as_str() {
            "LORA" => Method::Lora(lora(&mut fields, &saved)?),
            "ADALORA" => Method::AdaLora(adalora(&mut fields, &saved)?),
            "VERA" => Method::Vera(vera(&mut fields, &saved)?),
            "IA3" => {
                let required = |field: &str| {
                    targets(&fields, field)?.ok_or(format!("no {field}; name the layers that have a vector"))
                };
                let ia3 = Ia3 {
                    target_modules: required("target_modules")?,
                    feedforward_modules: targets(&fields, "feedforward_modules")?
                        .unwrap_or(Targets::Suffixes(Vec::new())),
                    exclude_modules: targets(&fields, "exclude_modules")?,
                    modules_to_save: saved,
                };
                ia3.check().map_err(|error| error.to_string())?;
                Method::Ia3(ia3)
            }
            "LN_TUNING" => Method::LnTuning(LnTuning {
                target_modules: targets(&fields, "target_modules")?
                    .ok_or("no target_modules; name the layer norms that are trained")?,
                exclude_modules: targets(&fields, "exclude_modules")?,
                modules_to_save: saved,
            }),
            "BOTTLENECK" => Method::Bottleneck(bottleneck(&fields)?),
            "PREFIX_TUNING" => Method::PrefixTuning(prompt::prefix_tuning(&fields, saved)?),
            "PROMPT_TUNING" => Method::PromptTuning(prompt::prompt_tuning(&fields, saved)?),
            "P_TUNING" => Method::PTuning(prompt::p_tuning(&fields, saved)?),
            "BITFIT" => Method::BitFit(BitFit { target_modules: targets(&fields, "target_modules")? }),
            "HEAD" => Method::Head,
            "FULL" => Method::Full,
            other => {
                let nearest = nearest(other, PEFT_TYPES);
                return Err(format!("peft_type {other:?}{nearest}; {} are read", PEFT_TYPES.join(", ")));
            }
        };
        // The others hold it among their own modules to save.
        let train_pooler = train_pooler && matches!(method, Method::Bottleneck(_) | Method::BitFit(_) | Method::Head);
        let prompt = PromptSizes::read(&fields)?.filter(|_| method.virtual_tokens() > 0);
        Ok((Self { method, base_model_name_or_path, pooling, train_pooler, head: Vec::new(), prompt }, warnings))
    }

    /// That of a model.
    pub(super) fn of(model: &Model) -> Result<Self> {
        let mut method = model.method().of_adapter();
        if let Method::AdaLora(adalora) = &mut method {
            adalora.rank_pattern = model.rank_pattern()?;
        }
        if let (Method::Vera(vera), Some(projections)) = (&mut method, &model.projections) {
            vera.save_projection |= !projections.are_drawn_from(vera.projection_prng_key);
        }
        Ok(Self {
            method,
            base_model_name_or_path: Some(model.base_model().into()),
            pooling: model.pooling(),
            train_pooler: model.trains_pooler() && *model.method() != Method::Full,
            head: head(model),
            prompt: PromptSizes::of(model.method(), model.config(), model.embedding_width()),
        })
    }

    /// The text of the file: its fields in the order of the alphabet, as PEFT writes them.
    pub(super) fn to_json(&self) -> Result<String> {
        let mut fields = json!({
            "peft_type": peft_type(&self.method),
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": self.base_model_name_or_path,
            "auto_mapping": null,
            "revision": null,
            "inference_mode": true,
            "peft_version": PEFT_VERSION,
        });
        let mut saved = Vec::new();
        match &self.method {
            Method::Lora(lora) => {
                saved.clone_from(&lora.modules_to_save);
                fields["r"] = json!(lora.r);
                fields["lora_alpha"] = number(lora.lora_alpha);
                fields["lora_dropout"] = json!(lora.lora_dropout);
                fields["target_modules"] = json!(lora.target_modules);
                fields["exclude_modules"] = json!(lora.exclude_modules);
                fields["layers_to_transform"] = json!(lora.layers_to_transform);
                fields["layers_pattern"] = names_or_null(&lora.layers_pattern);
                fields["rank_pattern"] = json!(lora.rank_pattern);
                let alphas = lora.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), number(*alpha)));
                fields["alpha_pattern"] = Value::Object(alphas.collect());
                fields["bias"] = json!(lora.bias);
                fields["use_rslora"] = json!(lora.use_rslora);
                fields["use_dora"] = json!(lora.use_dora);
                fields["init_lora_weights"] = json!(lora.init_lora_weights);
                if lora.init_lora_weights == InitLoraWeights::Eva {
                    fields["eva_config"] = json!(lora.eva_config.clone().unwrap_or_default());
                    // PEFT's defaults, for labels of tokens, which sequence classifiers have not.
                    fields["eva_config"]["use_label_mask"] = json!(true);
                    fields["eva_config"]["label_mask_value"] = json!(-100);
                }
                for field in ["fan_in_fan_out", "lora_bias", "use_qalora"] {
                    fields[field] = json!(false);
                }
            }
            Method::AdaLora(adalora) => {
                saved.clone_from(&adalora.modules_to_save);
                for (field, value) in all_fields(adalora, &ADALORA)? {
                    fields[field] = value;
                }
                fields["lora_alpha"] = number(adalora.lora_alpha);
                fields["bias"] = json!(adalora.bias);
                fields["init_lora_weights"] = json!(adalora.init_lora_weights);
                fields["r"] = json!(8); // LoRA's default, of which AdaLoRA makes nothing
                for field in ["fan_in_fan_out", "lora_bias", "use_qalora", "use_dora", "use_rslora"] {
                    fields[field] = json!(false);
                }
            }
            Method::Vera(vera) => {
                saved.clone_from(&vera.modules_to_save);
                fields["r"] = json!(vera.r);
                fields["target_modules"] = json!(vera.target_modules);
                fields["layers_to_transform"] = json!(vera.layers_to_transform);
                fields["layers_pattern"] = names_or_null(&vera.layers_pattern);
                fields["projection_prng_key"] = json!(vera.projection_prng_key);
                fields["save_projection"] = json!(vera.save_projection);
                fields["vera_dropout"] = json!(vera.vera_dropout);
                fields["d_initial"] = json!(vera.d_initial);
                fields["bias"] = match vera.bias {
                    Bias::LoraOnly => json!("vera_only"),
                    bias => json!(bias),
                };
                fields["fan_in_fan_out"] = json!(false);
                fields["init_weights"] = json!(true);
            }
            Method::Ia3(ia3) => {
                saved.clone_from(&ia3.modules_to_save);
                fields["target_modules"] = json!(ia3.target_modules);
                fields["feedforward_modules"] = json!(ia3.feedforward_modules);
                fields["exclude_modules"] = json!(ia3.exclude_modules);
                fields["fan_in_fan_out"] = json!(false);
                fields["init_ia3_weights"] = json!(true);
            }
            Method::LnTuning(ln_tuning) => {
                saved.clone_from(&ln_tuning.modules_to_save);
                fields["target_modules"] = json!(ln_tuning.target_modules);
                fields["exclude_modules"] = json!(ln_tuning.exclude_modules);
            }
            Method::Bottleneck(bottleneck) => {
                for (field, value) in all_fields(bottleneck, &BOTTLENECK)? {
                    fields[field] = value;
                }
            }
            Method::BitFit(BitFit { target_modules }) => fields["target_modules"] = json!(target_modules),
            Method::PrefixTuning(_) | Method::PromptTuning(_) | Method::PTuning(_) | Method::Full | Method::Head => {}
        }
        if let Some(prompt) = VirtualTokens::of(&self.method) {
            saved = prompt::write(&prompt, self.prompt, &mut fields);
        }
        if self.train_pooler && !saved.iter().any(|name| name == "pooler") {
            saved.push("pooler".into());
        }
        for name in &self.head {
            if !saved.contains(name) {
                saved.push(name.clone());
            }
        }
        saved.extend(HEADS.map(String::from));
        fields["modules_to_save"] = json!(saved);
        if self.pooling == Pooling::Mean {
            fields["pooling"] = json!(self.pooling);
        }
        serde_json::to_string_pretty(&fields)
            .map_err(|error| Error::AdapterConfig { path: FILE.into(), found: error.to_string() })
    }
}

/// The modules of a model's head that PEFT does not take for one.
fn head(model: &Model) -> Vec<String> {
    let modules = model.parameters().trainable().filter(|(name, _)| is_head(name));
    let names: BTreeSet<&str> = modules.filter_map(|(name, _)| name.split('.').next()).collect();
    names.into_iter().filter(|name| !HEADS.contains(name)).map(String::from).collect()
}

/// A method's fields of these names; null where it says nothing of one.
fn all_fields<'a>(method: &impl Serialize, names: &[&'a str]) -> Result<Vec<(&'a str, Value)>> {
    let invalid = |error: serde_json::Error| Error::AdapterConfig { path: FILE.into(), found: error.to_string() };
    let value = serde_json::to_value(method).map_err(invalid)?;
    Ok(names.iter().map(|&name| (name, value.get(name).cloned().unwrap_or_default())).collect())
}

/// Names, or null where there are none.
fn names_or_null(names: &[String]) -> Value {
    if names.is_empty() { Value::Null } else { json!(names) }
}

/// A whole number without a point: PEFT's alphas are.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// A list of names, or one name; nothing where the field is null.
fn names(fields: &Map<String, Value>, field: &str) -> std::result::Result<Vec<String>, String> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(name)) => Ok(vec![name.clone()]),
        Some(list) => {
            serde_json::from_value(list.clone()).map_err(|_| format!("{field} {list}, which is no list of names"))
        }
    }
}

fn targets(fields: &Map<String, Value>, field: &str) -> std::result::Result<Option<Targets>, String> {
    let value = fields.get(field).cloned().unwrap_or_default();
    let expected = "expected a list of names, a regular expression or null";
    serde_json::from_value(value.clone()).map_err(|_| format!("{field} {value}; {expected}"))
}

/// Whether a field says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// LoRA's fields with PEFT's defaults in the places of those that are not there.
fn lora(fields: &mut Map<String, Value>, saved: &[String]) -> std::result::Result<Lora, String> {
    none_of(fields, &NOT_SUPPORTED)?;
    for (field, default) in [("r", 8), ("lora_alpha", 8)] {
        if fields.get(field).is_none_or(Value::is_null) {
            fields.insert(field.into(), json!(default));
        }
    }
    let lora: Lora = of_fields(fields, &LORA, saved)?;
    lora.check().map_err(|error| error.to_string())?;
    Ok(lora)
}

fn adalora(fields: &mut Map<String, Value>, saved: &[String]) -> std::result::Result<AdaLora, String> {
    none_of(fields, &NOT_SUPPORTED)?;
    none_of(fields, &["use_dora"])?;
    let init_lora_weights = !matches!(fields.get("init_lora_weights"), Some(Value::Bool(false)));
    let adalora = AdaLora { init_lora_weights, ..of_fields(fields, &ADALORA, saved)? };
    adalora.check().map_err(|error| error.to_string())?;
    Ok(adalora)
}

fn vera(fields: &mut Map<String, Value>, saved: &[String]) -> std::result::Result<Vera, String> {
    if fields.get("bias").is_some_and(|bias| bias == "vera_only") {
        fields.insert("bias".into(), json!("lora_only"));
    }
    let names: Vec<&str> = VERA.into_iter().filter(|name| !["fan_in_fan_out", "init_weights"].contains(name)).collect();
    let vera: Vera = of_fields(fields, &names, saved)?;
    vera.check().map_err(|error| error.to_string())?;
    Ok(vera)
}

/// Fails where one of `names` means something.
fn none_of(fields: &Map<String, Value>, names: &[&str]) -> std::result::Result<(), String> {
    match names.iter().find(|field| fields.get(**field).is_some_and(|value| !is_empty(value))) {
        Some(field) => Err(format!("{field} {}, which is not supported here", fields[*field])),
        None => Ok(()),
    }
}

/// A method of LoRA's kind from those of its fields that are there.
fn of_fields<M: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    known: &[&str],
    saved: &[String],
) -> std::result::Result<M, String> {
    if fields.get("target_modules").is_none_or(is_empty) {
        return Err("no target_modules; name the layers that have a branch".into());
    }
    let layers_pattern = names(fields, "layers_pattern")?;
    let mut given: Map<String, Value> =
        known.iter().filter_map(|field| Some((field.to_string(), fields.remove(*field)?))).collect();
    given.retain(|_, value| !value.is_null());
    if let Some(layer @ Value::Number(_)) = given.get("layers_to_transform").cloned() {
        given.insert("layers_to_transform".into(), json!([layer]));
    }
    given.insert("layers_pattern".into(), json!(layers_pattern));
    given.insert("modules_to_save".into(), json!(saved));
    options(given)
}

/// The fields of a bottleneck adapter with its style's defaults in the places of those that are not there.
fn bottleneck(fields: &Map<String, Value>) -> std::result::Result<Bottleneck, String> {
    let given = BOTTLENECK.iter().filter_map(|field| Some((field.to_string(), fields.get(*field)?.clone())));
    let bottleneck: Bottleneck = options(given.filter(|(_, value)| !value.is_null()).collect())?;
    bottleneck.check().map_err(|error| error.to_string())?;
    Ok(bottleneck)
}

/// A method's options of these fields.
fn options<T: DeserializeOwned>(given: Map<String, Value>) -> std::result::Result<T, String> {
    // Serde names a field that is not known, but not the one whose value does not fit.
    for (field, value) in &given {
        let one = Value::Object(Map::from_iter([(field.clone(), value.clone())]));
        serde_json::from_value::<T>(one).map_err(|error| format!("{field} {value}: {error}"))?;
    }
    serde_json::from_value(Value::Object(given)).map_err(|error| error.to_string())
}
