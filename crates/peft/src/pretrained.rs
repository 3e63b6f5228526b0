//! A pretrained checkpoint: where it is found, its configuration and its tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use ops::SharedWeights;

use crate::architectures::Config;
use crate::architectures::layout::Layout;
use crate::checkpoint::{Configuration, LabelMatch, Remark, Tensors, weight_files};
use crate::error::{Error, Result};
use crate::hub;
use crate::pooling::Pooling;

/// The files of a model folder that are read.
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// What a tokenizer can be made of where there is none.
pub(crate) const VOCABULARY: &str = "vocab.txt";
/// What changes how the tokenizer is used, if it is there.
pub(crate) const BESIDE_TOKENIZER: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// An encoder's checkpoint in memory, its tensors under Hugging Face's names with the encoder's prefix, such as `bert.`.
#[derive(Clone)]
pub struct Pretrained {
    /// As it was asked for: a folder or a hub id.
    name: String,
    folder: PathBuf,
    configuration: Configuration,
    /// The sizes of the encoder, from `config.json`.
    pub config: Config,
    pub(crate) layout: Layout,
    tensors: BTreeMap<String, Tensor>,
    /// The file that holds them, or the index of several.
    weights: PathBuf,
    sha256: Arc<str>,
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

    /// Loads the model in `folder`: `config.json`, `model.safetensors` or its parts with an index, `tokenizer.json`.
    ///
    /// # Errors
    /// When a file is missing or not what its name says, or as [`Configuration::read`].
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let configuration = Configuration::read(folder)?;
        let Tensors { by_name: tensors, path: weights, sha256 } = Tensors::read(folder, &configuration.layout)?;
        let (config, layout) = (configuration.config.clone(), configuration.layout.clone());
        let name = folder.display().to_string();
        let (device, shared) = (Device::Cpu, SharedWeights::default());
        Ok(Self {
            name,
            folder: folder.into(),
            configuration,
            config,
            layout,
            tensors,
            weights,
            sha256,
            device,
            shared,
        })
    }

    /// The same checkpoint on another device, where [`crate::Adapters`] and [`crate::Model::from_adapter`] then put their models, with one
    /// copy of what is frozen.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let moved = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), ops::to_device(tensor, device)?));
        let tensors = self.tensors.iter().map(moved).collect::<Result<_>>()?;
        Ok(Self { tensors, device: device.clone(), shared: SharedWeights::default(), ..self.clone() })
    }

    /// Where its tensors lie.
    pub(crate) fn device(&self) -> Device {
        self.device.clone()
    }

    /// The longest sequence that the encoder takes, in tokens.
    pub fn max_length(&self) -> usize {
        self.configuration.max_length()
    }

    /// How transformers' classifier makes a sequence's vector.
    pub fn pooling(&self) -> Pooling {
        self.configuration.pooling()
    }

    /// What should be known of how it was read.
    pub fn remarks(&self) -> &[Remark] {
        self.configuration.remarks()
    }

    /// What `config.json` says.
    pub(crate) fn configuration(&self) -> &Configuration {
        &self.configuration
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
        self.folder.join(TOKENIZER)
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

    /// The same for a task of these labels, none for a score: with its output layer where that is for them, its rows brought into their
    /// order, and without it where it is for others. The remark says what was done, unless there was nothing to do.
    ///
    /// # Errors
    /// When `config.json` has no list of labels in `id2label` or `label2id`.
    pub fn for_labels(&self, labels: &[&str]) -> Result<(Self, Option<Remark>)> {
        let Some(rows) = self.num_labels() else { return Ok((self.clone(), None)) };
        let (names, folder) = (self.configuration.labels()?, self.folder.clone());
        let wanted = labels.len().max(1);
        let taken =
            || if labels.is_empty() { vec!["a score".into()] } else { labels.iter().map(|l| l.to_string()).collect() };
        let matched = match names.problem_type.as_deref() {
            _ if rows != wanted || names.names.as_ref().is_some_and(|names| names.len() != rows) => LabelMatch::Others,
            Some("multi_label_classification") => LabelMatch::Others,
            Some("regression") if !labels.is_empty() => LabelMatch::Others,
            Some("single_label_classification") if labels.is_empty() => LabelMatch::Others,
            _ if labels.is_empty() => LabelMatch::Unnamed,
            _ => names.matched(labels),
        };
        match matched {
            LabelMatch::Order(order) if order.iter().copied().eq(0..rows) => Ok((self.clone(), None)),
            LabelMatch::Order(order) => {
                let found = names.names.unwrap_or_default();
                Ok((self.with_output_rows(&order)?, Some(Remark::LabelsReordered { folder, found })))
            }
            LabelMatch::Unnamed => Ok((self.clone(), Some(Remark::LabelsByNumber { folder, taken: taken() }))),
            LabelMatch::Others => {
                let found = names.described(rows);
                let expected = taken().join(", ");
                Ok((self.without_output(), Some(Remark::NewOutput { folder, found, expected })))
            }
        }
    }

    /// The same with the rows of its output layer in another order.
    fn with_output_rows(&self, order: &[usize]) -> Result<Self> {
        let order: Vec<u32> = order.iter().map(|&row| row as u32).collect();
        let order = Tensor::new(order.as_slice(), &self.device)?;
        let mut others = self.clone();
        for name in [self.output_weight(), format!("{}.bias", self.layout.head.output)] {
            if let Some(tensor) = others.tensors.get_mut(&name) {
                *tensor = tensor.index_select(&order, 0)?;
            }
        }
        Ok(others)
    }

    /// The name of the weight that the logits come from.
    pub(crate) fn output_weight(&self) -> String {
        format!("{}.weight", self.layout.head.output)
    }

    /// Its tensors by name, in the order of their names.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The SHA-256 digest of the encoder's tensors, their names and shapes, in hexadecimal digits: the same in one file or several, beside
    /// any head.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Whether the checkpoint has a tensor of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of that name, if the checkpoint has it in that shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Option<&Tensor> {
        self.tensors.get(name).filter(|tensor| tensor.dims() == shape)
    }

    /// The tensor of that name and shape.
    pub(crate) fn required(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let path = self.weights.clone();
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

/// The files of a model on this machine, by which it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// `config.json`, and the weights or their index and parts.
    pub weights: Vec<PathBuf>,
    /// Those of the tokenizer.
    pub tokenizer: Vec<PathBuf>,
}

impl ModelFiles {
    /// Those of the model that [`Pretrained::load`] finds by this name, without a download; none where it is not whole on this machine.
    pub fn find(name: &str) -> Option<Self> {
        let folder = find_folder(name).or_else(|| hub::cached(name))?;
        let (index, parts) = weight_files(&folder).ok()?;
        let mut weights = vec![folder.join(CONFIG), index];
        weights.extend(parts);
        weights.dedup();
        let mut tokenizer = vec![folder.join(TOKENIZER), folder.join(VOCABULARY)];
        tokenizer.extend(BESIDE_TOKENIZER.map(|name| folder.join(name)));
        tokenizer.retain(|file| file.is_file());
        Some(Self { weights, tokenizer })
    }

    /// Whether [`Pretrained::load`] would ask Hugging Face's hub for a model of this name: it is a hub id, not on this machine, and
    /// `HF_HUB_OFFLINE` is not set. To be told before it happens where the name is from a file that somebody else wrote.
    pub fn are_asked_of_the_hub(name: &str) -> bool {
        find_folder(name).is_none() && hub::is_asked(name)
    }
}

/// One name for a model, however its folder is spelled: that of a folder below `models/` of the project, or of a link there that leads to
/// it, or else the path from the present folder, or else the whole path. A name that is no folder here, such as a hub id, stays as it is.
pub fn model_name(name: &str) -> String {
    let Some(folder) = find_folder(name) else { return name.into() };
    let (Ok(folder), Ok(here)) = (folder.canonicalize(), std::env::current_dir().and_then(|here| here.canonicalize()))
    else {
        return name.into();
    };
    let models = || here.ancestors().map(|above| above.join("models"));
    let linked = models().flat_map(|models| names_of(&models, &folder));
    let in_models =
        models().filter_map(|models| Some(folder.strip_prefix(models.canonicalize().ok()?).ok()?.to_path_buf()));
    let below = folder.strip_prefix(&here).ok().map(Path::to_path_buf);
    let shorter = linked.chain(in_models).chain(below);
    let shorter = shorter.filter_map(|path| path.to_str().filter(|name| !name.is_empty()).map(String::from));
    let is_same =
        |name: &String| find_folder(name).and_then(|found| found.canonicalize().ok()).as_ref() == Some(&folder);
    let whole = || folder.to_str().unwrap_or(name).to_string();
    shorter.into_iter().find(is_same).unwrap_or_else(whole)
}

/// The names in a folder that lead to another, in their order.
fn names_of(models: &Path, folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(models).into_iter().flatten().flatten();
    let leads_there = |entry: &std::fs::DirEntry| entry.path().canonicalize().is_ok_and(|path| path == folder);
    let mut names: Vec<PathBuf> = entries.filter(leads_there).map(|entry| entry.file_name().into()).collect();
    names.sort();
    names
}

impl Configuration {
    /// That of a model, which is found as [`Pretrained::load`] finds it.
    ///
    /// # Errors
    /// When there is no such model, or as [`Configuration::read`].
    pub fn of_model(name: &str) -> Result<Self> {
        Self::read(&find(name)?)
    }
}

/// The folder of a model of that name, if it is on this machine and not in the hub's cache.
fn find_folder(name: &str) -> Option<PathBuf> {
    let mut tried = vec![PathBuf::from(name)];
    if let Ok(here) = std::env::current_dir() {
        // From the project's root and from any folder below it, such as notebooks/.
        tried.extend(here.ancestors().map(|folder| folder.join("models").join(name)));
    }
    tried.into_iter().find(|folder| folder.join(CONFIG).is_file())
}

fn find(name: &str) -> Result<PathBuf> {
    if let Some(folder) = find_folder(name) {
        return Ok(folder);
    }
    hub::model(name).map_err(|hub| Error::ModelNotFound {
        name: name.into(),
        tried: format!("{name:?} or models/{name}"),
        hub,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_nowhere_is_an_error_that_says_where_it_was_looked_for() {
        let error = Pretrained::load("./no/such/model").err().unwrap().to_string();
        assert!(error.contains("models/./no/such/model") && error.contains("make setup"), "{error}");
    }

    #[test]
    fn a_model_has_one_name_however_its_folder_is_spelled() {
        // The tests of a crate run in its folder.
        let name = "tests/oracle/tiny-bert";
        let whole = std::env::current_dir().unwrap().join(name);
        for spelled in [name, "./tests/oracle/tiny-bert/", "tests/../tests/oracle//tiny-bert", whole.to_str().unwrap()]
        {
            assert_eq!(model_name(spelled), name, "{spelled}");
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let (folder, link) = (elsewhere.path().join("model"), elsewhere.path().join("link"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(CONFIG), "{}").unwrap();
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let folder = folder.canonicalize().unwrap();
        assert_eq!(model_name(link.to_str().unwrap()), folder.to_str().unwrap());
        assert_eq!(model_name("some-lab/some-model"), "some-lab/some-model");
    }

    #[test]
    fn a_model_is_known_by_its_weights_and_its_tokenizer() {
        let files = ModelFiles::find("tests/oracle/tiny-bert").unwrap();
        let names: Vec<_> = files.weights.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["config.json", "model.safetensors"]);
        assert_eq!(ModelFiles::find("./no/such/model"), None);
    }
}
