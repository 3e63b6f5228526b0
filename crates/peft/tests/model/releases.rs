//! Adapters that releases of PEFT from 0.3 on wrote, against what those releases compute with them, as `oracle/make_releases.py` stored it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use peft::{Adapter, AdapterConfig, FileField, Model, ModelOptions, Sequence, Warning};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::support::*;

#[derive(Deserialize)]
struct Made {
    sequences: Vec<Vec<u32>>,
    logits: Vec<Vec<f64>>,
}

/// Every stored adapter's folder.
fn folders() -> Vec<PathBuf> {
    let inner = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = inner(oracle_folder().join("releases")).flat_map(inner).collect();
    folders.sort();
    folders
}

#[test]
fn an_adapter_of_every_release_gives_the_logits_that_the_release_gave() {
    let folders = folders();
    assert!(folders.len() > 55, "{}", folders.len());
    for folder in folders {
        let Made { sequences, logits } =
            serde_json::from_slice(&std::fs::read(folder.join("logits.json")).unwrap()).unwrap();
        let sequence = |ids: Vec<u32>| Sequence { token_type_ids: vec![0; ids.len()], input_ids: ids };
        let sequences: Vec<Sequence> = sequences.into_iter().map(sequence).collect();
        let adapter = Adapter::read(&folder).unwrap();
        let options = ModelOptions { dtype: DType::F32, dropout: Some(0.0), ..adapter.options(&tiny()).unwrap() };
        let model = Model::new(&tiny(), &options).unwrap();
        let warnings = model.load(&adapter).unwrap();
        let name = folder.strip_prefix(oracle_folder()).unwrap().display().to_string();
        let found = flat(&model.predict(&batch(&sequences)).unwrap());
        close(&name, &found, &logits.concat(), 1e-5 * largest(&found).max(1.0));
        // What a release left out of its file is said, and nothing else is.
        for warning in warnings {
            let expected = match warning {
                Warning::FromBaseModel { .. } => name.contains("lora_only"),
                Warning::UnknownTensor { .. } => name.contains("0.14.0/lora_dense_in_saved"),
                _ => false,
            };
            assert!(expected, "{name}: {warning}");
        }
    }
}

/// Release, `peft_type`, field, default.
type Releases = BTreeMap<String, BTreeMap<String, Map<String, Value>>>;

/// As `oracle/make_peft_fields.py` stored them.
fn releases() -> Releases {
    serde_json::from_slice(&std::fs::read(oracle_folder().join("peft_fields.json")).unwrap()).unwrap()
}

#[test]
fn no_field_of_any_release_is_unlisted() {
    for (release, classes) in releases() {
        for (kind, fields) in classes {
            let known = AdapterConfig::fields(&kind).unwrap();
            let unlisted: Vec<&String> =
                fields.keys().filter(|field| !known.iter().any(|(name, _)| name == *field)).collect();
            assert!(unlisted.is_empty(), "PEFT {release}, {kind}: {unlisted:?}");
        }
    }
}

#[test]
fn a_field_that_is_not_supported_is_refused_by_name_where_it_says_something() {
    for (kind, fields) in &releases()["0.21.2"] {
        for (name, role) in AdapterConfig::fields(kind).unwrap() {
            if role != FileField::NotSupported {
                continue;
            }
            let there = tempfile::tempdir().unwrap();
            let mut fields = fields.clone();
            fields.insert("target_modules".into(), json!(["query"]));
            fields.insert(name.clone(), json!("something"));
            std::fs::write(there.path().join("adapter_config.json"), Value::Object(fields).to_string()).unwrap();
            let message = AdapterConfig::read(there.path()).unwrap_err().to_string();
            assert!(message.contains(&name) && message.contains("not supported"), "{kind}: {message}");
        }
    }
}

#[test]
fn the_page_of_pefts_fields_says_what_the_code_does() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/adapter-config.md");
    let page = std::fs::read_to_string(page).unwrap();
    let common = ["peft_type", "task_type", "base_model_name_or_path", "modules_to_save", "pooling"];
    let common = [&common[..], &["auto_mapping", "inference_mode", "peft_version", "revision"]].concat();
    let row = |kind: &String| {
        let fields = AdapterConfig::fields(kind).unwrap();
        let cell = |wanted: FileField| {
            let of_kind = fields.iter().filter(|(name, role)| *role == wanted && !common.contains(&name.as_str()));
            let names: Vec<String> = of_kind.map(|(name, _)| format!("`{name}`")).collect();
            if names.is_empty() { "–".to_string() } else { names.join(", ") }
        };
        let [used, without, refused] = [FileField::Used, FileField::WithoutEffect, FileField::NotSupported].map(cell);
        format!("| `{kind}` | {used} | {without} | {refused} |")
    };
    let lacking: Vec<String> = releases()["0.21.2"].keys().map(row).filter(|row| !page.contains(row)).collect();
    assert!(lacking.is_empty(), "docs/adapter-config.md lacks these rows:\n{}", lacking.join("\n"));
    assert!(common.iter().all(|name| page.contains(&format!("`{name}`"))));
}
