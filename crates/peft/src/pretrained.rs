//! A pretrained checkpoint: where it is found, its configuration and its tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::Config;

use crate::error::{Error, Result};

/// The files of a model folder that are read.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// A BERT checkpoint in memory, its tensors under Hugging Face's names with the prefix `bert.`.
#[derive(Clone)]
pub struct Pretrained {
    /// As it was asked for: a folder or a hub id.
    name: String,
    folder: PathBuf,
    /// The sizes of the encoder, from `config.json`.
    pub config: Config,
    /// `attention_probs_dropout_prob`, which candle's configuration leaves out.
    pub(crate) attention_dropout: f64,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(serde::Deserialize)]
struct Extra {
    model_type: Option<String>,
    attention_probs_dropout_prob: Option<f64>,
}

impl Pretrained {
    /// Loads a model by name: a folder, a folder below `models/` of the project, or a Hugging Face hub id (which is
    /// downloaded, and then found in the hub's cache).
    ///
    /// # Errors
    /// When there is no such model, or its files are not those of a BERT encoder.
    pub fn load(name: &str) -> Result<Self> {
        Ok(Self { name: name.into(), ..Self::from_folder(&find(name)?)? })
    }

    /// Loads the model in `folder`: `config.json`, `model.safetensors`, `tokenizer.json`.
    ///
    /// # Errors
    /// When a file is missing, no BERT configuration, or no safetensors file.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let invalid = |e: serde_json::Error| Error::Config { path: path.clone(), found: e.to_string() };
        // The kind first: another model's configuration would otherwise be told by the fields that it lacks.
        let extra: Extra = serde_json::from_str(&text).map_err(invalid)?;
        if let Some(kind) = extra.model_type.filter(|kind| kind != "bert") {
            return Err(Error::Config { path, found: format!("model_type {kind:?}") });
        }
        let config: Config = serde_json::from_str(&text).map_err(invalid)?;
        let heads = config.num_attention_heads;
        if heads == 0 || !config.hidden_size.is_multiple_of(heads) {
            let found = format!("hidden_size {} that {heads} attention heads do not divide", config.hidden_size);
            return Err(Error::Config { path, found });
        }
        let tensors = read_tensors(&folder.join("model.safetensors"))?;
        let attention_dropout = extra.attention_probs_dropout_prob.unwrap_or(config.hidden_dropout_prob);
        let name = folder.display().to_string();
        Ok(Self { name, folder: folder.into(), config, attention_dropout, tensors })
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

/// Reads a safetensors file as f32, its names brought to Hugging Face's present form.
fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let file =
        safetensors::SafeTensors::deserialize(&bytes).map_err(|source| Error::Weights { path: path.into(), source })?;
    file.iter()
        .filter(|(name, _)| !name.ends_with("position_ids"))
        .map(|(name, view)| Ok((present_name(name), view.load(&Device::Cpu)?.to_dtype(DType::F32)?)))
        .collect()
}

/// Checkpoints of a bare encoder lack the prefix `bert.`; those converted from TensorFlow say gamma and beta.
fn present_name(name: &str) -> String {
    let name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    let bare = ["embeddings.", "encoder.", "pooler."].iter().any(|part| name.starts_with(part));
    if bare { format!("bert.{name}") } else { name }
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
        assert_eq!(present_name("embeddings.LayerNorm.gamma"), "bert.embeddings.LayerNorm.weight");
        assert_eq!(
            present_name("bert.encoder.layer.0.output.LayerNorm.beta"),
            "bert.encoder.layer.0.output.LayerNorm.bias"
        );
        assert_eq!(present_name("classifier.weight"), "classifier.weight");
    }

    #[test]
    fn a_model_that_is_nowhere_is_an_error_that_says_where_it_was_looked_for() {
        let error = Pretrained::load("./no/such/model").err().unwrap().to_string();
        assert!(error.contains("models/./no/such/model") && error.contains("make setup"), "{error}");
    }
}
