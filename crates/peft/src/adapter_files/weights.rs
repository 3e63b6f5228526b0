//! `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor, Var};
use safetensors::SafeTensors;

use super::warning::Warning;
use crate::error::{Error, Result};
use crate::files::tensor_file;
use crate::numerics::is_finite;
use crate::parameters::{HEADS, POOLER};
use crate::similar_names::nearest;
use crate::tuners::Method;
use crate::wrong_content::WrongContent;

pub(super) const FILE: &str = "adapter_model.safetensors";
/// What releases of PEFT before 0.5 write unless they are told otherwise.
const PICKLE: &str = "adapter_model.bin";
/// Before every key: PEFT's model and its tuner, around Hugging Face's.
pub(crate) const PREFIX: &str = "base_model.model.";
/// Before the keys of what prompt learning trains besides virtual tokens: PEFT's model alone.
pub(super) const PREFIX_OF_PROMPTS: &str = "base_model.";
/// The key of virtual tokens.
pub(super) const PROMPT: &str = "prompt_embeddings";

/// The tensors of an adapter, all of them finite, by key.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    /// The file that they are from, or the name of the adapter: for messages.
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    /// That of the file.
    metadata: BTreeMap<String, String>,
}

impl Weights {
    pub(crate) fn new(path: impl Into<PathBuf>, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { path: path.into(), tensors, metadata: BTreeMap::new() }
    }

    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() && folder.join(PICKLE).exists() {
            return Err(Error::PickledAdapter { folder: folder.into() });
        }
        let bytes = std::fs::read(&path).map_err(|source| Error::AdapterFile { path: path.clone(), source })?;
        if let Some(found) = WrongContent::of(&bytes) {
            return Err(Error::Content { path, expected: "the tensors of an adapter", found });
        }
        let broken = |source| Error::Weights { path: path.clone(), source };
        let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut tensors = BTreeMap::new();
        for (key, view) in file.iter() {
            let tensor = view.load(&Device::Cpu)?;
            if !is_finite(&tensor)? {
                return Err(Error::NotFinite { path, key: key.into() });
            }
            tensors.insert(key.to_string(), tensor);
        }
        Ok(Self { path, tensors, metadata })
    }

    /// The bytes of their file in `folder`, with this metadata.
    pub(super) fn file(&self, folder: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        tensor_file(&folder.join(FILE), &self.tensors, metadata)
    }

    /// That of the file.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same of an adapter that goes by a name.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { path: name.into(), ..self }
    }

    /// On the CPU, with storage of their own.
    pub(crate) fn copy(self) -> Result<Self> {
        let copy = |(key, tensor): (String, Tensor)| Ok((key, tensor.to_device(&Device::Cpu)?.copy()?));
        Ok(Self { tensors: self.tensors.into_iter().map(copy).collect::<Result<_>>()?, ..self })
    }

    /// Each by its key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(key, tensor)| (key.as_str(), tensor))
    }

    /// The rows of the head's last matrix: of `classifier.weight`, or of `classifier.out_proj.weight` in RoBERTa's.
    pub(crate) fn num_labels(&self) -> Result<usize> {
        let is_weight = |key: &&String| is_head(key) && key.ends_with(".weight");
        let last = self.tensors.keys().rfind(is_weight).and_then(|key| self.tensors[key].dims().first().copied());
        last.ok_or_else(|| self.missing(&format!("{PREFIX}classifier.weight"), &[]))
    }

    /// Whether the file has any tensor of the head that PEFT saves.
    pub(crate) fn has_head(&self) -> bool {
        self.tensors.keys().any(|key| is_head(key))
    }

    /// Each by its key, to be changed.
    pub(crate) fn tensors_mut(&mut self) -> &mut BTreeMap<String, Tensor> {
        &mut self.tensors
    }

    /// The tensor of a key, if the file has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Tensor> {
        self.tensors.get(key)
    }

    /// The tensor that a trained parameter is set to.
    pub(crate) fn required(&self, key: &str, shape: &[usize], parameters: &[(String, &Var)]) -> Result<&Tensor> {
        let tensor = self.tensors.get(key).ok_or_else(|| self.missing(key, parameters))?;
        if tensor.dims() == shape {
            return Ok(tensor);
        }
        let fits = |(key, variable): &&(String, &Var)| {
            self.tensors.get(key).is_some_and(|tensor| tensor.dims() == variable.dims())
        };
        let fitting = parameters.iter().filter(fits).count();
        Err(Error::AdapterShape {
            path: self.path.clone(),
            key: key.into(),
            expected: shape.to_vec(),
            found: tensor.dims().to_vec(),
            fitting,
            of: parameters.len(),
        })
    }

    /// A warning for each tensor whose key is not known: nothing is set to it.
    ///
    /// # Errors
    /// When one belongs to a layer that the model has not: it is then an adapter for another base model. Or when it belongs to one that
    /// is neither adapted nor trained whole: the adapter is then of a kind that this crate has not, such as LoRA on embeddings.
    pub(crate) fn extra(
        &self,
        known: &BTreeSet<&str>,
        modules: &BTreeSet<String>,
        is_trained: impl Fn(&str) -> bool,
    ) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        for key in self.tensors.keys().filter(|key| !known.contains(key.as_str()) && !is_copy(key)) {
            let name = name(key);
            let mut parts = Method::ALL_TENSOR_NAMES.iter().copied().flatten();
            let adapted = parts.find_map(|part| name.split_once(part)).map(|(module, _)| module);
            if let Some(module) = adapted.filter(|module| !holds(modules, module)) {
                let nearest = nearest(module, modules.iter().map(String::as_str));
                return Err(Error::NoSuchModule { path: self.path.clone(), key: key.clone(), nearest });
            }
            if adapted.is_some_and(|module| modules.contains(module) && !is_trained(module)) {
                return Err(Error::NotAdapted { path: self.path.clone(), key: key.clone() });
            }
            let nearest = nearest(key, known.iter().copied());
            warnings.push(Warning::UnknownTensor { key: key.clone(), nearest });
        }
        Ok(warnings)
    }

    pub(crate) fn missing(&self, key: &str, parameters: &[(String, &Var)]) -> Error {
        let path = self.path.clone();
        if is_head(key) {
            return Error::MissingHead { path, key: key.into() };
        }
        // PEFT saves none of these but where it is told to.
        let first = name(key).split('.').next().unwrap_or_default();
        if crate::parameters::is_head(first) || name(key).starts_with(POOLER) {
            let module = if crate::parameters::is_head(first) { first } else { "pooler" };
            return Error::NotSaved { path, key: key.into(), module: module.into() };
        }
        // A name that is nearly right belongs to no other parameter.
        let is_free = |name: &&String| parameters.iter().all(|(key, _)| key != *name);
        let nearest = nearest(key, self.tensors.keys().filter(is_free).map(String::as_str));
        Error::MissingAdapterTensor { path, key: key.into(), nearest }
    }
}

/// Whether a module is one of `modules`, or one of them lies in it.
fn holds(modules: &BTreeSet<String>, module: &str) -> bool {
    let within = format!("{module}.");
    modules.contains(module) || modules.range(within.clone()..).next().is_some_and(|name| name.starts_with(&within))
}

/// A key without what PEFT's files have before it.
pub(super) fn name(key: &str) -> &str {
    key.strip_prefix(PREFIX).or_else(|| key.strip_prefix(PREFIX_OF_PROMPTS)).unwrap_or(key)
}

/// Whether a key is of the head.
fn is_head(key: &str) -> bool {
    let module = name(key).split('.').next();
    module.is_some_and(|module| HEADS.contains(&module)) && !is_copy(key)
}

/// With `bias: "all"`, PEFT writes the biases of a module to save three times: under its own name, and these (`tuners_utils.py`,
/// `_get_learnable_bias_state_dict`). On loading it reads the first.
fn is_copy(key: &str) -> bool {
    key.contains(".original_module.") || key.contains(".modules_to_save.")
}
