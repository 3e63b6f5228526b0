//! Model folders that are not what they should be: each error names the file, what was expected and what was found.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use peft::{Method, Model, ModelOptions, Pretrained, Result};
use serde_json::{Value, json};

use crate::support::oracle_folder;

/// A copy of the tiny checkpoint that a test may damage.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(oracle_folder().join("tiny-bert").join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn model(folder: &Path) -> Result<Model> {
    Model::new(&Pretrained::from_folder(folder)?, &ModelOptions::new(Method::Head, 2))
}

fn fails_with(folder: &Path, parts: &[&str]) {
    let message = model(folder).err().unwrap().to_string();
    for part in parts.iter().chain(&[folder.to_str().unwrap()]) {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn edit_tensors(folder: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = folder.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

const OUTPUT: &str = "bert.encoder.layer.1.output.dense.weight";

#[test]
fn an_undamaged_copy_loads() {
    assert!(model(copy().path()).is_ok());
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    for file in ["config.json", "model.safetensors"] {
        let folder = copy();
        std::fs::remove_file(folder.path().join(file)).unwrap();
        fails_with(folder.path(), &[file, "cannot be read", "a model folder holds"]);
    }
}

#[test]
fn a_missing_tensor_is_an_error_that_names_it_its_shape_and_a_near_one() {
    let folder = copy();
    edit_tensors(folder.path(), |tensors| drop(tensors.remove(OUTPUT)));
    fails_with(folder.path(), &["model.safetensors", OUTPUT, "[32, 64]", "is missing (nearest: bert."]);
}

#[test]
fn a_tensor_of_another_shape_is_an_error_with_both_shapes() {
    let folder = copy();
    edit_tensors(folder.path(), |tensors| {
        let transposed = tensors[OUTPUT].t().unwrap().contiguous().unwrap();
        tensors.insert(OUTPUT.into(), transposed);
    });
    fails_with(folder.path(), &["model.safetensors", OUTPUT, "should have shape [32, 64]", "found [64, 32]"]);
}

#[test]
fn a_configuration_of_other_sizes_than_the_weights_is_an_error_with_both_shapes() {
    let folder = copy();
    edit_config(folder.path(), |config| config["vocab_size"] = json!(101));
    fails_with(folder.path(), &["word_embeddings", "[101, 32]", "found [100, 32]"]);
    let folder = copy();
    edit_config(folder.path(), |config| config["num_hidden_layers"] = json!(3));
    fails_with(folder.path(), &["bert.encoder.layer.2.attention.self.query.weight", "[32, 32]", "missing"]);
}

#[test]
fn another_models_configuration_is_an_error_that_says_whose_it_is_and_lists_the_known() {
    let folder = copy();
    edit_config(folder.path(), |config| config["model_type"] = json!("t5"));
    fails_with(
        folder.path(),
        &["config.json", "model_type \"t5\" is not known", "one of bert, roberta, xlm-roberta, distilbert"],
    );
    // GPT-2 calls its sizes otherwise: the kind is the better answer than the first field that is missing.
    let folder = copy();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "gpt2", "n_embd": 768}"#).unwrap();
    fails_with(folder.path(), &["config.json", "model_type \"gpt2\" is not known"]);
}

#[test]
fn the_checkpoint_of_one_architecture_under_the_configuration_of_another_is_an_error_that_names_a_tensor() {
    let folder = copy();
    edit_config(folder.path(), |config| config["model_type"] = json!("roberta"));
    fails_with(folder.path(), &["roberta.embeddings.word_embeddings.weight", "is missing (nearest: bert."]);
}

#[test]
fn a_configuration_that_makes_no_encoder_is_an_error_that_says_why() {
    let edits: [(&str, Value, &str); 3] = [
        ("num_attention_heads", json!(5), "hidden_size 32 that 5 attention heads do not divide"),
        ("hidden_act", json!("mish"), "unknown variant `mish`"),
        ("hidden_size", json!("32"), "invalid type"),
    ];
    for (field, value, part) in edits {
        let folder = copy();
        edit_config(folder.path(), |config| config[field] = value);
        fails_with(folder.path(), &["config.json", part]);
    }
    let folder = copy();
    std::fs::write(folder.path().join("config.json"), "not json").unwrap();
    fails_with(folder.path(), &["config.json", "line 1"]);
}

#[test]
fn truncated_weights_are_an_error_that_names_the_file() {
    let whole = std::fs::read(oracle_folder().join("tiny-bert/model.safetensors")).unwrap();
    for length in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
        let folder = copy();
        std::fs::write(folder.path().join("model.safetensors"), &whole[..length]).unwrap();
        fails_with(folder.path(), &["model.safetensors", "expected a safetensors file"]);
    }
}
