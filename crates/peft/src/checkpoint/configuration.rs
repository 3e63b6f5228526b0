//! `config.json`: which architecture it is of, its sizes and its layout.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::labels::LabelNames;
use super::remark::Remark;
use super::tensors;
use crate::architectures::layout::Layout;
use crate::architectures::{Architecture, Config, FieldRole};
use crate::error::{Error, Result};
use crate::pooling::Pooling;
use crate::similar_names::nearest;
use crate::wrong_content::WrongContent;

const FILE: &str = "config.json";
/// ModernBERT's field for the pooling, and of merged checkpoints of other architectures, whose classes in transformers have no choice.
pub(crate) const POOLING_FIELD: &str = "classifier_pooling";

/// What `config.json` says.
#[derive(Clone, Debug)]
pub struct Configuration {
    path: PathBuf,
    fields: Map<String, Value>,
    /// The sizes of the encoder.
    pub config: Config,
    pub(crate) layout: Layout,
    remarks: Vec<Remark>,
}

impl Configuration {
    /// That of the model in `folder`. Fields that the file lacks have the defaults of transformers' class; a missing `model_type` follows
    /// from `architectures`, or from the names of the tensors.
    ///
    /// # Errors
    /// When the file is missing or no configuration of a known architecture, or a field means something that this crate does not do.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let invalid = |found: String| Error::Config { path: path.clone(), found };
        let bytes = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        if let Some(found) = WrongContent::of(&bytes) {
            return Err(Error::Content { path, expected: "the configuration of a model", found });
        }
        let fields: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        let mut remarks = Vec::new();
        let architecture = match said(&path, &fields)? {
            Some(architecture) => architecture,
            None => {
                let (architecture, from) = inferred(folder, &path, &fields)?;
                remarks.push(Remark::ModelType { path: path.clone(), taken: architecture.model_type(), from });
                architecture
            }
        };
        let read = architecture.read(&Value::Object(fields.clone()));
        let (config, mut layout) = read.map_err(|error| invalid(error.to_string()))?;
        if let Some(pooling) = fields.get(POOLING_FIELD).filter(|pooling| !pooling.is_null()) {
            let unfit = |error: serde_json::Error| invalid(format!("{POOLING_FIELD} {pooling}: {error}"));
            layout.head.pooling = Pooling::deserialize(pooling).map_err(unfit)?;
        }
        check_heads(&config).map_err(invalid)?;
        remarks.extend(unknown_fields(&path, &fields, architecture));
        Ok(Self { path, fields, config, layout, remarks })
    }

    /// What should be known of how it was read.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// How a sequence's vector is made: as `classifier_pooling` says, by the first token where there is no such field.
    pub fn pooling(&self) -> Pooling {
        self.layout.head.pooling
    }

    /// A remark where the pooling is another than the file says.
    pub(crate) fn other_pooling(&self, taken: Pooling) -> Option<Remark> {
        let said = self.fields.get(POOLING_FIELD).is_some_and(|pooling| !pooling.is_null());
        let folder = self.path.parent().unwrap_or(&self.path).to_path_buf();
        (said && taken != self.pooling()).then(|| Remark::OtherPooling { folder, said: self.pooling(), taken })
    }

    /// The longest sequence that the encoder takes, in tokens.
    pub fn max_length(&self) -> usize {
        let rows = self.config.max_position_embeddings;
        self.layout.embeddings.positions.map_or(rows, |positions| positions.longest(rows))
    }

    /// The labels that it names.
    ///
    /// # Errors
    /// When `id2label` or `label2id` is no list of labels.
    pub fn labels(&self) -> Result<LabelNames> {
        LabelNames::read(&self.fields).map_err(|found| Error::Config { path: self.path.clone(), found })
    }

    /// Its fields, as they stand in the file.
    pub(crate) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }
}

/// The architecture that `model_type` names, if there is one.
fn said(path: &Path, fields: &Map<String, Value>) -> Result<Option<Architecture>> {
    let known = || Architecture::ALL.map(Architecture::model_type).join(", ");
    match fields.get("model_type") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(kind)) => {
            let found = Architecture::ALL.into_iter().find(|architecture| architecture.model_type() == kind);
            found.map(Some).ok_or_else(|| Error::Architecture {
                path: path.into(),
                found: kind.clone(),
                known: known(),
            })
        }
        Some(other) => Err(Error::Architecture { path: path.into(), found: other.to_string(), known: known() }),
    }
}

/// The architecture of a file that names none, and what it follows from.
fn inferred(folder: &Path, path: &Path, fields: &Map<String, Value>) -> Result<(Architecture, String)> {
    let classes = fields.get("architectures").and_then(Value::as_array);
    if let Some(class) = classes.and_then(|classes| classes.first()).and_then(Value::as_str) {
        return match of_class(class) {
            Some(architecture) => Ok((architecture, format!("architectures [{class:?}]"))),
            None => Err(unknown(
                path,
                format!("no model_type, and architectures [{class:?}], which is none of those known"),
            )),
        };
    }
    let names = tensors::names(folder)?;
    match of_names(&names, fields).as_slice() {
        [(architecture, name)] => Ok((*architecture, format!("its tensor {name}"))),
        _ => {
            Err(unknown(path, "no model_type, and neither architectures nor the names of the tensors say which".into()))
        }
    }
}

fn unknown(path: &Path, found: String) -> Error {
    let known = Architecture::ALL.map(Architecture::model_type).join(", ");
    Error::Config { path: path.into(), found: format!("{found}; add a line \"model_type\": one of {known}") }
}

/// The architecture of one of transformers' classes, such as `BertForMaskedLM`.
fn of_class(class: &str) -> Option<Architecture> {
    let stem = class.split("For").next().unwrap_or(class);
    let stem = stem.strip_suffix("Model").unwrap_or(stem);
    Architecture::ALL.into_iter().find(|architecture| architecture.class_stem() == stem)
}

/// The architectures whose tensors have such names, each with one that says so.
fn of_names<'a>(names: &'a [String], fields: &Map<String, Value>) -> Vec<(Architecture, &'a String)> {
    // XLM-R's are RoBERTa's, and so is all that it computes.
    let candidates = Architecture::ALL.into_iter().filter(|architecture| *architecture != Architecture::XlmRoberta);
    candidates
        .filter_map(|architecture| {
            let (_, layout) = architecture.read(&Value::Object(fields.clone())).ok()?;
            let words = format!("{}.weight", layout.embeddings.words);
            let in_full = layout.path(&words);
            let is_bare = |name: &&String| **name == words && is_bare_of(architecture, names, fields);
            names.iter().find(|name| **name == in_full).or(names.iter().find(is_bare)).map(|name| (architecture, name))
        })
        .collect()
}

/// Whether the tensors of a bare encoder, which lack its prefix, can be those of an architecture.
fn is_bare_of(architecture: Architecture, names: &[String], fields: &Map<String, Value>) -> bool {
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    let one_type = fields.get("type_vocab_size").and_then(Value::as_u64) == Some(1);
    let is_electra = has("embeddings_project.") || fields.contains_key("embedding_size");
    match architecture {
        Architecture::Bert => has("attention.self.query.") && !one_type && !is_electra,
        Architecture::Roberta => has("attention.self.query.") && one_type && !is_electra,
        Architecture::Electra => has("attention.self.query.") && is_electra,
        Architecture::DistilBert => has("attention.q_lin."),
        Architecture::Mpnet => has("attention.attn.q."),
        Architecture::DebertaV2 => has("attention.self.query_proj."),
        Architecture::ModernBert => has("attn.Wqkv."),
        Architecture::XlmRoberta => false,
    }
}

fn check_heads(config: &Config) -> std::result::Result<(), String> {
    let heads = config.num_attention_heads;
    if heads == 0 || !config.hidden_size.is_multiple_of(heads) {
        return Err(format!("hidden_size {} that {heads} attention heads do not divide", config.hidden_size));
    }
    Ok(())
}

/// A remark on the fields that are in no list, if there are such.
fn unknown_fields(path: &Path, fields: &Map<String, Value>, architecture: Architecture) -> Option<Remark> {
    let roles = architecture.config_fields();
    let aliases = architecture.aliases().iter().map(|(alias, _)| *alias);
    let known: Vec<&str> = roles.iter().map(|(name, _)| name.as_str()).chain(aliases).collect();
    let used: Vec<&str> =
        roles.iter().filter(|(_, role)| matches!(role, FieldRole::Used(_))).map(|(name, _)| name.as_str()).collect();
    let one = |field: &String| {
        // A misspelt field, perhaps.
        let near = used.iter().find(|name| strsim::levenshtein(field, name) <= 2).copied();
        format!("{field}{}", near.map(|near| nearest(field, [near])).unwrap_or_default())
    };
    let unknown: Vec<String> = fields.keys().filter(|field| !known.contains(&field.as_str())).map(one).collect();
    (!unknown.is_empty()).then(|| Remark::UnknownFields { path: path.into(), fields: unknown })
}
