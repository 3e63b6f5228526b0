//! `adapter_config.json`: PEFT's fields around those of a method's options.

use std::collections::BTreeSet;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::warning::Warning;
use crate::error::{ConfigError, Error, Result};
use crate::model::Model;
use crate::parameters::{HEADS, is_head};
use crate::pooling::Pooling;
use crate::similar_names::nearest;
use crate::tuners::config_file::Fields;
use crate::tuners::{FileField, Method, PromptSizes};
use crate::wrong_content::WrongContent;

pub(super) const FILE: &str = "adapter_config.json";

/// Fields that releases of PEFT from 0.9 on have. Those between 0.5 and 0.13 fail at a field that they do not know, and later ones warn:
/// where these say nothing they are not written.
const NEWER: [&str; 6] =
    ["exclude_modules", "init_weights", "lora_bias", "rank_dropout_scale", "use_dora", "use_qalora"];

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The method, with PEFT's options.
    pub method: Method,
    /// The name or folder of the checkpoint that it was trained on.
    pub base_model_name_or_path: Option<String>,
    /// From hidden states to one vector; `None`: as the base model's `config.json` says.
    pub pooling: Option<Pooling>,
    /// The pooler was trained whole, by a method that has no `modules_to_save`.
    pub train_pooler: bool,
    /// Modules of the head that PEFT does not take for one, and trains only where it is told to, such as DistilBERT's
    /// `pre_classifier`. In a file they stand among `modules_to_save`.
    pub head: Vec<String>,
    /// Of prompt learning, the sizes of the base model, where the file has them.
    pub prompt: Option<PromptSizes>,
}

/// Fields of every configuration.
const COMMON: [(&str, FileField); 9] = [
    ("peft_type", FileField::Used),
    ("task_type", FileField::Used),
    ("base_model_name_or_path", FileField::Used),
    ("modules_to_save", FileField::Used),
    ("pooling", FileField::Used),
    ("revision", FileField::Used),
    ("auto_mapping", FileField::WithoutEffect),
    ("inference_mode", FileField::WithoutEffect),
    ("peft_version", FileField::WithoutEffect),
];

/// Those of prompt learning: the sizes of the base model.
const SIZES: [&str; 4] = ["token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"];

impl AdapterConfig {
    /// Reads `adapter_config.json` in `folder`, and what in it was passed over. Fields that are not there have PEFT's defaults.
    ///
    /// # Errors
    /// When the file is missing or no configuration, the `peft_type` is not known, a value makes no adapter, or a field means
    /// something that this crate does not do.
    pub fn read(folder: &Path) -> Result<(Self, Vec<Warning>)> {
        let path = folder.join(FILE);
        let bytes = std::fs::read(&path).map_err(|source| Error::AdapterFile { path: path.clone(), source })?;
        if let Some(found) = WrongContent::of(&bytes) {
            return Err(Error::Content { path, expected: "the configuration of an adapter", found });
        }
        let parse = || Self::parse(serde_json::from_slice(&bytes)?);
        parse().map_err(|source| Error::AdapterConfig { path, source })
    }

    /// The fields that a file of this `peft_type` may have, each with what becomes of it; `None` where it is not known.
    pub fn fields(peft_type: &str) -> Option<Vec<(String, FileField)>> {
        let mut fields: Vec<(String, FileField)> = COMMON.map(|(name, field)| (name.into(), field)).into();
        for (name, field) in Method::known_fields(peft_type)? {
            let field = if SIZES.contains(&name.as_str()) { FileField::Used } else { field };
            if !fields.iter().any(|(other, _)| *other == name) {
                fields.push((name, field));
            }
        }
        Some(fields)
    }

    /// The configuration and its warnings.
    fn parse(fields: Fields) -> std::result::Result<(Self, Vec<Warning>), ConfigError> {
        let peft_type: String = value(&fields, "peft_type")?
            .ok_or(ConfigError::Missing { field: "peft_type", advice: "say which method" })?;
        let base_model_name_or_path = value(&fields, "base_model_name_or_path")?;
        if let Some(task) = value::<String>(&fields, "task_type")?.filter(|task| task != "SEQ_CLS") {
            return Err(ConfigError::Task { found: task });
        }
        // The base model is what is found under its name.
        let revision =
            value::<String>(&fields, "revision")?.filter(|revision| !["", "main"].contains(&revision.as_str()));
        let pooling = value(&fields, "pooling")?;
        let prompt = sizes(&fields)?;
        let mut saved = names(&fields, "modules_to_save")?;
        saved.retain(|name| !HEADS.contains(&name.as_str()));

        let known: Vec<String> = Self::fields(&peft_type).into_iter().flatten().map(|(name, _)| name).collect();
        let unknown: Vec<String> = fields.keys().filter(|field| !known.contains(field)).cloned().collect();
        let method = Method::read(&peft_type, fields, &saved)?;
        let nearest = |field: &str| nearest(field, known.iter().map(String::as_str));
        let warnings = unknown.into_iter().map(|field| Warning::UnknownField { nearest: nearest(&field), field });
        // Methods that have modules to save hold it among them.
        let train_pooler = saved.iter().any(|name| name == "pooler") && method.config().modules_to_save().is_empty();
        let prompt = prompt.filter(|_| method.virtual_tokens() > 0);
        let config = Self { method, base_model_name_or_path, pooling, train_pooler, head: Vec::new(), prompt };
        let revision = revision.map(|revision| Warning::Revision { revision });
        Ok((config, warnings.chain(revision).collect()))
    }

    /// That of a model.
    pub(super) fn of(model: &Model) -> Result<Self> {
        let mut method = model.method().clone().of_adapter();
        method.change(|config| config.note_training(model.parameters(), model.tuner()))?;
        let trains_everything = method.config().trains_everything();
        let (config, width) = (model.config(), model.embedding_width());
        let prompt = (method.virtual_tokens() > 0).then(|| PromptSizes {
            token_dim: method.config().token_dim(config, width),
            num_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
        });
        Ok(Self {
            method,
            base_model_name_or_path: Some(model.base_model().into()),
            pooling: Some(model.pooling()).filter(|pooling| *pooling != model.base_pooling()),
            train_pooler: model.trains_pooler() && !trains_everything,
            head: head(model),
            prompt,
        })
    }

    /// The text of the file: its fields in the order of the alphabet, as PEFT writes them.
    pub(super) fn to_json(&self) -> Result<String> {
        let write = || -> std::result::Result<String, ConfigError> {
            let mut fields = self.method.write(self.prompt)?;
            let mut set = |field: &str, value: Value| fields.insert(field.into(), value);
            set("peft_type", json!(self.method.peft_type()));
            set("task_type", json!("SEQ_CLS"));
            set("base_model_name_or_path", json!(self.base_model_name_or_path));
            set("auto_mapping", Value::Null);
            set("revision", Value::Null);
            set("inference_mode", json!(true));
            // PEFT adds the names of heads itself, and its prompt learning has no such field before 0.15.
            let saved = self.modules_to_save();
            if self.prompt.is_none() || saved.len() > HEADS.len() {
                set("modules_to_save", json!(saved));
            }
            if let Some(sizes) = self.prompt {
                set("token_dim", json!(sizes.token_dim));
                set("num_layers", json!(sizes.num_layers));
                set("num_attention_heads", json!(sizes.num_attention_heads));
                set("num_transformer_submodules", json!(1));
            }
            if let Some(pooling) = self.pooling {
                set("pooling", json!(pooling));
            }
            fields.retain(|field, value| !NEWER.contains(&field.as_str()) || !(value.is_null() || *value == false));
            Ok(serde_json::to_string_pretty(&fields)?)
        };
        write().map_err(|source| Error::AdapterConfig { path: FILE.into(), source })
    }

    /// The modules that are trained whole, as a file names them: the method's, the pooler, and those of the head.
    fn modules_to_save(&self) -> Vec<String> {
        let mut saved = self.method.config().modules_to_save().to_vec();
        let pooler = self.train_pooler.then(|| "pooler".to_string());
        for name in pooler.iter().chain(&self.head) {
            if !saved.contains(name) {
                saved.push(name.clone());
            }
        }
        saved.extend(HEADS.map(String::from));
        saved
    }
}

/// The modules of a model's head that PEFT does not take for one.
fn head(model: &Model) -> Vec<String> {
    let modules = model.parameters().trainable().filter(|(name, _)| is_head(name));
    let names: BTreeSet<&str> = modules.filter_map(|(name, _)| name.split('.').next()).collect();
    names.into_iter().filter(|name| !HEADS.contains(name)).map(String::from).collect()
}

/// A field's value, or nothing where it is not there or null.
fn value<T: DeserializeOwned>(fields: &Fields, field: &str) -> std::result::Result<Option<T>, ConfigError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(found) => serde_json::from_value(found.clone()).map(Some).map_err(|source| ConfigError::Value {
            field: field.into(),
            value: found.clone(),
            source,
        }),
    }
}

/// A list of names, or one name; nothing where the field is null.
fn names(fields: &Fields, field: &str) -> std::result::Result<Vec<String>, ConfigError> {
    match fields.get(field) {
        Some(Value::String(name)) => Ok(vec![name.clone()]),
        _ => Ok(value(fields, field)?.unwrap_or_default()),
    }
}

/// The sizes of the base model, where a file has them all.
fn sizes(fields: &Fields) -> std::result::Result<Option<PromptSizes>, ConfigError> {
    let size = |field: &str| value::<usize>(fields, field);
    if let Some(submodules) = size("num_transformer_submodules")?.filter(|&submodules| submodules != 1) {
        return Err(ConfigError::NotSupported { field: "num_transformer_submodules".into(), value: json!(submodules) });
    }
    let sizes = size("token_dim")?.zip(size("num_layers")?).zip(size("num_attention_heads")?);
    let sizes = sizes.map(|((token_dim, num_layers), num_attention_heads)| PromptSizes {
        token_dim,
        num_layers,
        num_attention_heads,
    });
    Ok(sizes)
}
