//! Adapters in folders: `adapter_config.json` and `adapter_model.safetensors`, as Python's `peft` writes and reads them
//! (its `docs/source/developer_guides/checkpoint.md`, `config.py`, `utils/save_and_load.py`).
//!
//! The tensors are what was trained: of the adapter, of the head, of the modules to save, and biases. Their keys are
//! `base_model.model.` and this crate's names, which are Hugging Face's, with two exceptions: the bias of a layer that an adapter
//! stands beside is `….base_layer.bias`, and a layer norm that is tuned is `….ln_tuning_layers.weight` and `.bias`.
//!
//! VeRA's files hold the random matrices that its layers share besides, as `base_model.vera_A` and `base_model.vera_B`, if
//! `save_projection` is true. AdaLoRA's hold of each branch only the singular values that are not zero, with their vectors, once
//! some were masked; `rank_pattern` says which they were.
//!
//! Of prompt learning, the file holds the virtual tokens under `prompt_embeddings`, whatever made them, and the keys of what else was
//! trained begin with `base_model.` alone, since there is no tuner around the model.
//!
//! PEFT has no bottleneck adapters, no BitFit, and nothing for a whole model or a head alone. Their files have the same shape, with a
//! `peft_type` of their own: `BOTTLENECK` (with the fields of [`Bottleneck`](crate::Bottleneck); a tensor is called
//! `….output.adapter_down.weight`, `adapter_down` and `adapter_up` lying where AdapterHub puts them), `BITFIT` (with
//! `target_modules`, which may be null), `FULL` and `HEAD`. `pooling` is a field of this crate's too,
//! and written only where it is another than the base model's own, which PEFT's classifiers have. What else an adapter should remember,
//! its [`Conditions`], stands in the metadata of its tensors.
//!
//! What a file of PEFT's lacks and the base model has is the base model's, as in PEFT: its classifier, its pooler, its biases.
//!
//! A file is checked as a whole before anything is changed, so that no model is ever half loaded.

mod conditions;
mod config;
mod releases;
mod unused_names;
mod warning;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use crate::builder::SharedTensors;
use crate::error::{Error, Result};
use crate::files::write_folder;
use crate::model::{Model, ModelOptions};
use crate::parameters::{is_head, is_of_prompt};
use crate::pretrained::Pretrained;
use crate::sizes::new_numbers;
use crate::tuners::Method;

pub use conditions::Conditions;
pub use config::AdapterConfig;
pub use warning::Warning;
pub(crate) use weights::{PREFIX, Weights};

/// How often an adapter is read anew that another process writes meanwhile.
const READS: usize = 10;

/// An adapter apart from a model: as it was read from a folder, taken from a model, or made from others.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What its configuration says.
    pub config: AdapterConfig,
    /// What in its configuration was passed over.
    pub warnings: Vec<Warning>,
    /// What it was trained under.
    pub conditions: Conditions,
    pub(crate) weights: Weights,
}

impl Adapter {
    /// Reads the adapter in `folder`.
    ///
    /// # Errors
    /// When a file is missing or broken, a field means something that this crate does not do, a tensor holds a number that
    /// is not finite, or there is no head.
    pub fn read(folder: &Path) -> Result<Self> {
        // Another process may be writing it, and removes the configuration first: one that is still there stands beside its own tensors.
        let path = folder.join(config::FILE);
        for _ in 0..READS {
            let before = std::fs::File::open(&path).ok();
            let read = Self::read_once(folder);
            if before.map_or(read.is_err(), |before| is_at(&before, &path)) {
                return read;
            }
        }
        Err(Error::AdapterFile { path, source: std::io::Error::other("another process is writing it") })
    }

    fn read_once(folder: &Path) -> Result<Self> {
        let mut weights = Weights::read(folder)?;
        let (config, warnings) = AdapterConfig::read(folder)?;
        releases::update(&config.method, weights.tensors_mut())?;
        Ok(Self { config, warnings, conditions: Conditions::of(weights.metadata()), weights })
    }

    /// Writes it to `folder`, which is made if it is missing, so that this crate or Python's `peft` can load it. A folder that is new is
    /// whole or not there, whenever the process is killed. In one that is there an adapter of before is there no more before the first file
    /// of this one is: no reader finds new tensors beside an old configuration.
    ///
    /// # Errors
    /// When a number is not finite, or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.save_with(folder, &[])
    }

    /// The same, with further files, as names and bytes, such as who made it.
    ///
    /// # Errors
    /// As [`Adapter::save`].
    pub fn save_with(&self, folder: &Path, further: &[(&str, &[u8])]) -> Result<()> {
        let (weights, config) = (self.weights.file(folder, &self.conditions.metadata())?, self.config.to_json()?);
        // The configuration last: a folder without one is no adapter.
        write_folder(folder, further, &[(weights::FILE, &weights), (config::FILE, config.as_bytes())])
    }

    /// The same, called so in messages.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { weights: self.weights.named(name), ..self }
    }

    /// Whether it holds a classifier. One that does not has the base model's.
    pub fn has_head(&self) -> bool {
        self.weights.has_head()
    }

    /// What a model for this adapter on `pretrained` is built from. The number of labels is that of the head, the adapter's or else the
    /// checkpoint's; the pooling the adapter's or else the checkpoint's.
    ///
    /// # Errors
    /// When neither has a head.
    pub fn options(&self, pretrained: &Pretrained) -> Result<ModelOptions> {
        let num_labels = match pretrained.num_labels().filter(|_| !self.weights.has_head()) {
            Some(labels) => labels,
            None => self.weights.num_labels()?,
        };
        Ok(ModelOptions {
            pooling: self.config.pooling.unwrap_or(pretrained.pooling()),
            train_pooler: self.config.train_pooler,
            passes_over_names: true,
            new_numbers: Some(self.new_numbers(pretrained)),
            ..ModelOptions::new(self.config.method.clone(), num_labels)
        })
    }

    /// How many numbers may be new in a model for this adapter on `pretrained`: as many as the checkpoint has, four times as many as the
    /// adapter's tensors, and 4,194,304. Its configuration is so held against its tensors before there is memory for what it says.
    pub fn new_numbers(&self, pretrained: &Pretrained) -> usize {
        new_numbers(pretrained, Some(self.weights.iter().map(|(_, tensor)| tensor.elem_count()).sum()))
    }
}

/// Whether a file is still the one at that path. While it is open no other can have its number.
#[cfg(unix)]
fn is_at(file: &std::fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |about: &std::fs::Metadata| (about.dev(), about.ino());
    matches!((file.metadata(), path.metadata()), (Ok(before), Ok(now)) if number(&before) == number(&now))
}

#[cfg(not(unix))]
fn is_at(file: &std::fs::File, path: &Path) -> bool {
    let modified = |about: &std::fs::Metadata| about.modified().ok();
    matches!((file.metadata(), path.metadata()), (Ok(before), Ok(now)) if modified(&before) == modified(&now))
}

impl Model {
    /// Writes what is trained to `folder`, which is made if it is missing, so that this crate or Python's `peft` can load it.
    ///
    /// # Errors
    /// When a number is not finite, a file cannot be written, or the model was merged, and its encoder is no longer the checkpoint's.
    pub fn save_adapter(&self, folder: &Path) -> Result<()> {
        self.adapter_now()?.save(folder)
    }

    /// What is trained, as it is now: training that goes on does not change it.
    ///
    /// # Errors
    /// When the model was merged for good.
    pub fn adapter(&self) -> Result<Adapter> {
        let mut adapter = self.adapter_now()?;
        adapter.weights = adapter.weights.copy()?;
        Ok(adapter)
    }

    /// The same, without copies: it changes with the model.
    fn adapter_now(&self) -> Result<Adapter> {
        if self.is_unloaded() {
            return Err(Error::Merged);
        }
        let config = AdapterConfig::of(self)?;
        let trained = self.parameters().trainable().filter(|(name, _)| !is_of_prompt(name));
        let mut values: BTreeMap<String, Tensor> =
            trained.map(|(name, variable)| (name.to_string(), variable.as_detached_tensor())).collect();
        for (name, shape) in self.parameters().empty() {
            values.insert(name.into(), Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
        }
        config.method.config().leave_out(&mut values)?;
        let mut tensors: BTreeMap<String, Tensor> =
            values.into_iter().map(|(name, tensor)| (self.key(&name), tensor)).collect();
        if let Some(virtual_tokens) = self.prompt_embeddings()? {
            tensors.insert(weights::PROMPT.into(), virtual_tokens.detach());
        }
        if let Some(shared) = self.tuner().shared_tensors().filter(|_| config.method.config().saves_shared_tensors()) {
            tensors.extend(shared_keys(shared).map(|(key, _)| key).zip(shared.values()?));
        }
        let conditions = Conditions { max_length: None, base_sha256: Some(self.base_sha256().into()) };
        Ok(Adapter { config, warnings: Vec::new(), conditions, weights: Weights::new("an adapter in memory", tensors) })
    }

    /// Sets what is trained to the values of the adapter in `folder`, which must be one for a model of this method.
    ///
    /// # Errors
    /// As [`Adapter::read`], or when the adapter is for another method or another base model, or the model is merged. It is then as
    /// it was.
    pub fn load_adapter(&self, folder: &Path) -> Result<Vec<Warning>> {
        self.load(&Adapter::read(folder)?)
    }

    /// The model on `pretrained`, where that lies, with the adapter in `folder`, without dropout's settings of its own; and what was
    /// passed over.
    ///
    /// # Errors
    /// As [`Adapter::read`] and [`Model::new`], or when the adapter is for another base model.
    pub fn from_adapter(pretrained: &Pretrained, folder: &Path) -> Result<(Self, Vec<Warning>)> {
        let adapter = Adapter::read(folder)?;
        let model =
            Self::new(pretrained, &ModelOptions { device: pretrained.device(), ..adapter.options(pretrained)? })?;
        let warnings = model.load(&adapter)?;
        Ok((model, warnings))
    }

    /// Sets what is trained to an adapter's values.
    ///
    /// # Errors
    /// As [`Model::load_adapter`].
    pub fn load(&self, adapter: &Adapter) -> Result<Vec<Warning>> {
        let (config, weights) = (&adapter.config, &adapter.weights);
        if self.is_merged() {
            return Err(Error::LoadingMerged { path: weights.path().into() });
        }
        if let Some((field, expected, found)) = difference(self.method(), &config.method) {
            return Err(Error::AnotherMethod { path: weights.path().into(), field, expected, found });
        }
        let parameters: Vec<_> = self.parameters().trainable().map(|(name, v)| (self.key(name), v)).collect();
        let (mut values, mut from_base) = (Vec::with_capacity(parameters.len()), Vec::new());
        for ((name, _), (key, variable)) in self.parameters().trainable().zip(&parameters) {
            let is_lacking =
                weights.get(key).is_none() && !(is_head(name) && weights.has_head() && self.is_output(name));
            let base = self.base_value(name).filter(|_| is_lacking).cloned();
            let base = base.map_or_else(|| self.neutral_value(weights, name, variable), |base| Ok(Some(base)))?;
            let value = match base {
                Some(base) => {
                    from_base.push(name.to_string());
                    base
                }
                None => weights.required(key, variable.dims(), &parameters)?.clone(),
            };
            values.push(value.to_dtype(variable.dtype())?.to_device(variable.device())?);
        }
        let mut known: BTreeSet<&str> = parameters.iter().map(|(key, _)| key.as_str()).collect();
        let empty: Vec<String> = self.parameters().empty().map(|(name, _)| self.key(name)).collect();
        known.extend(empty.iter().map(String::as_str));
        let shared = self.tuner().shared_tensors();
        let saved = shared.filter(|_| config.method.config().saves_shared_tensors());
        let keys: Vec<(String, [usize; 2])> = saved.into_iter().flat_map(shared_keys).collect();
        let shared_values: Vec<Tensor> = keys
            .iter()
            .map(|(key, shape)| weights.required(key, shape, &parameters).cloned())
            .collect::<Result<_>>()?;
        known.extend(keys.iter().map(|(key, _)| key.as_str()));
        let mut warnings = adapter.warnings.clone();
        let unused = unused_names::warnings(config, &self.modules);
        warnings.extend(unused.map_err(|source| Error::AdapterConfig { path: weights.path().into(), source })?);
        warnings.extend(weights.extra(&known, &self.modules.all, |module| self.trains_in(module))?);
        warnings.extend((!from_base.is_empty()).then_some(Warning::FromBaseModel { names: from_base }));
        warnings.extend(self.base_warning(adapter));
        for ((_, variable), value) in parameters.iter().zip(values) {
            variable.set(&value)?;
        }
        match (saved, shared, config.method.config().shared_tensors_key()) {
            (Some(saved), ..) => saved.set(shared_values, self.dtype(), self.device())?,
            (None, Some(shared), Some(key)) => shared.draw(key, self.dtype(), self.device())?,
            _ => {}
        }
        Ok(warnings)
    }

    /// Whether a parameter of a module is trained, of itself or of an adapter beside it.
    fn trains_in(&self, module: &str) -> bool {
        let within = format!("{module}.");
        self.parameters().trainable().any(|(name, _)| name.starts_with(&within))
    }

    /// The checkpoint's value of a trained parameter, which PEFT leaves where a file lacks it. Of this crate's own methods files are whole.
    fn base_value(&self, name: &str) -> Option<&Tensor> {
        self.parameters().pretrained.get(name).filter(|_| self.tuner().is_in_peft())
    }

    /// What a parameter of an adapter is where the file has no tensor of its whole layer: with it the layer computes what the base model's
    /// does, as PEFT's new adapter would.
    fn neutral_value(&self, weights: &Weights, name: &str, like: &Var) -> Result<Option<Tensor>> {
        let layer =
            self.adapted().iter().find(|layer| name.strip_prefix(&layer.path).is_some_and(|s| s.starts_with('.')));
        let (Some(layer), Some(value)) = (layer, self.method().config().neutral_value()) else { return Ok(None) };
        let within = format!("{}.", self.key(&layer.path));
        if weights.iter().any(|(key, _)| key.starts_with(&within)) {
            return Ok(None);
        }
        Ok(Some((like.as_tensor().ones_like()?.detach() * value)?))
    }

    /// A warning where an adapter was trained on another base model: by its digest where the file has it, else by its name.
    fn base_warning(&self, adapter: &Adapter) -> Option<Warning> {
        match &adapter.conditions.base_sha256 {
            Some(file) if file == self.base_sha256() => None,
            Some(file) => Some(Warning::BaseContent {
                file: file.clone(),
                model: self.base_model().into(),
                found: self.base_sha256().into(),
            }),
            None => base_warning(&adapter.config, self.base_model()),
        }
    }

    /// Sets what is trained to the values that `other` has trained, so that training goes on from there on another task (LoRA's and
    /// RoBERTa's papers start MRPC, RTE and STS-B from MNLI so). The layer that the logits come from stays new unless both have
    /// `same_labels`. Returns the names of what stays new.
    ///
    /// # Errors
    /// When the method of `other`, what it trains or its base model is another, or a model is merged. This model is then as it was.
    pub fn start_from(&self, other: &Self, same_labels: bool) -> Result<Vec<String>> {
        if self.is_merged() || other.is_merged() {
            return Err(Error::LoadingMerged { path: other.base_model().into() });
        }
        let another = |field, expected: String, found: String| Error::AnotherStart { field, expected, found };
        if let Some((field, expected, found)) = difference(self.method(), other.method()) {
            return Err(another(field, expected, found));
        }
        if let Some(Warning::BaseModel { file, model }) = base_warning(&AdapterConfig::of(other)?, self.base_model()) {
            return Err(another("base model", model, file));
        }
        let is_new = |name: &str| !same_labels && self.is_output(name);
        for (name, variable) in other.parameters().trainable().filter(|(name, _)| !is_new(name)) {
            let expected = self.parameters().get(name).map(|ours| ours.dims());
            if expected != Some(variable.dims()) {
                let expected = expected.map_or("nothing".into(), |shape| format!("{name} of shape {shape:?}"));
                return Err(another("trained parameter", expected, format!("{name} of shape {:?}", variable.dims())));
            }
        }
        let mut new = Vec::new();
        for (name, variable) in self.parameters().trainable() {
            match other.parameters().get(name).filter(|_| !is_new(name)) {
                Some(theirs) => {
                    variable.set(&ops::to_device(&theirs.to_dtype(variable.dtype())?, variable.device())?)?
                }
                None => new.push(name.to_string()),
            }
        }
        Ok(new)
    }

    /// Whether a key of a file is of a tensor that layers share.
    pub(crate) fn is_shared(&self, key: &str) -> bool {
        self.tuner().shared_tensors().into_iter().flat_map(shared_keys).any(|(shared, _)| shared == key)
    }

    /// The key of a trained parameter in a file.
    pub(crate) fn key(&self, name: &str) -> String {
        let is_prompt = self.method().virtual_tokens() > 0;
        match (self.parameters().part(name), name.rsplit_once('.')) {
            _ if is_of_prompt(name) => weights::PROMPT.into(),
            _ if is_prompt => format!("{}{name}", weights::PREFIX_OF_PROMPTS),
            (Some(part), Some((module, last))) => format!("{}{module}.{part}.{last}", weights::PREFIX),
            _ => format!("{}{name}", weights::PREFIX),
        }
    }
}

/// The keys and shapes of tensors that layers share: parts of PEFT's model, not of Hugging Face's.
fn shared_keys(shared: &dyn SharedTensors) -> impl Iterator<Item = (String, [usize; 2])> {
    shared.shapes().into_iter().map(|(name, shape)| (format!("{}{name}", weights::PREFIX_OF_PROMPTS), shape))
}

/// A warning where a file names another base model. Only the last part of a name counts: the same model may lie in another
/// folder, or come from a hub.
pub(crate) fn base_warning(config: &AdapterConfig, ours: &str) -> Option<Warning> {
    let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_string();
    let theirs = config.base_model_name_or_path.as_ref()?;
    let warning = Warning::BaseModel { file: theirs.clone(), model: ours.into() };
    (last(theirs) != last(ours)).then_some(warning)
}

/// The first field by which two methods compute differently from the same trained values, with both values.
fn difference(ours: &Method, theirs: &Method) -> Option<(&'static str, String, String)> {
    let fields = |method: &Method| {
        let mut fields = vec![("peft_type", method.peft_type().to_string())];
        fields.extend(method.config().computed_by());
        fields
    };
    let pairs = fields(ours).into_iter().zip(fields(theirs));
    pairs.map(|((field, ours), (_, theirs))| (field, ours, theirs)).find(|(_, ours, theirs)| ours != theirs)
}
