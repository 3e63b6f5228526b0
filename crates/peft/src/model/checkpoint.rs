//! A whole checkpoint of a fine-tuned model, without its adapter: what `merge_and_unload().save_pretrained(folder)` writes in Python.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::Model;
use crate::checkpoint::POOLING_FIELD;
use crate::error::{Error, Result};
use crate::files::{tensor_file, write_folder};
use crate::pretrained::Pretrained;

/// What a tokenizer may be written in.
const TOKENIZER: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spm.model",
    "added_tokens.json",
];

impl Model {
    /// Writes the model as a checkpoint of its own, `config.json`, `model.safetensors` and the checkpoint's tokenizer: each adapter merged
    /// into its layer's weight, the head and whatever else was trained in the places of the checkpoint's. transformers'
    /// `AutoModelForSequenceClassification` loads it, and so does this crate, with [`crate::Method::Head`] and the model's number of
    /// labels. The model itself stays as it is.
    ///
    /// `config.json` says what it is by now: a classifier, its architecture, its `labels` (`LABEL_0` and so on where there are not as
    /// many as outputs) and `problem_type`; where the pooling is another than the checkpoint's, in `classifier_pooling`, which
    /// transformers reads of ModernBERT alone. Whenever the process is killed the folder is as by [`Adapter::save`](crate::Adapter::save).
    ///
    /// # Errors
    /// When an adapter is none that a weight could hold, the model was merged for good already, `pretrained` is not its checkpoint, a
    /// number is not finite, or a file cannot be read or written.
    pub fn save_merged(&self, pretrained: &Pretrained, labels: &[&str], folder: &Path) -> Result<()> {
        self.save_merged_with(pretrained, labels, folder, &[])
    }

    /// The same, with further files, as names and bytes, such as who made it.
    ///
    /// # Errors
    /// As [`Model::save_merged`].
    pub fn save_merged_with(
        &self,
        pretrained: &Pretrained,
        labels: &[&str],
        folder: &Path,
        further: &[(&str, &[u8])],
    ) -> Result<()> {
        self.check_mergeable()?;
        if self.is_unloaded() {
            return Err(Error::Merged);
        }
        let mut tensors: BTreeMap<String, Tensor> = pretrained.tensors().clone();
        let of_adapters: Vec<&str> = self.parameters().of_adapters().collect();
        let trained = self.parameters().trainable().filter(|(name, _)| !of_adapters.contains(name));
        tensors.extend(trained.map(|(name, variable)| (name.to_string(), variable.as_detached_tensor())));
        for layer in self.adapted() {
            let (merged, name) = (layer.merged()?, format!("{}.weight", layer.path));
            pretrained.required(&name, merged.weight.tensor().dims())?;
            tensors.insert(name, merged.weight.tensor().detach());
            tensors.extend(merged.bias.map(|bias| (format!("{}.bias", layer.path), bias.detach())));
        }
        let rows = tensors.get(&pretrained.output_weight()).and_then(|output| output.dims().first().copied());
        let rows = rows.unwrap_or_default();
        let labels: Vec<String> = match labels.len() == rows {
            true => labels.iter().map(ToString::to_string).collect(),
            false => (0..rows).map(|label| format!("LABEL_{label}")).collect(),
        };
        let config = config(self, pretrained, &labels)?;

        let mut files = Vec::new();
        for name in TOKENIZER {
            let path = pretrained.folder().join(name);
            if path.is_file() {
                files.push((name, std::fs::read(&path).map_err(|source| Error::Read { path, source })?));
            }
        }
        files.push(("model.safetensors", tensor_file(&folder.join("model.safetensors"), &tensors, &BTreeMap::new())?));
        // Last: a folder without a configuration is no checkpoint.
        files.push(("config.json", config.into_bytes()));
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        write_folder(folder, further, &files)
    }
}

/// The checkpoint's configuration as that of a classifier in f32 with these labels.
fn config(model: &Model, pretrained: &Pretrained, labels: &[String]) -> Result<String> {
    let mut fields = pretrained.configuration().fields().clone();
    let by_id: Map<String, Value> = labels.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    let by_name: Map<String, Value> = labels.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    let architecture = model.config().architecture;
    let problem = if labels.len() == 1 { "regression" } else { "single_label_classification" };
    for (field, value) in [
        ("model_type", json!(architecture.model_type())),
        ("architectures", json!([format!("{}ForSequenceClassification", architecture.class_stem())])),
        ("id2label", Value::Object(by_id)),
        ("label2id", Value::Object(by_name)),
        ("problem_type", json!(problem)),
    ] {
        fields.insert(field.into(), value);
    }
    for field in ["num_labels", "_num_labels", "finetuning_task"] {
        fields.remove(field);
    }
    for field in ["torch_dtype", "dtype"] {
        if let Some(dtype) = fields.get_mut(field) {
            *dtype = json!("float32");
        }
    }
    if model.pooling() != pretrained.pooling() {
        fields.insert(POOLING_FIELD.into(), json!(model.pooling()));
    }
    let failed =
        |error: serde_json::Error| Error::Config { path: pretrained.folder().into(), found: error.to_string() };
    serde_json::to_string_pretty(&fields).map_err(failed)
}
