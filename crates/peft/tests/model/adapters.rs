//! Adapters in PEFT's files, one for each option of its methods, against what PEFT computes with them: by the values that
//! `oracle/make_adapters.py` stored.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use peft::{
    AdaLora, Adapter, AdapterConfig, Batch, Bias, BitFit, EvaConfig, ForwardPass, Ia3, InitLoraWeights, LnTuning, LoHa,
    LoKr, Lora, Method, Model, ModelOptions, Oft, PTuning, Pooling, PrefixTuning, Reparameterization, Sequence,
    Targets, Vera, Warning,
};
use serde::Deserialize;
use serde_json::Value;

use crate::support::*;

#[derive(Deserialize)]
struct Oracle {
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    trainable: usize,
    all: usize,
    line: String,
    names: BTreeSet<String>,
    pub logits: Vec<Vec<f64>>,
}

/// The sequences and labels of the other oracle.
#[derive(Deserialize)]
struct Examples {
    sequences: Vec<Ids>,
    labels: Vec<u32>,
}

#[derive(Deserialize)]
struct Ids {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
}

pub(crate) fn cases() -> BTreeMap<String, Case> {
    let oracle: Oracle =
        serde_json::from_slice(&std::fs::read(oracle_folder().join("adapters.json")).unwrap()).unwrap();
    oracle.cases
}

pub(crate) fn examples() -> (Vec<Sequence>, Vec<u32>) {
    let examples: Examples =
        serde_json::from_slice(&std::fs::read(oracle_folder().join("oracle.json")).unwrap()).unwrap();
    let sequence = |ids: Ids| Sequence { input_ids: ids.input_ids, token_type_ids: ids.token_type_ids };
    (examples.sequences.into_iter().map(sequence).collect(), examples.labels)
}

pub(crate) fn folder(case: &str) -> PathBuf {
    oracle_folder().join("adapters").join(case)
}

fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// The case's adapter on the tiny BERT, without dropout.
pub(crate) fn model(case: &str, dtype: DType) -> Model {
    let adapter = Adapter::read(&folder(case)).unwrap();
    let options = ModelOptions { dtype, dropout: Some(0.0), device: device(), ..adapter.options(&tiny()).unwrap() };
    let model = Model::new(&tiny(), &options).unwrap();
    assert_eq!(model.load(&adapter).unwrap(), [], "{case}");
    model
}

/// PEFT's own start of PiSSA and OLoRA is worked out in f32, so that its residual weights are off by f32's rounding, and the
/// logits, which are around 1 to 10 here, with them. Otherwise the values in the files are exact in f64.
pub(crate) fn starts_from_the_weight(case: &str) -> bool {
    case.contains("pissa") || case.contains("olora")
}

/// A network made this case's virtual tokens. Its file holds what it made, in f32, and PEFT computes with the network.
fn is_made_by_a_network(case: &str) -> bool {
    case == "prefix_projection" || case.starts_with("p_tuning")
}

/// The case's sequences: those of the other oracle, cut to the positions that virtual tokens leave, as in `make_adapters.py`.
fn cut(sequences: &[Sequence], model: &Model) -> Batch {
    let length = 40 - model.method().virtual_tokens();
    let cut = |sequence: &Sequence| Sequence {
        input_ids: sequence.input_ids.iter().copied().take(length).collect(),
        token_type_ids: sequence.token_type_ids.iter().copied().take(length).collect(),
    };
    batch(&sequences.iter().map(cut).collect::<Vec<_>>())
}

/// The case's model as it was trained: where a network makes the virtual tokens, with that network's values. `None`: no network
/// that is trained here.
fn trained(case: &str, dtype: DType) -> Option<Model> {
    let model = model(case, dtype);
    let method = match model.method().clone() {
        Method::PrefixTuning(prefix) => Method::PrefixTuning(PrefixTuning { inference_mode: false, ..prefix }),
        Method::PTuning(PTuning { encoder_reparameterization_type: Reparameterization::Lstm, .. }) => return None,
        Method::PTuning(prompt) => Method::PTuning(PTuning { inference_mode: false, ..prompt }),
        _ => return Some(model),
    };
    let options = ModelOptions { dtype, dropout: Some(0.0), ..options(method, 3) };
    let trained = Model::new(&tiny(), &options).unwrap();
    let stored = load(&oracle_folder().join("adapters.safetensors"));
    for (name, variable) in trained.parameters().trainable() {
        match stored.get(&format!("{case}.value.{name}")) {
            Some(value) => set(&trained, name, flat(value)),
            None => set(&trained, name, flat(model.parameters().get(name).unwrap())),
        }
        assert!(!is_made_by_a_network(case) || stored.contains_key(&format!("{case}.value.{name}")), "{case} {name}");
        assert_eq!(variable.dtype(), dtype);
    }
    Some(trained)
}

#[test]
fn every_adapter_of_pefts_loads_and_gives_pefts_logits() {
    let (sequences, _) = examples();
    for (name, case) in cases() {
        for (dtype, tolerance) in of_device([(DType::F32, 1e-5), (DType::F64, 1e-11)]) {
            let is_rounded = starts_from_the_weight(&name) || is_made_by_a_network(&name);
            let rounded = if is_rounded { 1e-5 } else { tolerance };
            let expected = case.logits.concat();
            let loaded = model(&name, dtype);
            let batch = cut(&sequences, &loaded);
            let logits = flat(&loaded.predict(&batch).unwrap());
            close(&name, &logits, &expected, rounded * largest(&expected).max(1.0));
            if loaded.method().virtual_tokens() > 0 {
                let error = loaded.merge_and_unload().err().unwrap().to_string();
                assert!(error.contains("cannot be merged"), "{error}");
                if let Some(trained) = trained(&name, dtype) {
                    let logits = flat(&trained.predict(&batch).unwrap());
                    close(&name, &logits, &expected, tolerance * largest(&expected).max(1.0));
                }
                continue;
            }
            let tolerance = rounded;
            let merged = loaded.merge_and_unload().unwrap();
            let logits = flat(&merged.predict(&batch).unwrap());
            close(&format!("{name}, merged"), &logits, &expected, tolerance * largest(&expected).max(1.0));
        }
    }
}

#[test]
fn every_option_has_pefts_gradients() {
    let (sequences, labels) = examples();
    let stored = load(&oracle_folder().join("adapters.safetensors"));
    // The stored gradients are f32.
    let (dtype, tolerance) = of_device([(DType::F64, 1e-6), (DType::F32, 1e-5)]).next().unwrap();
    for name in cases().keys() {
        let Some(model) = trained(name, dtype) else { continue };
        let store = loss(&model, &cut(&sequences, &model), &labels, None).backward().unwrap();
        // Where the residual is f32, they follow from it.
        let tolerance = if starts_from_the_weight(name) { 1e-4 } else { tolerance };
        // The gradient of a Kronecker factor is a sum of some thousand products that cancel: in f32, on the CPU too, it rounds by 5e-5.
        let cancels = dtype == DType::F32 && name.starts_with("lokr");
        let tolerance = if cancels { 1e-4 } else { tolerance };
        let found = gradients(&model, &store);
        let largest_of_all = found.values().map(|gradient| largest(gradient)).fold(0.0, f64::max);
        for (parameter, found) in found {
            let expected = flat(&stored[&format!("{name}.gradient.{parameter}")]);
            let scale = if has_zero_gradient(&parameter) { largest_of_all } else { largest(&expected) };
            close(&format!("{name} {parameter}"), &found, &expected, tolerance * scale);
        }
    }
}

#[test]
fn every_option_trains_pefts_parameters_and_reports_pefts_line() {
    for (name, case) in cases() {
        let Some(model) = trained(&name, DType::F32) else { continue };
        let report = model.trainable_report();
        assert_eq!(report.tensors.iter().map(|tensor| tensor.name.clone()).collect::<BTreeSet<_>>(), case.names);
        assert_eq!((report.trainable(), report.total + report.copied), (case.trainable, case.all), "{name}");
        assert_eq!(report.to_string(), case.line, "{name}");
    }
}

/// Singular vectors and columns of Q are unique but for their signs, which B and A share: their product is unique.
#[test]
fn starts_from_the_weight_are_pefts() {
    let stored = load(&oracle_folder().join("adapters.safetensors"));
    const MODULE: &str = "bert.encoder.layer.1.intermediate.dense";
    for name in ["pissa", "olora", "dora", "dora_pissa_bias"] {
        let adapter = Adapter::read(&folder(name)).unwrap();
        let model = Model::new(&tiny(), &adapter.options(&tiny()).unwrap()).unwrap();
        let ours = |part: &str| {
            model.parameters().get(&format!("{MODULE}.{part}")).map(|v| v.as_tensor().to_dtype(DType::F64).unwrap())
        };
        let theirs =
            |part: &str| stored.get(&format!("{name}.start.{MODULE}.{part}")).map(|t| t.to_dtype(DType::F64).unwrap());
        let product = |a: Option<Tensor>, b: Option<Tensor>| b.unwrap().matmul(&a.unwrap()).unwrap();
        if name != "dora" {
            let expected = product(theirs("lora_A.weight"), theirs("lora_B.weight"));
            let found = product(ours("lora_A.weight"), ours("lora_B.weight"));
            // Of matrices around 1 with 32 rows, decomposed in f32: some hundred roundings of 6e-8.
            close(name, &flat(&found), &flat(&expected), 1e-5 * largest(&flat(&expected)));
        }
        if let Some(expected) = theirs("lora_magnitude_vector") {
            let found = flat(&ours("lora_magnitude_vector").unwrap());
            close(name, &found, &flat(&expected), 1e-5 * largest(&flat(&expected)));
        }
    }
}

#[test]
fn adapters_that_begin_as_nothing_give_the_logits_of_the_base_model() {
    let batch = batch(&sequences(&[7, 1, 40], 100));
    let logits = |method| flat(&Model::new(&tiny(), &exact(method)).unwrap().predict(&batch).unwrap());
    let base = logits(Method::Head);
    for case in [
        "pissa",
        "olora",
        "dora",
        "dora_pissa_bias",
        "ia3",
        "vera",
        "vera_options",
        "adalora",
        "loha",
        "lokr",
        "lokr_lycoris",
        "oft",
        "oft_shared",
        "coft",
    ] {
        let (config, _) = AdapterConfig::read(&folder(case)).unwrap();
        close(case, &logits(config.method), &base, 1e-11);
    }
}

/// While m is the norm and B is zero, what DoRA adds of the masked input is what it takes away of it: the base layer keeps its
/// whole input, as in PEFT. With another m it does not cancel.
#[test]
fn at_its_start_dora_gives_the_logits_of_the_base_model_under_dropout_too() {
    let batch = batch(&sequences(&[7, 1, 40], 100));
    let base = flat(&Model::new(&tiny(), &exact(Method::Head)).unwrap().predict(&batch).unwrap());
    let dora = Lora { use_dora: true, lora_dropout: 0.5, ..lora_everywhere() };
    let model = Model::new(&tiny(), &exact(Method::Lora(dora))).unwrap();
    let step = || flat(&model.forward(&batch, &ForwardPass::training(&batch.segments, 3)).unwrap());
    close("at its start", &step(), &base, 1e-11);
    let name = "bert.encoder.layer.0.attention.self.value.lora_magnitude_vector";
    let doubled = flat(model.parameters().get(name).unwrap()).iter().map(|value| 2.0 * value).collect();
    set(&model, name, doubled);
    assert_ne!(step(), flat(&model.predict(&batch).unwrap()));
}

/// PEFT `tuners/oft/layer.py`, `OFTRotationModule.forward`, which sets them in evaluation too.
#[test]
fn in_training_cofts_vectors_are_set_to_those_within_the_bound_and_the_logits_stay() {
    let oft = Oft { oft_block_size: 8, coft: true, eps: 0.5, init_weights: false, ..Oft::default() };
    let (model, batch) = (Model::new(&tiny(), &exact(Method::Oft(oft))).unwrap(), batch(&sequences(&[7, 1], 100)));
    let values = || -> Vec<Vec<f64>> {
        let blocks = model.parameters().trainable().filter(|(name, _)| name.ends_with("oft_R.weight"));
        blocks.flat_map(|(_, blocks)| blocks.to_vec2::<f64>().unwrap()).collect()
    };
    // A number stands in a block's Q twice.
    let norm = |vector: &[f64]| (2.0 * vector.iter().map(|value| value * value).sum::<f64>()).sqrt();
    let (before, logits) = (values(), flat(&model.predict(&batch).unwrap()));
    assert_eq!(values(), before, "a prediction changes nothing");
    let step = model.forward(&batch, &ForwardPass::training(&batch.segments, 3)).unwrap();
    close("the step", &flat(&step), &logits, 1e-12);
    for (before, after) in before.iter().zip(values()) {
        assert!((norm(&after) - norm(before).min(0.5 / 2.0)).abs() < 1e-12, "{} {}", norm(before), norm(&after));
    }
    assert!(before.iter().any(|vector| norm(vector) > 0.25), "the bound binds");
    close("after the step", &flat(&model.predict(&batch).unwrap()), &logits, 1e-12);
}

/// Byte for byte the same tensors under the same keys, but for the copies of a head's bias that PEFT writes with `bias: "all"`.
#[test]
fn an_adapter_that_was_read_is_written_with_the_same_keys_and_values() {
    for case in cases().keys() {
        let there = tempfile::tempdir().unwrap();
        model(case, DType::F32).save_adapter(there.path()).unwrap();
        let file = "adapter_model.safetensors";
        let (mut expected, found) = (load(&folder(case).join(file)), load(&there.path().join(file)));
        expected.retain(|key, _| !key.contains(".original_module.") && !key.contains(".modules_to_save."));
        let keys = |tensors: &HashMap<String, Tensor>| tensors.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(keys(&found), keys(&expected), "{case}");
        for (key, tensor) in &found {
            assert_eq!((tensor.dims(), flat(tensor)), (expected[key].dims(), flat(&expected[key])), "{case} {key}");
        }
        if let Some(trained) = trained(case, DType::F32) {
            trained.save_adapter(there.path()).unwrap();
            for (key, tensor) in load(&there.path().join(file)) {
                // What a network makes of numbers around 1 in sums of at most 32 products, each rounded to 6e-8.
                let tolerance = if is_made_by_a_network(case) { 2e-6 * largest(&flat(&expected[&key])) } else { 0.0 };
                close(&format!("{case} {key}"), &flat(&tensor), &flat(&expected[&key]), tolerance);
            }
        }
    }
}

/// The same with every number as a float: 4 is 4.0.
fn in_floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(values) => values.iter().map(in_floats).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), in_floats(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn a_configuration_that_was_read_is_written_with_the_same_fields() {
    for case in cases().keys() {
        let there = tempfile::tempdir().unwrap();
        model(case, DType::F32).save_adapter(there.path()).unwrap();
        let read = |folder: &Path| -> BTreeMap<String, Value> {
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (mut expected, found) = (read(&folder(case)), read(there.path()));
        // A set in PEFT, and one name or a list of one.
        let sorted = |value: &Value| match &in_floats(value) {
            Value::Array(values) => values.iter().map(Value::to_string).collect::<BTreeSet<_>>(),
            other => BTreeSet::from([other.to_string()]),
        };
        for (field, value) in found {
            let expected = expected.remove(&field).unwrap_or_else(|| panic!("{case}: PEFT has no {field}"));
            if field != "base_model_name_or_path" {
                assert_eq!(sorted(&value), sorted(&expected), "{case} {field}");
            }
        }
        // What is not written has no effect where it has this value, which is PEFT's default.
        let is_default = |(field, value): (&String, &Value)| match field.as_str() {
            "megatron_core" | "qalora_group_size" | "peft_version" => true,
            // The heads' names, which PEFT adds itself.
            "modules_to_save" => {
                value.as_array().is_some_and(|names| names.iter().all(|name| *name == "classifier" || *name == "score"))
            }
            _ => value.is_null() || *value == false || value.as_object().is_some_and(|fields| fields.is_empty()),
        };
        assert!(expected.iter().all(is_default), "{case}: {expected:?} are not written");
    }
}

#[test]
fn every_method_comes_back_from_its_files_with_the_same_logits() {
    let batch = batch(&sequences(&[7, 1, 40, 12], 100));
    let subset = BitFit { target_modules: Some(Targets::suffixes(["query", "intermediate.dense"])) };
    let dora = Lora { use_dora: true, lora_dropout: 0.1, ..lora_everywhere() };
    for method in [
        Method::Full,
        Method::Head,
        Method::bitfit(),
        Method::BitFit(subset),
        Method::Lora(dora),
        Method::Ia3(Ia3::default()),
        Method::LnTuning(LnTuning::default()),
        Method::Vera(Vera { r: 7, projection_prng_key: 3, target_modules: all_linear(), ..Vera::default() }),
        Method::Vera(Vera { r: 7, save_projection: false, ..Vera::default() }),
        Method::AdaLora(AdaLora { total_step: Some(10), ..AdaLora::default() }),
        Method::LoKr(LoKr { r: 2, decompose_both: true, rank_dropout_scale: true, ..LoKr::default() }),
        Method::Oft(Oft { oft_block_size: 4, bias: Bias::LoraOnly, coft: true, eps: 0.3, ..Oft::default() }),
        Method::LoHa(LoHa { rank_dropout: 0.2, module_dropout: 0.1, target_modules: all_linear(), ..LoHa::default() }),
    ]
    .into_iter()
    .chain(smooth_bottlenecks())
    {
        for (pooling, train_pooler) in [(Pooling::Cls, false), (Pooling::Cls, true), (Pooling::Mean, false)] {
            // "dense" would name nothing but the pooler that is trained whole, if the encoder had no others: it has.
            let options = ModelOptions { pooling, train_pooler, ..options(method.clone(), 2) };
            let model = Model::new(&tiny(), &options).unwrap();
            for (index, (name, variable)) in model.parameters().trainable().enumerate() {
                let new = numbers(variable.elem_count(), index as u64);
                let values = flat(variable).iter().zip(&new).map(|(value, new)| value + 0.1 * new).collect();
                set(&model, name, values);
            }
            let there = tempfile::tempdir().unwrap();
            model.save_adapter(there.path()).unwrap();
            let (again, warnings) = Model::from_adapter(&tiny(), there.path()).unwrap();
            assert_eq!(warnings, []);
            assert_eq!(again.trainable_report(), model.trainable_report());
            let logits = |model: &Model| flat(&model.predict(&batch).unwrap());
            assert_eq!(logits(&again), logits(&model), "{method}");
        }
    }
}

#[test]
fn an_adapter_loads_into_a_model_that_was_built_without_it() {
    let there = tempfile::tempdir().unwrap();
    let build = |seed| Model::new(&tiny(), &ModelOptions { seed, ..ModelOptions::new(Method::lora(2), 2) }).unwrap();
    let (saved, other) = (build(1), build(2));
    fill_lora_b(&saved);
    saved.save_adapter(there.path()).unwrap();
    assert_eq!(other.load_adapter(there.path()).unwrap(), []);
    let batch = batch(&sequences(&[7, 12], 100));
    assert_eq!(flat(&other.predict(&batch).unwrap()), flat(&saved.predict(&batch).unwrap()));
}

#[test]
fn another_base_models_name_is_a_warning_and_another_folder_of_the_same_is_none() {
    let there = tempfile::tempdir().unwrap();
    let model = Model::new(&tiny(), &ModelOptions::new(Method::lora(2), 2)).unwrap();
    model.save_adapter(there.path()).unwrap();
    // Without the digest of the base model, as PEFT writes it.
    let tensors = there.path().join("adapter_model.safetensors");
    candle_core::safetensors::save(&load(&tensors), &tensors).unwrap();
    let path = there.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (name, warns) in [("hub/tiny-bert", false), ("google/bert-base", true)] {
        config["base_model_name_or_path"] = name.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let warnings = model.load_adapter(there.path()).unwrap();
        assert_eq!(!warnings.is_empty(), warns, "{name}");
        if warns {
            assert!(matches!(&warnings[..], [Warning::BaseModel { file, .. }] if file == name));
            assert!(warnings[0].to_string().contains(name));
        }
    }
}

/// The file of the case holds PEFT's matrices; without them, those of the key are the same, to the bit.
#[test]
fn the_random_matrices_of_vera_are_those_that_peft_draws_from_the_key() {
    let (config, _) = AdapterConfig::read(&folder("vera")).unwrap();
    let Method::Vera(vera) = &config.method else { panic!("not VeRA") };
    assert_ne!(vera.projection_prng_key, 0);
    let there = tempfile::tempdir().unwrap();
    Model::new(&tiny(), &ModelOptions::new(config.method, 3)).unwrap().save_adapter(there.path()).unwrap();
    let file = "adapter_model.safetensors";
    let (expected, found) = (load(&folder("vera").join(file)), load(&there.path().join(file)));
    for key in ["base_model.vera_A", "base_model.vera_B"] {
        assert_eq!(found[key].dims(), expected[key].dims());
        assert_eq!(flat(&found[key]), flat(&expected[key]), "{key}");
    }
}

/// Without the matrices in its file, and built from another key, a model has those of the file's key once it is loaded; and a file's
/// own matrices, whatever its key says.
#[test]
fn a_loaded_adapter_of_vera_brings_its_random_matrices() {
    let (there, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let batch = batch(&sequences(&[7, 12], 100));
    let logits = |model: &Model| flat(&model.predict(&batch).unwrap());
    let build = |projection_prng_key, save_projection| {
        let vera = Vera { r: 6, projection_prng_key, save_projection, ..Vera::default() };
        let model = Model::new(&tiny(), &ModelOptions::new(Method::Vera(vera), 2)).unwrap();
        fill_lora_b(&model);
        model
    };
    for save_projection in [false, true] {
        let saved = build(1, save_projection);
        saved.save_adapter(there.path()).unwrap();
        let other = build(2, false);
        assert_ne!(logits(&other), logits(&saved));
        assert_eq!(other.load_adapter(there.path()).unwrap(), []);
        assert_eq!(logits(&other), logits(&saved));
        // Not those of its own key any more: they must be in a file now.
        other.save_adapter(again.path()).unwrap();
        assert_eq!(logits(&Model::from_adapter(&tiny(), again.path()).unwrap().0), logits(&saved));
    }
}

/// A masked value and its vectors are nothing: a file leaves them out, as PEFT's does, and the model that comes back is narrower and
/// computes the same.
#[test]
fn values_of_adalora_that_are_masked_are_left_out_of_its_files() {
    let adalora = AdaLora { init_r: 3, target_r: 2, total_step: Some(10), ..AdaLora::default() };
    let model = Model::new(&tiny(), &ModelOptions::new(Method::AdaLora(adalora), 2)).unwrap();
    let there = tempfile::tempdir().unwrap();
    let config = || -> Value {
        serde_json::from_slice(&std::fs::read(there.path().join("adapter_config.json")).unwrap()).unwrap()
    };
    // All zero at the start: nothing was masked.
    model.save_adapter(there.path()).unwrap();
    assert_eq!(config()["rank_pattern"], Value::Null);

    let module = |layer: usize, name: &str| format!("bert.encoder.layer.{layer}.attention.self.{name}");
    set(&model, &format!("{}.lora_E", module(0, "query")), vec![0.0, 0.5, 0.0]);
    set(&model, &format!("{}.lora_E", module(0, "value")), vec![0.3, 0.2, 0.1]);
    set(&model, &format!("{}.lora_E", module(1, "query")), vec![0.0, 0.0, 0.0]);
    set(&model, &format!("{}.lora_E", module(1, "value")), vec![-0.4, 0.0, 0.7]);
    model.save_adapter(there.path()).unwrap();
    let pattern = config()["rank_pattern"].clone();
    assert_eq!(pattern[format!("{}.lora_E", module(0, "query"))], serde_json::json!([false, true, false]));
    let tensors = load(&there.path().join("adapter_model.safetensors"));
    let shape = |module: &str, part: &str| tensors[&format!("base_model.model.{module}.{part}")].dims().to_vec();
    assert_eq!(shape(&module(0, "query"), "lora_A"), [1, 32]);
    assert_eq!(shape(&module(1, "value"), "lora_B"), [32, 2]);
    assert_eq!(shape(&module(1, "query"), "lora_E"), [0, 1]);

    let (again, warnings) = Model::from_adapter(&tiny(), there.path()).unwrap();
    assert_eq!(warnings, []);
    let batch = batch(&sequences(&[7, 1, 40], 100));
    let (found, expected) = (flat(&again.predict(&batch).unwrap()), flat(&model.predict(&batch).unwrap()));
    // The same sums but for terms that are zero.
    close("logits", &found, &expected, 1e-5);
    assert!(again.after_step().unwrap().is_none(), "its budget has been spent");
}

/// `make_adapters.py`'s batches: the first two examples and the others in turn.
fn eva_batches() -> impl Iterator<Item = peft::Result<Batch>> {
    let (sequences, _) = examples();
    let parts = [batch(&sequences[..2]), batch(&sequences[2..])];
    (0..100).map(move |index| Ok(parts[index % 2].clone()))
}

fn eva(config: EvaConfig) -> Lora {
    let targets = Targets::suffixes(["query", "value", "dense"]);
    let (init_lora_weights, eva_config) = (InitLoraWeights::Eva, Some(config));
    let exclude_modules = Some(Targets::suffixes(["pooler.dense"]));
    Lora { r: 3, lora_alpha: 12.0, init_lora_weights, eva_config, exclude_modules, ..Lora::default() }.on(targets)
}

/// PEFT's components are worked out in f32; rows of length 1 that agree to a part in ten thousand but for their sign.
#[test]
fn eva_starts_from_pefts_components_and_divides_ranks_as_peft_does() {
    let (theirs, _) = AdapterConfig::read(&folder("eva")).unwrap();
    let Method::Lora(theirs) = &theirs.method else { panic!("not LoRA") };
    let asked = exact(Method::Lora(eva(EvaConfig::default())));
    let model = Model::with_data(&tiny(), &asked, eva_batches()).unwrap();
    let Method::Lora(ours) = model.method() else { panic!("not LoRA") };
    assert_eq!((&ours.rank_pattern, &ours.alpha_pattern), (&theirs.rank_pattern, &theirs.alpha_pattern));
    let names = |targets: &Targets| match targets {
        Targets::Suffixes(names) => names.iter().cloned().collect::<BTreeSet<_>>(),
        other => panic!("{other}"),
    };
    assert_eq!(names(&ours.target_modules), names(&theirs.target_modules));
    assert!(!ours.rank_pattern.is_empty(), "no rank was moved");

    let stored = load(&oracle_folder().join("adapters.safetensors"));
    for (name, a) in model.parameters().trainable().filter(|(name, _)| name.ends_with("lora_A.weight")) {
        let expected = stored[&format!("eva.start.{name}")].to_dtype(DType::F64).unwrap();
        let cosines = flat(&(a.as_tensor() * expected).unwrap().sum(1).unwrap());
        assert!(cosines.iter().all(|cosine| (cosine.abs() - 1.0).abs() < 1e-4), "{name}: {cosines:?}");
    }
    // B is zero.
    let batch = batch(&sequences(&[7, 1, 40], 100));
    let base = Model::new(&tiny(), &exact(Method::Head)).unwrap().predict(&batch).unwrap();
    close("logits", &flat(&model.predict(&batch).unwrap()), &flat(&base), 1e-12);
}

#[test]
fn eva_leaves_ranks_as_they_are_where_none_may_grow_and_whitens_where_it_is_asked_to() {
    let start = |config| {
        let asked = exact(Method::Lora(eva(config)));
        Model::with_data(&tiny(), &asked, eva_batches()).unwrap()
    };
    let uniform = start(EvaConfig { rho: 1.0, ..EvaConfig::default() });
    let Method::Lora(lora) = uniform.method() else { panic!("not LoRA") };
    assert!(lora.rank_pattern.is_empty() && lora.alpha_pattern.is_empty());
    let whitened = start(EvaConfig { rho: 1.0, whiten: true, ..EvaConfig::default() });
    for (name, a) in uniform.parameters().trainable().filter(|(name, _)| name.ends_with("lora_A.weight")) {
        let rows = |a: &Tensor| flat(&a.sqr().unwrap().sum(1).unwrap());
        close(name, &rows(a), &[1.0; 3], 1e-12);
        // A whole row is divided: the direction stays.
        let other = whitened.parameters().get(name).unwrap();
        let lengths = rows(other).iter().map(|square| square.sqrt()).collect::<Vec<_>>();
        let along = flat(&(a.as_tensor() * other.as_tensor()).unwrap().sum(1).unwrap());
        close(name, &along, &lengths, 1e-12);
        assert!(lengths.windows(2).all(|pair| pair[0] <= pair[1]), "larger values are divided by more: {lengths:?}");
    }
}

#[test]
fn eva_without_enough_data_is_an_error_that_says_so() {
    let start = |lora, batches: Vec<Batch>| {
        let batches = batches.into_iter().map(peft::Result::Ok);
        Model::with_data(&tiny(), &exact(Method::Lora(lora)), batches).err().unwrap().to_string()
    };
    let batch = || batch(&sequences(&[2, 2], 100));
    assert!(start(eva(EvaConfig::default()), vec![]).contains("batches of data"));
    assert!(start(eva(EvaConfig::default()), vec![batch()]).contains("as many tokens as rho times r"));
    assert!(start(Lora::default(), vec![batch()]).contains("does not start from data"));
    assert!(start(eva(EvaConfig { rho: 0.5, ..EvaConfig::default() }), vec![batch()]).contains("rho is 0.5"));
}

#[test]
fn an_adapter_that_is_read_while_another_process_writes_it_is_one_of_the_two_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("adapter");
    let adapter = |alpha: usize| {
        let lora = Lora { lora_alpha: alpha as f64, ..Lora::rank(2) };
        let mut adapter = Model::new(&tiny(), &ModelOptions::new(Method::Lora(lora), 3)).unwrap().adapter().unwrap();
        adapter.conditions.max_length = Some(alpha); // It stands beside the tensors.
        adapter
    };
    let adapters = [adapter(4), adapter(8)];
    adapters[0].save(&target).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok(read) = Adapter::read(&target) else { continue };
                let Method::Lora(lora) = read.config.method else { panic!("it is LoRA") };
                assert_eq!(read.conditions.max_length, Some(lora.lora_alpha as usize));
                reads += 1;
            }
            reads
        });
        (0..200).for_each(|time| adapters[time % 2].save(&target).unwrap());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 0);
}
