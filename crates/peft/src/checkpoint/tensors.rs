//! The tensors of a checkpoint: one safetensors file or several with an index, brought to the names that transformers has today.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::architectures::layout::Layout;
use crate::error::{Error, Result};
use crate::numerics::is_finite;
use crate::wrong_content::WrongContent;

/// The file of a whole checkpoint.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// What says which parts a checkpoint in parts has.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// What the output layers of language models that share the table of words with the encoder are called.
const TIED: [&str; 5] = [
    "cls.predictions.decoder.weight",
    "lm_head.decoder.weight",
    "vocab_projector.weight",
    "generator_lm_head.weight",
    "decoder.weight",
];

/// The tensors of a checkpoint by name, in f32.
pub(crate) struct Tensors {
    pub by_name: BTreeMap<String, Tensor>,
    /// The file that holds them, or the index of several.
    pub path: PathBuf,
    /// The digest of the encoder's tensors.
    pub sha256: Arc<str>,
}

impl Tensors {
    /// Those in `folder`, under present names and with the encoder's prefix.
    pub(crate) fn read(folder: &Path, layout: &Layout) -> Result<Self> {
        let (path, files) = weight_files(folder)?;
        let mut read = Files::default();
        for file in &files {
            read.add(file)?;
        }
        let Files { tensors, digests, tied } = read;
        let of_encoder = layout.path("");
        let mut digest = Sha256::new();
        let named = digests.iter().map(|(name, digest)| (present_name(name, layout), digest));
        // In the order of present names, which may be another than that of the old ones.
        for (name, one) in named.collect::<BTreeMap<_, _>>().iter().filter(|(name, _)| name.starts_with(&of_encoder)) {
            digest.update(name);
            digest.update(one);
        }
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        let by_name = tensors.into_iter().map(|(name, tensor)| (present_name(&name, layout), tensor)).collect();
        let mut tensors = Self { by_name, path, sha256 };
        tensors.untie(&tied, layout);
        Ok(tensors)
    }

    /// Gives each tensor that is stored under another's name, since they share their numbers, its own besides: as the file's metadata
    /// says, and the table of words where a language model's output layer stands for it.
    fn untie(&mut self, tied: &Map<String, Value>, layout: &Layout) {
        let words = layout.path(&format!("{}.weight", layout.embeddings.words));
        let said = tied
            .iter()
            .filter_map(|(name, kept)| Some((present_name(name, layout), present_name(kept.as_str()?, layout))));
        let known = TIED.iter().map(|output| (words.clone(), output.to_string()));
        for (name, kept) in said.chain(known).collect::<Vec<_>>() {
            if let (false, Some(tensor)) = (self.by_name.contains_key(&name), self.by_name.get(&kept)) {
                self.by_name.insert(name, tensor.clone());
            }
        }
    }
}

/// The names of the tensors in `folder`.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let (_, files) = weight_files(folder)?;
    let mut names = Vec::new();
    for path in files {
        let bytes = contents(&path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|source| Error::Weights { path, source })?;
        names.extend(file.names().into_iter().map(String::from));
    }
    names.sort();
    Ok(names)
}

/// What says where the tensors in `folder` lie, and the files that hold them.
pub(crate) fn weight_files(folder: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let (whole, index) = (folder.join(WEIGHTS), folder.join(INDEX));
    if whole.exists() {
        return Ok((whole.clone(), vec![whole]));
    }
    if !index.exists() {
        return Err(no_weights(folder));
    }
    let names = part_names(&index)?;
    let files: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    match files.iter().find(|file| !file.exists()) {
        Some(missing) => Err(Error::MissingShard { path: index, missing: missing.clone(), of: files.len() }),
        None => Ok((index, files)),
    }
}

/// The files that an index names.
pub(crate) fn part_names(index: &Path) -> Result<BTreeSet<String>> {
    let bytes = std::fs::read(index).map_err(|source| Error::Read { path: index.into(), source })?;
    if let Some(found) = WrongContent::of(&bytes) {
        return Err(Error::Content { path: index.into(), expected: "the index of a checkpoint in parts", found });
    }
    let json: Option<Value> = serde_json::from_slice(&bytes).ok();
    let map = json.as_ref().and_then(|json| json.get("weight_map")?.as_object());
    let names = map.and_then(|map| map.values().map(|file| file.as_str().map(String::from)).collect::<Option<_>>());
    let names: Option<BTreeSet<String>> =
        names.filter(|names: &BTreeSet<String>| names.iter().all(|name| is_file_name(name)));
    names.ok_or_else(|| Error::Config {
        path: index.into(),
        found: "no weight_map of tensors to files beside it".into(),
    })
}

/// Whether an index names a file beside it, and none elsewhere.
fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}

/// What a folder without safetensors files holds in their place.
fn no_weights(folder: &Path) -> Error {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let of_training =
        |name: &str| ["training_args", "optimizer", "scheduler"].iter().any(|start| name.starts_with(start));
    let ends = |ends: &[&str]| -> Vec<String> {
        let is_one = |name: &&String| ends.iter().any(|end| name.ends_with(end)) && !of_training(name);
        names.iter().filter(is_one).cloned().collect()
    };
    let (found, advice) = match (
        ends(&[".safetensors"]),
        ends(&[".bin", ".pt", ".pth", ".ckpt"]),
        ends(&[".h5", ".msgpack", ".onnx", ".gguf"]),
    ) {
        (other, ..) if !other.is_empty() => {
            (other, "give it the name model.safetensors, if it is the whole model".to_string())
        }
        (_, pickles, _) if !pickles.is_empty() => (pickles, conversion(folder)),
        (.., others) if !others.is_empty() => {
            (others, "take a checkpoint that has safetensors files, or convert it with transformers".into())
        }
        _ => (Vec::new(), "download it, or name another folder".into()),
    };
    Error::NoWeights { folder: folder.into(), found, advice }
}

/// How to convert a pickle, by the class that keeps all of it.
fn conversion(folder: &Path) -> String {
    let config = std::fs::read(folder.join("config.json")).ok();
    let json = config.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let class = json.as_ref().and_then(|json| json.get("architectures")?.get(0)?.as_str()).unwrap_or("AutoModel");
    let folder = folder.display();
    format!(
        "a pickle is not read, since loading one can run any program; convert it once, where you trust it: python -c \"from transformers \
         import {class}; {class}.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )
}

/// The bytes of a safetensors file, if it is none of those that lie in the place of one.
fn contents(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    match WrongContent::of(&bytes) {
        Some(found) => Err(Error::Content { path: path.into(), expected: "a safetensors file", found }),
        None => Ok(bytes),
    }
}

/// What the files of a checkpoint hold, under the names that stand there.
#[derive(Default)]
struct Files {
    tensors: BTreeMap<String, Tensor>,
    /// Of each tensor's type, shape and bytes.
    digests: BTreeMap<String, Vec<u8>>,
    /// The names of tensors that are stored under another's, with that.
    tied: Map<String, Value>,
}

impl Files {
    /// Adds what a file holds.
    fn add(&mut self, path: &Path) -> Result<()> {
        let bytes = contents(path)?;
        let broken = |source| Error::Weights { path: path.into(), source };
        let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        self.tied.extend(header.metadata().iter().flatten().map(|(name, kept)| (name.clone(), kept.clone().into())));
        for (name, view) in file.iter() {
            match view.dtype() {
                Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
                    let kind = format!("{:?} {:?}", view.dtype(), view.shape());
                    let digest = Sha256::new().chain_update(kind).chain_update(view.data()).finalize();
                    self.digests.insert(name.into(), digest.to_vec());
                    let tensor = view.load(&Device::Cpu)?.to_dtype(DType::F32)?;
                    if !is_finite(&tensor)? {
                        return Err(Error::NotFinite { path: path.into(), key: name.into() });
                    }
                    self.tensors.insert(name.into(), tensor);
                }
                // Whole numbers are buffers, such as position_ids; a weight of them is quantized.
                dtype if name.ends_with(".weight") || name.ends_with(".bias") => {
                    let (path, name, dtype) = (path.into(), name.into(), format!("{dtype:?}"));
                    return Err(Error::Quantized { path, name, dtype });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checkpoints of a bare encoder lack its prefix; those converted from TensorFlow say gamma and beta.
fn present_name(name: &str, layout: &Layout) -> String {
    let renamed = |old: &str, new: &str| name.strip_suffix(old).map(|module| format!("{module}{new}"));
    let name = renamed(".gamma", ".weight").or_else(|| renamed(".beta", ".bias")).unwrap_or_else(|| name.into());
    let bare = layout.bare.iter().any(|part| name.starts_with(part));
    if bare { layout.path(&name) } else { name }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;
    use crate::architectures::Architecture;

    #[test]
    fn names_of_bare_and_of_converted_checkpoints_become_hugging_faces() {
        let present = |architecture: Architecture, name| {
            let (_, layout) = architecture.read(&serde_json::json!({})).unwrap();
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
}
