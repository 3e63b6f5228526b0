//! A pretrained checkpoint: where it is found, its configuration and its tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use ops::SharedWeights;
use serde_json::Value;

use crate::architectures::layout::Layout;
use crate::architectures::{Architecture, Config};
use crate::error::{Error, Result};

/// The files of a model folder that are read.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// An encoder's checkpoint in memory, its tensors under Hugging Face's names with the encoder's prefix, such as `bert.`.
#[derive(Clone)]
pub struct Pretrained {
    /// As it was asked for: a folder or a hub id.
    name: String,
    folder: PathBuf,
    /// The sizes of the encoder, from `config.json`.
    pub config: Config,
    pub(crate) layout: Layout,
    tensors: BTreeMap<String, Tensor>,
    device: Device,
    /// The frozen weights of all models that are built on it: they share them.
    pub(crate) shared: SharedWeights,
}

impl Pretrained {
    /// Loads a model by name: a folder, a folder below `models/` of the project, or a Hugging Face hub id (which is
    /// downloaded, and then found in the hub's cache).
    ///
    /// # Errors
    /// When there is no such model, or its files are not those of an encoder that is known.
    pub fn load(name: &str) -> Result<Self> {
        Ok(Self { name: name.into(), ..Self::from_folder(&find(name)?)? })
    }

    /// Loads the model in `folder`: `config.json`, `model.safetensors`, `tokenizer.json`.
    ///
    /// # Errors
    /// When a file is missing, no configuration of a known architecture, or no safetensors file.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let (architecture, json) = read_configuration(&path)?;
        let invalid = |e: serde_json::Error| Error::Config { path: path.clone(), found: e.to_string() };
        let (config, layout) = architecture.read(&json).map_err(invalid)?;
        let heads = config.num_attention_heads;
        if heads == 0 || !config.hidden_size.is_multiple_of(heads) {
            let found = format!("hidden_size {} that {heads} attention heads do not divide", config.hidden_size);
            return Err(Error::Config { path, found });
        }
        let tensors = read_tensors(&folder.join("model.safetensors"), &layout)?;
        let name = folder.display().to_string();
        let (device, shared) = (Device::Cpu, SharedWeights::default());
        Ok(Self { name, folder: folder.into(), config, layout, tensors, device, shared })
    }

    /// The same checkpoint on another device, where [`crate::Adapters`] and [`crate::Model::from_adapter`] then put their models, with one
    /// copy of what is frozen.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let moved = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_device(device)?));
        let tensors = self.tensors.iter().map(moved).collect::<Result<_>>()?;
        Ok(Self { tensors, device: device.clone(), shared: SharedWeights::default(), ..self.clone() })
    }

    /// Where its tensors lie.
    pub(crate) fn device(&self) -> Device {
        self.device.clone()
    }

    /// The longest sequence that the encoder takes, in tokens.
    pub fn max_length(&self) -> usize {
        let rows = self.config.max_position_embeddings;
        self.layout.embeddings.positions.map_or(rows, |positions| positions.longest(rows))
    }

    /// The name it was asked for by, or its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder it was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `tokenizer.json` of the folder.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.folder.join("tokenizer.json")
    }

    /// The labels of the checkpoint's own classifier, if it has one.
    pub fn num_labels(&self) -> Option<usize> {
        self.tensors.get(&self.output_weight())?.dims().first().copied()
    }

    /// The same without the layer that the logits come from, which is then new in every model: it was trained on other labels.
    pub fn without_output(&self) -> Self {
        let output = format!("{}.", self.layout.head.output);
        let mut others = self.clone();
        others.tensors.retain(|name, _| !name.starts_with(&output));
        others
    }

    /// The name of the weight that the logits come from.
    pub(crate) fn output_weight(&self) -> String {
        format!("{}.weight", self.layout.head.output)
    }

    /// Its tensors by name, in the order of their names.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The tensor of that name, if the checkpoint has it in that shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Option<&Tensor> {
        self.tensors.get(name).filter(|tensor| tensor.dims() == shape)
    }

    /// The tensor of that name and shape.
    pub(crate) fn required(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let path = self.folder.join("model.safetensors");
        let tensor = self.tensors.get(name).ok_or_else(|| {
            let last = name.rsplit('.').nth(1).unwrap_or(name);
            let nearest = self.tensors.keys().find(|key| key.contains(last));
            let nearest = nearest.map(|key| format!(" (nearest: {key})")).unwrap_or_default();
            Error::MissingTensor { path: path.clone(), name: name.into(), expected: shape.to_vec(), nearest }
        })?;
        if tensor.dims() != shape {
            let (expected, found) = (shape.to_vec(), tensor.dims().to_vec());
            return Err(Error::TensorShape { path, name: name.into(), expected, found });
        }
        Ok(tensor)
    }
}

impl Architecture {
    /// That of a model, which is found as [`Pretrained::load`] finds it, by its `config.json` alone.
    ///
    /// # Errors
    /// When there is no such model, or its architecture is not known.
    pub fn of_model(name: &str) -> Result<Self> {
        Ok(read_configuration(&find(name)?.join("config.json"))?.0)
    }
}

/// A `config.json`, and the architecture that its `model_type` names: BERT where it names none, as old checkpoints do.
fn read_configuration(path: &Path) -> Result<(Architecture, Value)> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let json: Value =
        serde_json::from_str(&text).map_err(|e| Error::Config { path: path.into(), found: e.to_string() })?;
    let Some(kind) = json.get("model_type").and_then(Value::as_str) else { return Ok((Architecture::default(), json)) };
    match Architecture::ALL.into_iter().find(|architecture| architecture.model_type() == kind) {
        Some(architecture) => Ok((architecture, json)),
        None => {
            let known = Architecture::ALL.map(Architecture::model_type).join(", ");
            Err(Error::Architecture { path: path.into(), found: kind.into(), known })
        }
    }
}

/// Reads a safetensors file as f32, its names brought to Hugging Face's present form.
fn read_tensors(path: &Path, layout: &Layout) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let file =
        safetensors::SafeTensors::deserialize(&bytes).map_err(|source| Error::Weights { path: path.into(), source })?;
    file.iter()
        .filter(|(name, _)| !name.ends_with("position_ids"))
        .map(|(name, view)| Ok((present_name(name, layout), view.load(&Device::Cpu)?.to_dtype(DType::F32)?)))
        .collect()
}

/// Checkpoints of a bare encoder lack its prefix; those converted from TensorFlow say gamma and beta.
fn present_name(name: &str, layout: &Layout) -> String {
    let name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    let bare = layout.bare.iter().any(|part| name.starts_with(part));
    if bare { layout.path(&name) } else { name }
}

fn find(name: &str) -> Result<PathBuf> {
    let is_model = |folder: &Path| folder.join(FILES[0]).is_file();
    let mut tried = vec![PathBuf::from(name)];
    if let Ok(here) = std::env::current_dir() {
        // From the project's root and from any folder below it, such as notebooks/.
        tried.extend(here.ancestors().map(|folder| folder.join("models").join(name)));
    }
    if let Some(folder) = tried.iter().find(|folder| is_model(folder)) {
        return Ok(folder.clone());
    }
    download(name).map_err(|hub| Error::ModelNotFound {
        name: name.into(),
        tried: format!("{name:?} or models/{name}"),
        hub,
    })
}

/// Fetches the three files of a hub model, or finds them in the hub's cache; returns their folder.
fn download(name: &str) -> std::result::Result<PathBuf, String> {
    if name.split('/').count() > 2 || name.starts_with(['.', '/']) {
        return Err("that is no hub id".into());
    }
    let repository = hf_hub::Cache::from_env().model(name.to_string());
    let mut folder = None;
    for file in FILES {
        let path = match repository.get(file) {
            Some(path) => path,
            None => {
                let hub = hf_hub::api::sync::ApiBuilder::from_env().build().map_err(|e| e.to_string())?;
                hub.model(name.to_string()).get(file).map_err(|e| e.to_string())?
            }
        };
        folder = path.parent().map(Path::to_path_buf);
    }
    folder.ok_or_else(|| "the hub's cache has no folder".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bare_and_of_converted_checkpoints_become_hugging_faces() {
        let sizes = serde_json::json!({
            "vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 4, "type_vocab_size": 2,
            "initializer_range": 0.02, "layer_norm_eps": 1e-12,
        });
        let present = |architecture: Architecture, name| {
            let (_, layout) = architecture.read(&sizes).unwrap();
            present_name(name, &layout)
        };
        assert_eq!(present(Architecture::Bert, "embeddings.LayerNorm.gamma"), "bert.embeddings.LayerNorm.weight");
        assert_eq!(
            present(Architecture::Bert, "bert.encoder.layer.0.output.LayerNorm.beta"),
            "bert.encoder.layer.0.output.LayerNorm.bias"
        );
        assert_eq!(present(Architecture::Bert, "classifier.weight"), "classifier.weight");
        assert_eq!(present(Architecture::XlmRoberta, "encoder.layer.0.x"), "roberta.encoder.layer.0.x");
    }

    #[test]
    fn a_model_that_is_nowhere_is_an_error_that_says_where_it_was_looked_for() {
        let error = Pretrained::load("./no/such/model").err().unwrap().to_string();
        assert!(error.contains("models/./no/such/model") && error.contains("make setup"), "{error}");
    }
}
