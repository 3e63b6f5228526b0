//! A whole checkpoint of a fine-tuned model, without its adapter: what `merge_and_unload().save_pretrained(folder)` writes in Python.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::Model;
use crate::error::{Error, Result};
use crate::files::{write_atomically, write_tensors};
use crate::pretrained::Pretrained;

/// What a tokenizer may be written in.
const TOKENIZER: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
];

impl Model {
    /// Writes the model as a checkpoint of its own, `config.json`, `model.safetensors` and the checkpoint's tokenizer: each adapter merged
    /// into its layer's weight, the head and whatever else was trained in the places of the checkpoint's. transformers'
    /// `AutoModelForSequenceClassification` loads it, and so does this crate, with [`crate::Method::Head`] and the model's pooling and
    /// number of labels. The model itself stays as it is.
    ///
    /// # Errors
    /// When an adapter is none that a weight could hold, the model was merged for good already, `pretrained` is not its checkpoint, or
    /// a file cannot be read or written.
    pub fn save_merged(&self, pretrained: &Pretrained, folder: &Path) -> Result<()> {
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
        let labels = tensors.get(&pretrained.output_weight()).and_then(|output| output.dims().first().copied());
        let config = config(&pretrained.folder().join("config.json"), labels.unwrap_or_default())?;

        write_tensors(&folder.join("model.safetensors"), &tensors)?;
        for name in TOKENIZER {
            let path = pretrained.folder().join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(|source| Error::Read { path, source })?;
                write_atomically(&folder.join(name), &bytes)?;
            }
        }
        // Last: a folder without a configuration is no checkpoint.
        write_atomically(&folder.join("config.json"), config.as_bytes())
    }
}

/// The checkpoint's configuration as that of a classifier in f32.
fn config(path: &Path, labels: usize) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let invalid = |error: serde_json::Error| Error::Config { path: path.into(), found: error.to_string() };
    let mut fields: serde_json::Map<String, Value> = serde_json::from_str(&text).map_err(invalid)?;
    let names = (0..labels).map(|label| (label, format!("LABEL_{label}")));
    let by_id: serde_json::Map<String, Value> = names.clone().map(|(id, name)| (id.to_string(), json!(name))).collect();
    let by_name: serde_json::Map<String, Value> = names.map(|(id, name)| (name, json!(id))).collect();
    fields.insert("id2label".into(), Value::Object(by_id));
    fields.insert("label2id".into(), Value::Object(by_name));
    fields.remove("num_labels");
    // BertModel, BertForMaskedLM: what stands before is the architecture.
    let class = fields.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
    let class = class.map(|class| class.split("For").next().unwrap_or(class).trim_end_matches("Model"));
    if let Some(class) = class.map(|class| format!("{class}ForSequenceClassification")) {
        fields.insert("architectures".into(), json!([class]));
    }
    for field in ["torch_dtype", "dtype"] {
        if let Some(dtype) = fields.get_mut(field) {
            *dtype = json!("float32");
        }
    }
    serde_json::to_string_pretty(&fields).map_err(invalid)
}
