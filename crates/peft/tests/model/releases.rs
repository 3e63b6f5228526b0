//! Adapters that releases of PEFT from 0.3 on wrote, against what those releases compute with them, as `oracle/make_releases.py` stored it.

use std::path::PathBuf;

use candle_core::DType;
use peft::{Adapter, Model, ModelOptions, Sequence, Warning};
use serde::Deserialize;

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
