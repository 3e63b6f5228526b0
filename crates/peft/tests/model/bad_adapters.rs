//! Adapter folders that are not what they should be: each error names the key or field, and leaves the model as it was.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft::{
    AdaLora, Bottleneck, Compacter, LoHa, Lora, Method, Model, ModelOptions, PTuning, PrefixTuning, Pretrained, Vera,
    Warning,
};
use serde_json::{Value, json};

use crate::support::*;

/// A model with the adapter that it was saved to, in a folder that a test may damage.
fn saved() -> (Model, tempfile::TempDir) {
    let model = Model::new(&tiny(), &ModelOptions::new(Method::lora(2), 2)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path()).unwrap();
    (model, folder)
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("adapter_config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn edit_tensors(folder: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = folder.join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// Both ways of loading fail with a message that has all of `parts`, and a model that was there is as it was.
fn fails_with(model: &Model, folder: &Path, parts: &[&str]) {
    // Every value another than in the file, so that one that is loaded shows.
    for (name, variable) in model.parameters().trainable() {
        set(model, name, vec![0.125; variable.elem_count()]);
    }
    let first = model.load_adapter(folder).unwrap_err().to_string();
    for (name, variable) in model.parameters().trainable() {
        assert!(flat(variable).iter().all(|value| *value == 0.125), "{name} was changed");
    }
    let message = Model::from_adapter(&tiny(), folder).err().unwrap().to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(first.contains(folder.to_str().unwrap()), "{first}");
}

const QUERY: &str = "base_model.model.bert.encoder.layer.1.attention.self.query";

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let (model, folder) = saved();
        std::fs::remove_file(folder.path().join(file)).unwrap();
        fails_with(&model, folder.path(), &[file, "cannot be read", "an adapter's folder holds"]);
    }
}

#[test]
fn a_truncated_or_lying_file_of_tensors_is_an_error_that_names_it() {
    let (model, folder) = saved();
    let path = folder.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [5, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        fails_with(&model, folder.path(), &["adapter_model.safetensors", "expected a safetensors file"]);
    }
    // A header that says it is longer than the file, and one whose tensors lie outside of it.
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, &lying).unwrap();
    fails_with(&model, folder.path(), &["adapter_model.safetensors", "expected a safetensors file"]);
    let text = String::from_utf8_lossy(&whole).replacen("[2,32]", "[2,33]", 1);
    std::fs::write(&path, [&whole[..8], &text.as_bytes()[8..]].concat()).unwrap();
    fails_with(&model, folder.path(), &["adapter_model.safetensors"]);
}

#[test]
fn a_tensor_of_another_shape_is_an_error_with_both_shapes() {
    let (model, folder) = saved();
    let key = format!("{QUERY}.lora_A.weight");
    edit_tensors(folder.path(), |tensors| {
        let transposed = tensors[&key].t().unwrap().contiguous().unwrap();
        tensors.insert(key.clone(), transposed);
    });
    fails_with(&model, folder.path(), &[&key, "should have shape [2, 32]", "found [32, 2]", "9 of 10 tensors fit"]);
}

#[test]
fn a_missing_tensor_is_an_error_with_the_nearest_key() {
    let (model, folder) = saved();
    let key = format!("{QUERY}.lora_A.weight");
    edit_tensors(folder.path(), |tensors| {
        let tensor = tensors.remove(&key).unwrap();
        tensors.insert(key.replace("lora_A", "lora_a"), tensor);
    });
    fails_with(&model, folder.path(), &[&key, "is missing", &key.replace("lora_A", "lora_a")]);
}

#[test]
fn an_adapter_for_a_base_model_of_other_sizes_is_an_error_that_asks_for_the_base_model() {
    let (model, folder) = saved();
    edit_tensors(folder.path(), |tensors| {
        for tensor in tensors.values_mut().filter(|tensor| tensor.dims() == [2, 32]) {
            *tensor = Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap();
        }
    });
    fails_with(&model, folder.path(), &["[2, 32]", "[2, 64]", "another base model"]);

    // One with more layers.
    let (model, folder) = saved();
    let key = QUERY.replace("layer.1", "layer.2") + ".lora_A.weight";
    edit_tensors(folder.path(), |tensors| {
        tensors.insert(key.clone(), Tensor::zeros((2, 32), DType::F32, &Device::Cpu).unwrap());
    });
    fails_with(&model, folder.path(), &[&key, "a module that the model has not", "self.query", "another base model"]);
}

#[test]
fn a_missing_head_is_an_error_that_says_so() {
    for name in ["weight", "bias"] {
        let (model, folder) = saved();
        let key = format!("base_model.model.classifier.{name}");
        edit_tensors(folder.path(), |tensors| drop(tensors.remove(&key)));
        fails_with(&model, folder.path(), &["the head is missing", &key, "modules_to_save"]);
    }
}

#[test]
fn a_number_that_is_not_finite_is_an_error_that_names_its_tensor() {
    for value in [f32::NAN, f32::INFINITY] {
        let (model, folder) = saved();
        let key = format!("{QUERY}.lora_B.weight");
        edit_tensors(folder.path(), |tensors| {
            tensors.insert(key.clone(), Tensor::full(value, (32, 2), &Device::Cpu).unwrap());
        });
        fails_with(&model, folder.path(), &[&key, "not finite"]);
    }
}

#[test]
fn what_is_trained_or_merged_to_a_number_that_is_not_finite_is_not_written_and_its_tensor_is_named() {
    let pretrained = tiny();
    for value in [f64::NAN, f64::NEG_INFINITY] {
        let model = Model::new(&pretrained, &ModelOptions::new(Method::lora(2), 2)).unwrap();
        set(&model, &format!("{}.lora_B.weight", QUERY.trim_start_matches("base_model.model.")), vec![value; 64]);
        let folder = tempfile::tempdir().unwrap();
        for (error, name) in [
            (model.save_adapter(folder.path()).unwrap_err(), format!("{QUERY}.lora_B.weight")),
            (model.adapter().unwrap().save(folder.path()).unwrap_err(), format!("{QUERY}.lora_B.weight")),
            (model.save_merged(&pretrained, &[], folder.path()).unwrap_err(), "self.query.weight".into()),
        ] {
            let error = error.to_string();
            assert!(error.contains(&name) && error.contains("not finite"), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_configuration_that_makes_no_adapter_is_an_error_that_names_the_field() {
    let edits: [(&str, Value, &[&str]); 13] = [
        ("peft_type", json!("LORRA"), &["peft_type \"LORRA\"", "nearest: LORA"]),
        ("peft_type", json!("BOFT"), &["peft_type \"BOFT\"", "PREFIX_TUNING, PROMPT_TUNING, P_TUNING are read"]),
        ("peft_type", Value::Null, &["no peft_type"]),
        ("task_type", json!("CAUSAL_LM"), &["task_type \"CAUSAL_LM\""]),
        ("r", json!(0), &["r is 0", "at least 1"]),
        ("rank_pattern", json!({"query": 0}), &["rank_pattern", "at least 1"]),
        ("r", json!("8"), &["r \"8\""]),
        ("lora_alpha", json!(0), &["lora_alpha is 0"]),
        ("target_modules", Value::Null, &["no target_modules"]),
        ("target_modules", json!(["qurey"]), &["qurey", "in dense, key, query, value"]),
        ("init_lora_weights", json!("lora_ga"), &["init_lora_weights", "lora_ga"]),
        ("lora_bias", json!(true), &["lora_bias true", "not supported"]),
        ("bias", json!("some"), &["bias \"some\""]),
    ];
    for (field, value, parts) in edits {
        let (_, folder) = saved();
        edit_config(folder.path(), |config| config[field] = value);
        let message = Model::from_adapter(&tiny(), folder.path()).err().unwrap().to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
    let (model, folder) = saved();
    std::fs::write(folder.path().join("adapter_config.json"), "not json").unwrap();
    fails_with(&model, folder.path(), &["adapter_config.json", "line 1"]);
}

#[test]
fn what_is_not_known_is_a_warning_with_the_nearest_name() {
    let (model, folder) = saved();
    edit_config(folder.path(), |config| config["lora_alhpa"] = json!(3));
    edit_tensors(folder.path(), |tensors| {
        let bias = tensors["base_model.model.classifier.bias"].clone();
        tensors.insert("base_model.model.classifier.bais".into(), bias);
    });
    let warnings = model.load_adapter(folder.path()).unwrap();
    let expected = [
        Warning::UnknownField { field: "lora_alhpa".into(), nearest: " (nearest: lora_alpha)".into() },
        Warning::UnknownTensor {
            key: "base_model.model.classifier.bais".into(),
            nearest: " (nearest: base_model.model.classifier.bias)".into(),
        },
    ];
    assert_eq!(warnings, expected);
    assert!(warnings[0].to_string().contains("\"lora_alhpa\" is not known (nearest: lora_alpha)"));
}

#[test]
fn the_smallest_configuration_that_peft_reads_takes_pefts_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let lora = Lora { lora_alpha: 8.0, ..Lora::rank(8) };
    let model = Model::new(&tiny(), &ModelOptions::new(Method::Lora(lora), 2)).unwrap();
    model.save_adapter(folder.path()).unwrap();
    let config = json!({"peft_type": "LORA", "target_modules": ["query", "value"]});
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    assert_eq!(model.load_adapter(folder.path()).unwrap(), []);
}

#[test]
fn an_adapter_of_another_method_is_an_error_that_names_the_field() {
    let (_, folder) = saved();
    let error = |method| {
        let model = Model::new(&tiny(), &ModelOptions::new(method, 2)).unwrap();
        model.load_adapter(folder.path()).unwrap_err().to_string()
    };
    assert!(error(Method::bitfit()).contains("has peft_type LORA, the model BITFIT"));
    let alpha = error(Method::Lora(Lora { lora_alpha: 1.0, ..Lora::rank(2) }));
    assert!(alpha.contains("has lora_alpha 4, the model 1") && alpha.contains("Model::from_adapter"), "{alpha}");
}

#[test]
fn a_merged_model_is_not_saved_as_an_adapter() {
    let (model, folder) = saved();
    let error = model.merge_and_unload().unwrap().save_adapter(folder.path()).unwrap_err().to_string();
    assert!(error.contains("save it before merging"), "{error}");
}

/// A file at the place of the folder: nothing can be written there.
#[test]
fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
    let (model, folder) = saved();
    let place = folder.path().join("adapter_config.json");
    let error = model.save_adapter(&place).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot be written", place.display())), "{error}");
}

#[test]
fn saving_twice_leaves_the_two_files_and_nothing_else() {
    let (model, folder) = saved();
    model.save_adapter(folder.path()).unwrap();
    let names: BTreeMap<String, u64> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect();
    assert_eq!(names.keys().collect::<Vec<_>>(), ["adapter_config.json", "adapter_model.safetensors"]);
}

#[test]
fn an_adapter_needs_no_more_of_a_checkpoint_than_its_folder() {
    let (model, folder) = saved();
    let pretrained = Pretrained::load(oracle_folder().join("tiny-bert").to_str().unwrap()).unwrap();
    let (again, warnings) = Model::from_adapter(&pretrained, folder.path()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(again.base_model(), model.base_model());
}

/// A folder of an oracle's adapter, of which one field is another.
fn with_field(case: &str, field: &str, value: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(oracle_folder().join("adapters").join(case).join(file), folder.path().join(file)).unwrap();
    }
    edit_config(folder.path(), |config| config[field] = value.clone());
    folder
}

#[test]
fn a_configuration_that_says_more_than_its_tensors_hold_is_refused_before_memory_is_taken_for_it() {
    let sizes = [json!(5_000_000), json!(1_000_000_000), json!(1_u64 << 62), json!(u64::MAX)];
    for size in sizes {
        for (case, field) in [
            ("query_value", "r"),
            ("dora", "r"),
            ("loha", "r"),
            ("adalora", "init_r"),
            ("vera", "r"),
            ("vera_key", "r"),
            ("prefix_tuning", "num_virtual_tokens"),
            ("prompt_tuning", "num_virtual_tokens"),
            ("p_tuning", "num_virtual_tokens"),
        ] {
            let folder = with_field(case, field, &size);
            let error = Model::from_adapter(&tiny(), folder.path()).err().unwrap().to_string();
            let is_told = error.contains(&format!("{field} {size}")) && error.contains("at most");
            // Virtual tokens are held against the model's positions first.
            let is_told = is_told || error.contains(&format!("num_virtual_tokens is {size}"));
            assert!(is_told, "{case}, {field} {size}: {error}");
        }
        let folder = with_field("patterns", "rank_pattern", &json!({ "query": size }));
        let error = Model::from_adapter(&tiny(), folder.path()).err().unwrap().to_string();
        assert!(error.contains(&format!("rank_pattern {size}")), "{error}");
    }
    // A rank that there is memory for is told by the shapes.
    let folder = with_field("query_value", "r", &json!(64));
    let error = Model::from_adapter(&tiny(), folder.path()).err().unwrap().to_string();
    assert!(error.contains("should have shape [64, 32]"), "{error}");
}

#[test]
fn options_that_would_make_more_than_a_model_can_have_are_refused_by_their_names() {
    let prefix = PrefixTuning { prefix_projection: true, ..PrefixTuning::default() };
    let methods = |size| {
        [
            (Method::lora(size), "r"),
            (Method::Lora(Lora { rank_pattern: [("query".into(), size)].into(), ..Lora::default() }), "rank_pattern"),
            (Method::LoHa(LoHa { r: size, ..LoHa::default() }), "r"),
            (Method::Vera(Vera { r: size, ..Vera::default() }), "r"),
            (Method::AdaLora(AdaLora { init_r: size, total_step: Some(9), ..AdaLora::default() }), "init_r"),
            (
                Method::Bottleneck(Bottleneck { bottleneck_size: Some(size), ..Bottleneck::default() }),
                "bottleneck_size",
            ),
            (Method::Compacter(Compacter { phm_rank: size, reduction_factor: 8, ..Compacter::default() }), "phm_rank"),
            (
                Method::PrefixTuning(PrefixTuning { encoder_hidden_size: Some(size), ..prefix.clone() }),
                "encoder_hidden_size",
            ),
            (Method::PTuning(PTuning { encoder_hidden_size: Some(size), ..PTuning::default() }), "encoder_hidden_size"),
        ]
    };
    for size in [100_000_000_000, 1 << 62, usize::MAX] {
        for (method, field) in methods(size) {
            let error = Model::new(&tiny(), &ModelOptions::new(method, 2)).err().unwrap().to_string();
            assert!(error.contains(&format!("{field} {size}")) && error.contains("choose smaller"), "{error}");
        }
    }
    for (method, _) in methods(64) {
        assert!(Model::new(&tiny(), &ModelOptions::new(method, 2)).is_ok());
    }
}
