//! What a checkpoint lacks, or has for another task: it is trained and saved, matched by its name, made new, or refused, and it is said.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft::{
    Adapter, Error, Ia3, Lora, Method, Model, ModelOptions, Pooling, Pretrained, PromptTuning, Remark, Targets, Warning,
};
use serde_json::{Value, json};

use crate::support::*;

/// The tiny checkpoint after a change of its tensors and its configuration.
fn changed(
    tensors: impl FnOnce(&mut std::collections::HashMap<String, Tensor>),
    config: impl FnOnce(&mut Value),
) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = oracle_folder().join("tiny-bert");
    let mut all = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    tensors(&mut all);
    candle_core::safetensors::save(&all, copy.path().join("model.safetensors")).unwrap();
    let mut fields = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config(&mut fields);
    std::fs::write(copy.path().join("config.json"), fields.to_string()).unwrap();
    copy
}

/// As masked-language pretraining leaves it.
fn without_pooler() -> tempfile::TempDir {
    changed(|tensors| tensors.retain(|name, _| !name.contains("pooler") && !name.contains("classifier")), |_| {})
}

fn logits(model: &Model) -> Vec<f64> {
    flat(&model.predict(&batch(&sequences(&[7, 3, 12], 50))).unwrap())
}

const POOLER: &str = "bert.pooler.dense.weight";

#[test]
fn a_pooler_that_the_checkpoint_lacks_is_trained_saved_and_merged_whatever_the_method() {
    let checkpoint = without_pooler();
    let pretrained = Pretrained::from_folder(checkpoint.path()).unwrap();
    let prompt = PromptTuning { num_virtual_tokens: 3, ..PromptTuning::default() };
    for method in [Method::lora(2), Method::bitfit(), Method::Head, Method::PromptTuning(prompt)] {
        let model = Model::new(&pretrained, &ModelOptions { seed: 2, ..ModelOptions::new(method.clone(), 3) }).unwrap();
        assert!(model.parameters().get(POOLER).is_some(), "{method}");
        let [remark @ Remark::NewParameters { .. }] = model.remarks() else { panic!("{:?}", model.remarks()) };
        assert!(remark.to_string().contains("bert.pooler.dense"), "{remark}");

        let there = tempfile::tempdir().unwrap();
        model.save_adapter(there.path()).unwrap();
        let (again, warnings) = Model::from_adapter(&pretrained, there.path()).unwrap();
        assert_eq!((logits(&again), warnings), (logits(&model), vec![]), "{method}");
        if method.virtual_tokens() == 0 {
            let merged = tempfile::tempdir().unwrap();
            model.save_merged(&pretrained, &["a", "b", "c"], merged.path()).unwrap();
            let merged = Pretrained::from_folder(merged.path()).unwrap();
            let alone = Model::new(&merged, &ModelOptions::new(Method::Head, 3)).unwrap();
            assert!(alone.parameters().new_names().is_empty(), "{method}");
            close(&method.to_string(), &logits(&alone), &logits(&model), 1e-5);
        }
    }
    let mean = ModelOptions { pooling: Pooling::Mean, ..ModelOptions::new(Method::lora(2), 3) };
    let model = Model::new(&pretrained, &mean).unwrap();
    assert!(model.parameters().get(POOLER).is_none() && model.remarks().is_empty(), "the mean needs no pooler");
}

#[test]
fn a_pooler_that_no_file_holds_is_an_error_that_names_modules_to_save() {
    let there = tempfile::tempdir().unwrap();
    let whole = tiny();
    Model::new(&whole, &ModelOptions::new(Method::lora(2), 3)).unwrap().save_adapter(there.path()).unwrap();
    let checkpoint = without_pooler();
    let bare = Pretrained::from_folder(checkpoint.path()).unwrap();
    let error = Model::from_adapter(&bare, there.path()).err().unwrap();
    assert!(matches!(error, Error::NotSaved { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("bert.pooler.dense") && message.contains("modules_to_save [\"pooler\"]"), "{message}");
}

#[test]
fn a_pooler_or_a_layer_of_another_shape_is_refused_and_never_made_new() {
    for name in [POOLER, "bert.pooler.dense.bias"] {
        let other = changed(
            |tensors| _ = tensors.insert(name.into(), Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap()),
            |_| {},
        );
        let pretrained = Pretrained::from_folder(other.path()).unwrap();
        let error = Model::new(&pretrained, &ModelOptions::new(Method::Head, 3)).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("[4, 4]"), "{error}");
    }
}

#[test]
fn tensors_of_layers_that_the_configuration_leaves_out_are_said() {
    let fewer = changed(|_| {}, |config| config["num_hidden_layers"] = json!(1));
    let model =
        Model::new(&Pretrained::from_folder(fewer.path()).unwrap(), &ModelOptions::new(Method::Head, 3)).unwrap();
    let [remark @ Remark::UnusedTensors { count: 16, .. }] = model.remarks() else { panic!("{:?}", model.remarks()) };
    assert!(remark.to_string().contains("bert.encoder.layer.1."), "{remark}");
}

#[test]
fn a_merged_checkpoint_says_what_it_is_by_now() {
    let old = changed(
        |_| {},
        |config| {
            let fields = config.as_object_mut().unwrap();
            fields.remove("model_type");
            fields.insert("architectures".into(), json!(["BertForMaskedLM"]));
            fields.insert("problem_type".into(), json!("multi_label_classification"));
            fields.insert("num_labels".into(), json!(9));
        },
    );
    let pretrained = Pretrained::from_folder(old.path()).unwrap();
    let read = |folder: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
    };
    for (labels, problem) in [(&["no", "yes"][..], "single_label_classification"), (&["score"], "regression")] {
        let there = tempfile::tempdir().unwrap();
        let options = ModelOptions { pooling: Pooling::Mean, ..ModelOptions::new(Method::lora(2), labels.len()) };
        let model = Model::new(&pretrained, &options).unwrap();
        model.save_merged(&pretrained, labels, there.path()).unwrap();
        let config = read(there.path());
        assert_eq!(config["model_type"], "bert");
        assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
        assert_eq!(config["id2label"]["0"], labels[0]);
        assert_eq!((&config["problem_type"], config.get("num_labels")), (&json!(problem), None));
        // The pooling that the head was trained on, too.
        let merged = Pretrained::from_folder(there.path()).unwrap();
        assert_eq!(merged.pooling(), Pooling::Mean);
    }
}

#[test]
fn the_output_layer_of_a_checkpoint_follows_the_names_of_its_labels() {
    let nli = ["entailment", "neutral", "contradiction"];
    let with = |fields: Value| {
        let copy =
            changed(|_| {}, |config| config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone()));
        Pretrained::from_folder(copy.path()).unwrap()
    };
    let of = |pretrained: &Pretrained| logits(&Model::new(pretrained, &ModelOptions::new(Method::Head, 3)).unwrap());
    let plain = of(&tiny());
    let names = json!({ "0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT" });
    let (reversed, remark) = with(json!({ "id2label": names })).for_labels(&nli).unwrap();
    assert!(matches!(remark, Some(Remark::LabelsReordered { .. })), "{remark:?}");
    let turned: Vec<f64> = plain.chunks(3).flat_map(|row| row.iter().rev().copied()).collect();
    assert_eq!(of(&reversed), turned);

    let (same, remark) =
        with(json!({ "id2label": { "0": nli[0], "1": nli[1], "2": nli[2] } })).for_labels(&nli).unwrap();
    assert!(remark.is_none() && of(&same) == plain);
    let (unnamed, remark) = tiny().for_labels(&nli).unwrap();
    assert!(matches!(remark, Some(Remark::LabelsByNumber { .. })) && of(&unnamed) == plain);
    for other in [
        json!({ "id2label": { "0": "joy", "1": "anger", "2": "fear" } }),
        json!({ "id2label": { "0": "entailment", "1": "neutral" } }),
        json!({ "problem_type": "multi_label_classification" }),
        json!({ "problem_type": "regression" }),
    ] {
        let (new, remark) = with(other.clone()).for_labels(&nli).unwrap();
        assert!(matches!(remark, Some(Remark::NewOutput { .. })), "{other}: {remark:?}");
        assert_eq!(new.num_labels(), None, "{other}");
    }
    assert_eq!(tiny().for_labels(&["a", "b"]).unwrap().0.num_labels(), None, "two labels, and three outputs");
    assert_eq!(tiny().for_labels(&[]).unwrap().0.num_labels(), None, "a score, and three outputs");
}

#[test]
fn an_adapter_knows_the_base_model_by_its_content_whatever_it_is_called() {
    let there = tempfile::tempdir().unwrap();
    let model = Model::new(&tiny(), &ModelOptions::new(Method::lora(2), 3)).unwrap();
    let mut adapter = model.adapter().unwrap();
    adapter.conditions.max_length = Some(40);
    adapter.save(there.path()).unwrap();
    let first = std::fs::read(there.path().join("adapter_model.safetensors")).unwrap();
    adapter.save(there.path()).unwrap();
    assert_eq!(std::fs::read(there.path().join("adapter_model.safetensors")).unwrap(), first, "equal bytes each time");
    assert_eq!(Adapter::read(there.path()).unwrap().conditions, adapter.conditions);

    // The same encoder elsewhere, beside other layers.
    let same = changed(|tensors| tensors.retain(|name, _| name.starts_with("bert.")), |_| {});
    let same = Pretrained::from_folder(same.path()).unwrap();
    assert_eq!(same.sha256(), tiny().sha256());
    assert_eq!(Model::from_adapter(&same, there.path()).unwrap().1, []);

    let other = changed(
        |tensors| {
            let name = "bert.encoder.layer.0.output.dense.bias";
            let moved = (tensors[name].clone() + 1e-3).unwrap();
            tensors.insert(name.into(), moved);
        },
        |_| {},
    );
    let (_, warnings) = Model::from_adapter(&Pretrained::from_folder(other.path()).unwrap(), there.path()).unwrap();
    let [warning @ Warning::BaseContent { .. }] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(warning.to_string().contains("other weights"), "{warning}");
}

#[test]
fn an_adapter_pools_as_its_base_model_says_unless_it_says_otherwise() {
    let copy = tempfile::tempdir().unwrap();
    let from = oracle_folder().join("encoders/modernbert");
    std::fs::copy(from.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["classifier_pooling"] = json!("mean");
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    let pretrained = Pretrained::from_folder(copy.path()).unwrap();
    let lora = Method::Lora(Lora::rank(2).on(Targets::suffixes(["Wqkv"])));
    for (pooling, written) in [(Pooling::Mean, Value::Null), (Pooling::Cls, json!("cls"))] {
        let there = tempfile::tempdir().unwrap();
        let options = ModelOptions { pooling, ..ModelOptions::new(lora.clone(), 3) };
        let model = Model::new(&pretrained, &options).unwrap();
        assert_eq!(model.remarks().len(), usize::from(pooling == Pooling::Cls), "{:?}", model.remarks());
        model.save_adapter(there.path()).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(there.path().join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(config["pooling"], written);
        let again = Model::from_adapter(&pretrained, there.path()).unwrap().0;
        assert_eq!((again.pooling(), logits(&again)), (pooling, logits(&model)));
    }
}

#[test]
fn what_a_file_of_pefts_lacks_is_the_base_models_and_it_is_said() {
    let there = tempfile::tempdir().unwrap();
    let pooler = Lora { modules_to_save: vec!["pooler".into()], ..Lora::rank(2) };
    let model = Model::new(&tiny(), &ModelOptions::new(Method::Lora(pooler), 3)).unwrap();
    model.save_adapter(there.path()).unwrap();
    let path = there.path().join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    tensors.retain(|key, _| key.contains("lora_"));
    candle_core::safetensors::save(&tensors, &path).unwrap();
    // Values that must not stay.
    set(&model, "classifier.bias", vec![9.0; 3]);
    let (again, warnings) = Model::from_adapter(&tiny(), there.path()).unwrap();
    assert!(matches!(&warnings[..], [Warning::FromBaseModel { names }] if names.len() == 4), "{warnings:?}");
    model.load_adapter(there.path()).unwrap();
    assert_eq!(logits(&model), logits(&again));
}

#[test]
fn lora_on_embeddings_is_refused_and_never_left_aside() {
    let there = tempfile::tempdir().unwrap();
    let model = Model::new(&tiny(), &ModelOptions::new(Method::lora(2), 3)).unwrap();
    model.save_adapter(there.path()).unwrap();
    // As PEFT names them, for target_modules ["query", "value", "word_embeddings"].
    let path = there.path().join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    for (name, shape) in [("A", (2, 100)), ("B", (32, 2))] {
        let key = format!("base_model.model.bert.embeddings.word_embeddings.lora_embedding_{name}");
        tensors.insert(key, Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap());
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = Model::from_adapter(&tiny(), there.path()).err().unwrap();
    assert!(matches!(error, Error::NotAdapted { .. }) && error.to_string().contains("word_embeddings"), "{error}");
}

#[test]
fn a_layer_of_which_the_file_has_no_tensor_stays_as_in_the_base_model_and_it_is_said() {
    let ia3 = Ia3 {
        target_modules: Targets::suffixes(["key", "value"]),
        feedforward_modules: Targets::suffixes([""; 0]),
        ..Ia3::default()
    };
    for method in [Method::lora(2), Method::Ia3(ia3)] {
        let there = tempfile::tempdir().unwrap();
        let model = Model::new(&tiny(), &ModelOptions::new(method.clone(), 3)).unwrap();
        for (name, variable) in model.parameters().trainable().filter(|(name, _)| name.contains("layer.")) {
            set(&model, name, numbers(variable.elem_count(), 5).iter().map(|x| 1.0 + x).collect());
        }
        model.save_adapter(there.path()).unwrap();
        let path = there.path().join("adapter_model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        tensors.retain(|key, _| !key.contains("layer.1."));
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let (found, warnings) = Model::from_adapter(&tiny(), there.path()).unwrap();
        assert!(matches!(&warnings[..], [Warning::FromBaseModel { .. }]), "{method}: {warnings:?}");
        // The same by values that change nothing.
        for (name, variable) in model.parameters().trainable().filter(|(name, _)| name.contains("layer.1.")) {
            set(&model, name, vec![if name.contains("ia3") { 1.0 } else { 0.0 }; variable.elem_count()]);
        }
        assert_eq!(logits(&found), logits(&model), "{method}");
    }
}

#[test]
fn a_pickled_adapter_is_refused_with_the_command_that_converts_it() {
    let there = tempfile::tempdir().unwrap();
    Model::new(&tiny(), &ModelOptions::new(Method::lora(2), 3)).unwrap().save_adapter(there.path()).unwrap();
    let path = |name: &str| there.path().join(name);
    std::fs::rename(path("adapter_model.safetensors"), path("adapter_model.bin")).unwrap();
    let error = Model::from_adapter(&tiny(), there.path()).err().unwrap().to_string();
    assert!(error.contains("weights_only=True") && error.contains("adapter_model.bin'"), "{error}");
}
