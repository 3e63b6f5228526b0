//! Model folders that are not what they should be: each error names the file, what was expected and what was found.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft::{Method, Model, ModelOptions, Pretrained, Result};
use serde_json::{Value, json};

use crate::support::{batch, close, flat, oracle_folder, sequences};

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
    for (file, part) in [("config.json", "a model folder holds"), ("model.safetensors", "found no weights")] {
        let folder = copy();
        std::fs::remove_file(folder.path().join(file)).unwrap();
        fails_with(folder.path(), &[file, part]);
    }
}

#[test]
fn a_file_that_is_something_else_is_an_error_that_says_what_it_is_and_what_to_do() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 90868376\n";
    for (content, parts) in [
        (&pointer[..], ["Git LFS", "git lfs pull"]),
        (b"<!doctype html><html>Sign in</html>", ["a web page", "download the file itself"]),
        (b"", ["an empty file", "download it again"]),
        (b"PK\x03\x04pickle/data.pkl", ["a pickle", "save_pretrained"]),
    ] {
        for file in ["config.json", "model.safetensors"] {
            let folder = copy();
            std::fs::write(folder.path().join(file), content).unwrap();
            fails_with(folder.path(), &[&parts[..], &[file]].concat());
        }
    }
    let folder = copy();
    let whole = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    fails_with(folder.path(), &["expected a safetensors file", "download it again"]);
}

#[test]
fn weights_of_other_kinds_are_named_with_the_way_to_convert_them() {
    for (name, part) in [
        ("pytorch_model.bin", "save_pretrained"),
        ("tf_model.h5", "convert it with transformers"),
        ("model.fp16.safetensors", "give it the name model.safetensors"),
    ] {
        let folder = copy();
        std::fs::rename(folder.path().join("model.safetensors"), folder.path().join(name)).unwrap();
        fails_with(folder.path(), &[name, part]);
    }
}

/// The tiny checkpoint in two files, as `save_pretrained(max_shard_size=...)` lays it out.
fn in_shards() -> tempfile::TempDir {
    let folder = copy();
    let path = folder.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    std::fs::remove_file(path).unwrap();
    let (mut shards, mut map) = ([HashMap::new(), HashMap::new()], serde_json::Map::new());
    for (index, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("model-0000{}-of-00002.safetensors", index % 2 + 1)));
        shards[index % 2].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        let path = folder.path().join(format!("model-0000{}-of-00002.safetensors", index + 1));
        candle_core::safetensors::save(shard, path).unwrap();
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

fn logits(folder: &Path) -> Vec<f64> {
    flat(&model(folder).unwrap().predict(&batch(&sequences(&[5, 3], 90))).unwrap())
}

#[test]
fn a_checkpoint_in_parts_is_the_same_and_a_part_that_is_missing_is_named() {
    let folder = in_shards();
    assert_eq!(logits(folder.path()), logits(copy().path()));
    std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    fails_with(folder.path(), &["model-00002-of-00002.safetensors", "is missing", "2 files"]);
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(index, json!({ "weight_map": { "a": "../elsewhere.safetensors" } }).to_string()).unwrap();
    fails_with(folder.path(), &["model.safetensors.index.json", "files beside it"]);
}

#[test]
fn weights_in_half_precision_are_read_and_quantized_ones_refused() {
    for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 1e-1), (DType::F64, 0.0)] {
        let folder = copy();
        edit_tensors(folder.path(), |tensors| {
            tensors.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(dtype).unwrap());
        });
        close(&format!("{dtype:?}"), &logits(folder.path()), &logits(copy().path()), tolerance);
    }
    let folder = copy();
    edit_tensors(folder.path(), |tensors| {
        let whole = tensors[OUTPUT].to_dtype(DType::U8).unwrap();
        tensors.insert(OUTPUT.into(), whole);
    });
    fails_with(folder.path(), &[OUTPUT, "U8", "quantized"]);
}

#[test]
fn the_table_of_words_may_be_stored_as_the_output_layer_that_shares_it() {
    let words = "bert.embeddings.word_embeddings.weight";
    let folder = copy();
    edit_tensors(folder.path(), |tensors| {
        let table = tensors.remove(words).unwrap();
        tensors.insert("cls.predictions.decoder.weight".into(), table);
    });
    assert_eq!(logits(folder.path()), logits(copy().path()));

    // As safetensors' save_model writes what two names share: the metadata says whose numbers they are.
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(copy().path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = |name: &str| if name == words { "another.name".to_string() } else { name.to_string() };
    let views: Vec<_> = file.iter().map(|(name, view)| (kept(name), view)).collect();
    let metadata = HashMap::from([("format".into(), "pt".into()), (words.to_string(), "another.name".to_string())]);
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    assert_eq!(logits(folder.path()), logits(copy().path()));
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

#[test]
fn a_size_that_no_file_can_have_is_refused_before_memory_is_taken_for_it() {
    let refused = |case: &str, field: &str, value: Value| {
        let folder = tempfile::tempdir().unwrap();
        let from = oracle_folder().join("encoders").join(case);
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        edit_config(folder.path(), |config| config[field] = value.clone());
        let error = model(folder.path()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(
            error.contains(&format!("{field} {value}")) && error.contains("config.json"),
            "{case}, {field} {value}: {error}"
        );
    };
    for size in [json!(10_000_000_000_u64), json!(1_u64 << 63), json!(i64::MAX)] {
        for case in ["deberta-v3", "deberta-v2", "mpnet", "modernbert", "roberta"] {
            refused(case, "max_position_embeddings", size.clone());
            refused(case, "num_hidden_layers", size.clone());
            refused(case, "vocab_size", size.clone());
        }
        refused("deberta-v3", "position_buckets", size.clone());
        refused("deberta-v3", "max_relative_positions", size.clone());
        refused("deberta-v3", "attention_head_size", size.clone());
        refused("mpnet", "relative_attention_num_buckets", size.clone());
        refused("roberta", "pad_token_id", size.clone());
        refused("electra", "embedding_size", size.clone());
        refused("distilbert", "n_layers", size.clone());
    }
    // Distances have a logarithm of more than one step only where there is more than one.
    refused("deberta-v3", "position_buckets", json!(1));
    for (field, value) in [("max_relative_positions", 5), ("max_position_embeddings", 65_537)] {
        refused("deberta-v3", field, json!(value));
    }
    for (field, value) in
        [("hidden_dropout_prob", json!(5)), ("layer_norm_eps", json!(-1)), ("hidden_dropout_prob", json!(-0.1))]
    {
        refused("roberta", field, value);
    }
}

#[test]
fn a_weight_that_is_not_finite_is_an_error_that_names_its_tensor() {
    for wrong in [f32::NAN, f32::INFINITY] {
        let folder = copy();
        edit_tensors(folder.path(), |tensors| {
            let tensor = &tensors[OUTPUT];
            let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            values[3] = wrong;
            let damaged = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap();
            tensors.insert(OUTPUT.into(), damaged);
        });
        fails_with(folder.path(), &["model.safetensors", OUTPUT, "not finite"]);
    }
}
