//! Bottleneck adapters and Compacter against AdapterHub's, by the values that `oracle/make_bottleneck.py` and `oracle/make_compacter.py`
//! stored, and their files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use peft::{
    AdapterStyle, Architecture, Bottleneck, Compacter, InitWeights, Method, Model, ModelOptions, PhmCInit, Pretrained,
    Sequence, Warning, is_head,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::counts::at_twelve_layers;
use crate::support::*;

#[derive(Deserialize)]
struct Oracle {
    bert_base: BTreeMap<AdapterStyle, usize>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    /// Those of the method, in its own words.
    options: serde_json::Map<String, Value>,
    trainable: usize,
    names: BTreeSet<String>,
    logits: Vec<Vec<f64>>,
}

/// The sequences and labels of a checkpoint's own oracle.
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

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn oracle(method: &str) -> Oracle {
    json(&oracle_folder().join(format!("{method}.json")))
}

fn tensors(method: &str) -> HashMap<String, Tensor> {
    let path = oracle_folder().join(format!("{method}.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// The methods that AdapterHub has, by their ids.
const METHODS: [&str; 2] = ["bottleneck", "compacter"];

impl Case {
    fn pretrained(&self) -> Pretrained {
        Pretrained::from_folder(&oracle_folder().join(&self.checkpoint)).unwrap()
    }

    fn examples(&self) -> (Vec<Sequence>, Vec<u32>) {
        let folder = oracle_folder().join(&self.checkpoint);
        let beside = oracle_folder().join("oracle.json");
        let examples: Examples =
            json(&if self.checkpoint == "tiny-bert" { beside } else { folder.join("oracle.json") });
        let sequence = |ids: Ids| Sequence { input_ids: ids.input_ids, token_type_ids: ids.token_type_ids };
        (examples.sequences.into_iter().map(sequence).collect(), examples.labels)
    }

    /// Without dropout, the adapter's values as they were set.
    fn model(&self, method: &str, name: &str, dtype: DType, tensors: &HashMap<String, Tensor>) -> Model {
        let method = Method::from_fields(method, self.options.clone(), || Ok(Architecture::Bert)).unwrap();
        let options = ModelOptions { dtype, dropout: Some(0.0), ..options(method, 3) };
        let model = Model::new(&self.pretrained(), &options).unwrap();
        for (key, values) in tensors {
            if let Some(parameter) = key.strip_prefix(&format!("{name}.value.")) {
                set(&model, parameter, flat(values));
            }
        }
        model
    }
}

#[test]
fn every_style_trains_the_parameters_of_adapterhub() {
    for method in METHODS {
        let tensors = tensors(method);
        for (name, case) in oracle(method).cases {
            let report = case.model(method, &name, DType::F32, &tensors).trainable_report();
            let names: BTreeSet<String> = report.tensors.iter().map(|tensor| tensor.name.clone()).collect();
            assert_eq!(names, case.names, "{method} {name}");
            assert_eq!(report.trainable(), case.trainable, "{method} {name}");
        }
    }
}

#[test]
fn every_style_has_the_logits_and_gradients_of_adapterhub_on_every_architecture() {
    for method in METHODS {
        let tensors = tensors(method);
        for (name, case) in oracle(method).cases {
            let ((sequences, labels), expected) = (case.examples(), case.logits.concat());
            let batch = batch(&sequences);
            // f32 to 1e-5, f64 to the rounding of what it is compared with: full precision for logits, f32 for gradients.
            for (dtype, (of_logits, of_gradients)) in
                of_device([(DType::F32, (1e-5, 1e-5)), (DType::F64, (1e-11, 1e-7))])
            {
                let (model, what) = (case.model(method, &name, dtype, &tensors), format!("{method} {name}"));
                let found = flat(&model.predict(&batch).unwrap());
                close(&what, &found, &expected, of_logits * largest(&expected).max(1.0));
                let store = loss(&model, &batch, &labels, None).backward().unwrap();
                for (parameter, found) in gradients(&model, &store) {
                    let expected = flat(&tensors[&format!("{name}.gradient.{parameter}")]);
                    let tolerance = of_gradients * largest(&expected).max(1.0);
                    close(&format!("{what} {parameter}"), &found, &expected, tolerance);
                }
            }
        }
    }
}

/// Of a sum of n products each layer has W of two sides, `n (inputs / n + outputs / n)` numbers, and a bias; all layers have one rule.
#[test]
fn compacter_trains_as_much_of_bert_base_as_adapterhub_says() {
    let adapter = 2 * (768 + 24) + 24 + 768;
    let expected = [(AdapterStyle::Houlsby, 2 * 12 * adapter), (AdapterStyle::Pfeiffer, 12 * adapter)];
    let counts = oracle("compacter").bert_base;
    for (adapter_style, adapters) in expected {
        assert_eq!(counts[&adapter_style], adapters + 4 * 4 * 4);
        let compacter = Method::Compacter(Compacter { adapter_style, ..Compacter::default() });
        assert_eq!(at_twelve_layers(&compacter).0, counts[&adapter_style], "{adapter_style}");
    }
}

/// AdapterHub's `methods/modeling.py`: `init_shared_parameters`, `PHMLayer.reset_parameters` and `init_W`.
#[test]
fn compacter_starts_with_adapterhubs_distributions() {
    for (shared_phm_rule, phm_c_init, rule) in [
        (true, PhmCInit::Normal, 0.03),
        (false, PhmCInit::Normal, 0.01),
        // Uniform in ±1 and in ±0.01 has a variance of a third of the bound's square.
        (true, PhmCInit::Uniform, (1.0f64 / 3.0).sqrt()),
        (false, PhmCInit::Uniform, 0.01 / 3.0f64.sqrt()),
    ] {
        let phm = Compacter { phm_dim: 16, phm_rank: 12, phm_init_range: 0.03, ..Compacter::default() };
        let compacter = Compacter { reduction_factor: 1, shared_phm_rule, phm_c_init, ..phm };
        let model = Model::new(&tiny(), &ModelOptions::new(Method::Compacter(compacter), 3)).unwrap();
        for (name, variable) in model.parameters().trainable().filter(|(name, _)| !is_head(name)) {
            let values = flat(variable);
            let deviation = (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt();
            // Glorot's, of matrices of 32 / 16 by 12.
            let expected = match name {
                _ if name.ends_with(".b") => 0.0,
                _ if name.ends_with("phm_rule") => rule,
                _ => (2.0 / (2.0 + 12.0f64)).sqrt(),
            };
            // Of 384 numbers the deviation is off by 1 / sqrt(2 * 384), 3.6 %, and by at most 5 times that.
            assert!((deviation - expected).abs() <= 0.18 * expected, "{name}: {deviation}, not {expected}");
        }
    }
}

#[test]
fn a_compacter_that_cannot_be_made_is_an_error_that_names_the_field() {
    let (plain, fitting) = (Compacter::default(), Compacter { reduction_factor: 4, ..Compacter::default() });
    for (compacter, part) in [
        // A bottleneck of 32 / 32.
        (plain, "phm_dim is 4, expected a divisor of the hidden size and of the bottleneck"),
        (Compacter { phm_dim: 3, ..fitting.clone() }, "phm_dim is 3"),
        (Compacter { phm_dim: 0, ..fitting.clone() }, "phm_dim is 0"),
        (Compacter { phm_rank: 0, ..fitting.clone() }, "phm_rank is 0"),
        (Compacter { phm_init_range: f64::NAN, ..fitting.clone() }, "phm_init_range is NaN"),
        (Compacter { reduction_factor: 0, ..fitting.clone() }, "reduction_factor is 0"),
        (Compacter { scaling: 0.0, ..fitting.clone() }, "scaling is 0"),
    ] {
        let options = ModelOptions::new(Method::Compacter(compacter), 3);
        let error = Model::new(&tiny(), &options).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
    let model = Model::new(&tiny(), &ModelOptions::new(Method::Compacter(fitting), 3)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path()).unwrap();
    edit_config(folder.path(), |config| drop(config.insert("learn_phm".into(), json!(false))));
    let message = complaint(folder.path());
    assert!(message.contains("learn_phm false, which is not supported"), "{message}");
}

/// The rule stands once in it, whatever the number of layers.
#[test]
fn a_file_of_compacter_says_its_options_and_holds_what_layers_share_once() {
    let method = Compacter { reduction_factor: 8, shared_w_phm: true, ..Compacter::default() };
    let model = Model::new(&tiny(), &ModelOptions::new(Method::Compacter(method), 2)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path()).unwrap();
    let config: Value = json(&folder.path().join("adapter_config.json"));
    for (field, value) in [
        ("peft_type", json!("COMPACTER")),
        ("adapter_style", json!("houlsby")),
        ("phm_dim", json!(4)),
        ("shared_W_phm", json!(true)),
        ("factorized_phm_W", json!(true)),
        ("learn_phm", json!(true)),
        ("phm_c_init", json!("normal")),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
    let tensors = candle_core::safetensors::load(folder.path().join("adapter_model.safetensors"), &Device::Cpu);
    let shapes: BTreeMap<String, Vec<usize>> =
        tensors.unwrap().into_iter().map(|(key, tensor)| (key, tensor.dims().to_vec())).collect();
    let layer = |path: &str| {
        [("adapter_down.b", vec![4]), ("adapter_up.b", vec![32])]
            .map(|(name, shape)| (format!("base_model.model.bert.encoder.layer.{path}.{name}"), shape))
    };
    let shared = [
        ("W_down_left", vec![4, 8, 1]),
        ("W_down_right", vec![4, 1, 1]),
        ("W_up_left", vec![4, 1, 1]),
        ("W_up_right", vec![4, 1, 8]),
        ("phm_rule", vec![4, 4, 4]),
    ]
    .map(|(name, shape)| (format!("base_model.model.bert.shared_parameters.{name}"), shape));
    let head = [("bias", vec![2]), ("weight", vec![2, 32])]
        .map(|(name, shape)| (format!("base_model.model.classifier.{name}"), shape));
    let layers = ["0.attention.output", "0.output", "1.attention.output", "1.output"].into_iter().flat_map(layer);
    assert_eq!(shapes, layers.chain(shared).chain(head).collect());
}

/// `2 * hidden * bottleneck + bottleneck + hidden` for each adapter, at AdapterHub's reduction factors.
#[test]
fn bottleneck_adapters_train_as_much_of_bert_base_as_adapterhub_says() {
    let adapter = |bottleneck: usize| 2 * 768 * bottleneck + bottleneck + 768;
    let expected = [
        (AdapterStyle::Houlsby, 2 * 12 * adapter(768 / 16)),
        (AdapterStyle::Pfeiffer, 12 * adapter(768 / 16)),
        (AdapterStyle::Parallel, 12 * adapter(768 / 2)),
    ];
    assert_eq!(expected.map(|(_, count)| count), [1_789_056, 894_528, 7_091_712]);
    assert_eq!(oracle("bottleneck").bert_base, BTreeMap::from(expected));
    for (style, expected) in expected {
        let bottleneck = Bottleneck::new(style);
        let (trained, _) = at_twelve_layers(&Method::Bottleneck(bottleneck.clone()));
        assert_eq!(trained, expected, "{style}");
        // Each layer's two norms and the embeddings'.
        let (trained, _) = at_twelve_layers(&Method::Bottleneck(Bottleneck { train_layer_norms: true, ..bottleneck }));
        assert_eq!(trained, expected + (2 * 12 + 1) * 2 * 768, "{style}");
    }
}

#[test]
fn adapters_start_with_adapterhubs_distributions() {
    for style in [AdapterStyle::Houlsby, AdapterStyle::Pfeiffer, AdapterStyle::Parallel] {
        for init_weights in [InitWeights::Bert, InitWeights::MamAdapter] {
            let bottleneck = Bottleneck { bottleneck_size: Some(64), init_weights, ..Bottleneck::new(style) };
            let model = Model::new(&tiny(), &ModelOptions::new(Method::Bottleneck(bottleneck), 3)).unwrap();
            for (name, variable) in model.parameters().trainable().filter(|(name, _)| !is_head(name)) {
                let values = flat(variable);
                let deviation = (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt();
                // Uniform in ±1 / sqrt(hidden) has a variance of a third of the bound's square.
                let expected = match init_weights {
                    _ if name.ends_with("bias") => 0.0,
                    InitWeights::Bert => 0.02,
                    InitWeights::MamAdapter if name.contains("adapter_up") => 0.0,
                    InitWeights::MamAdapter => (1.0 / (3.0 * 32.0f64)).sqrt(),
                };
                // Of 2048 numbers the deviation is off by 1 / sqrt(2 * 2048), 1.6 %, and by at most 5 times that.
                assert!((deviation - expected).abs() <= 0.08 * expected, "{style} {name}: {deviation}");
            }
        }
    }
}

#[test]
fn an_adapter_whose_up_projection_starts_at_zero_gives_the_logits_of_the_base_model_exactly() {
    let batch = batch(&sequences(&[7, 1, 40], 100));
    let logits = |method| flat(&Model::new(&tiny(), &exact(method)).unwrap().predict(&batch).unwrap());
    let base = logits(Method::Head);
    for style in [AdapterStyle::Houlsby, AdapterStyle::Pfeiffer, AdapterStyle::Parallel] {
        let bottleneck = Bottleneck::new(style);
        let zero = Bottleneck { init_weights: InitWeights::MamAdapter, ..bottleneck.clone() };
        assert_eq!(logits(Method::Bottleneck(zero)), base, "{style}");
        let near = Bottleneck { init_weights: InitWeights::Bert, ..bottleneck };
        assert_ne!(logits(Method::Bottleneck(near)), base, "{style}");
    }
}

#[test]
fn a_bottleneck_adapter_is_not_merged_and_the_error_says_why() {
    let compacter = Compacter { adapter_style: AdapterStyle::Pfeiffer, reduction_factor: 8, ..Compacter::default() };
    for (method, name) in [
        (Method::Bottleneck(Bottleneck::default()), "Pfeiffer adapter"),
        (Method::Compacter(compacter), "Compacter++ n=4 /8"),
    ] {
        let model = Model::new(&tiny(), &ModelOptions::new(method, 3)).unwrap();
        let error = model.merge_and_unload().err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("cannot be merged"), "{error}");
    }
}

const KEY: &str = "base_model.model.bert.encoder.layer.1.output.adapter_down.weight";

/// A folder with a Pfeiffer adapter on the tiny BERT.
fn saved() -> (Model, tempfile::TempDir) {
    let model = Model::new(&tiny(), &ModelOptions::new(Method::Bottleneck(Bottleneck::default()), 2)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path()).unwrap();
    (model, folder)
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("adapter_config.json");
    let mut config: Value = json(&path);
    edit(config.as_object_mut().unwrap());
    std::fs::write(path, config.to_string()).unwrap();
}

fn edit_tensors(folder: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = folder.join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// What reading the folder complains of.
fn complaint(folder: &Path) -> String {
    Model::from_adapter(&tiny(), folder).err().unwrap().to_string()
}

#[test]
fn a_file_of_a_bottleneck_adapter_says_its_options_and_holds_its_matrices_and_the_head() {
    let (_, folder) = saved();
    let config: Value = json(&folder.path().join("adapter_config.json"));
    for (field, value) in [
        ("peft_type", json!("BOTTLENECK")),
        ("task_type", json!("SEQ_CLS")),
        ("adapter_style", json!("pfeiffer")),
        ("reduction_factor", json!(16)),
        ("bottleneck_size", Value::Null),
        ("non_linearity", json!("relu")),
        ("scaling", json!(1.0)),
        ("dropout", json!(0.0)),
        ("init_weights", json!("bert")),
        ("train_layer_norms", json!(false)),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
    let tensors = candle_core::safetensors::load(folder.path().join("adapter_model.safetensors"), &Device::Cpu);
    let shapes: BTreeMap<String, Vec<usize>> =
        tensors.unwrap().into_iter().map(|(key, tensor)| (key, tensor.dims().to_vec())).collect();
    let layer = |index| {
        [
            ("adapter_down.bias", vec![2]),
            ("adapter_down.weight", vec![2, 32]),
            ("adapter_up.bias", vec![32]),
            ("adapter_up.weight", vec![32, 2]),
        ]
        .map(|(name, shape)| (format!("base_model.model.bert.encoder.layer.{index}.output.{name}"), shape))
    };
    let head = [("bias", vec![2]), ("weight", vec![2, 32])]
        .map(|(name, shape)| (format!("base_model.model.classifier.{name}"), shape));
    assert_eq!(shapes, layer(0).into_iter().chain(layer(1)).chain(head).collect());
}

#[test]
fn a_configuration_without_options_has_those_of_its_style() {
    let (model, folder) = saved();
    edit_config(folder.path(), |config| {
        for field in ["reduction_factor", "non_linearity", "scaling", "dropout", "init_weights", "train_layer_norms"] {
            config.remove(field).unwrap();
        }
    });
    let (again, warnings) = Model::from_adapter(&tiny(), folder.path()).unwrap();
    assert_eq!((again.method(), warnings), (model.method(), Vec::<Warning>::new()));
}

#[test]
fn a_configuration_that_makes_no_bottleneck_adapter_is_an_error_that_names_the_field() {
    for (field, value, part) in [
        ("adapter_style", json!("pfeifer"), "unknown variant `pfeifer`, expected one of `houlsby`, `pfeiffer`"),
        ("non_linearity", json!("mish"), "non_linearity \"mish\": unknown variant"),
        ("init_weights", json!("xavier"), "init_weights \"xavier\""),
        ("reduction_factor", json!(0), "reduction_factor is 0, expected at least 1"),
        ("reduction_factor", json!(1.5), "reduction_factor 1.5"),
        ("bottleneck_size", json!(0), "bottleneck_size is 0"),
        ("scaling", json!(0), "scaling is 0"),
        ("scaling", json!("learned"), "scaling \"learned\""),
        ("dropout", json!(1), "dropout is 1"),
    ] {
        let (_, folder) = saved();
        edit_config(folder.path(), |config| drop(config.insert(field.into(), value)));
        let message = complaint(folder.path());
        assert!(message.contains(part) && message.contains("adapter_config.json"), "{field}: {message}");
    }
    let (_, folder) = saved();
    edit_config(folder.path(), |config| drop(config.insert("reduction_faktor".into(), json!(8))));
    let (_, warnings) = Model::from_adapter(&tiny(), folder.path()).unwrap();
    assert!(matches!(&warnings[..], [Warning::UnknownField { nearest, .. }] if nearest.contains("reduction_factor")));
}

#[test]
fn tensors_that_do_not_fit_a_bottleneck_adapter_are_an_error_that_names_the_key() {
    let (_, folder) = saved();
    edit_config(folder.path(), |config| drop(config.insert("reduction_factor".into(), json!(8))));
    let message = complaint(folder.path());
    assert!(message.contains("should have shape [4]") && message.contains("found [2]"), "{message}");

    let (_, folder) = saved();
    edit_tensors(folder.path(), |tensors| {
        let tensor = tensors.remove(KEY).unwrap();
        tensors.insert(KEY.replace("adapter_down", "adapter_dawn"), tensor);
    });
    let message = complaint(folder.path());
    assert!(message.contains(KEY) && message.contains("adapter_dawn"), "{message}");

    // Of a base model with more layers.
    let (_, folder) = saved();
    let key = KEY.replace("layer.1", "layer.2");
    edit_tensors(folder.path(), |tensors| {
        let tensor = tensors[KEY].clone();
        tensors.insert(key.clone(), tensor);
    });
    let message = complaint(folder.path());
    assert!(message.contains(&key) && message.contains("a module that the model has not"), "{message}");

    // Of Houlsby's style: attention is there, and has no place for an adapter.
    let (_, folder) = saved();
    let key = KEY.replace("output.adapter", "attention.output.adapter");
    edit_tensors(folder.path(), |tensors| {
        let tensor = tensors[KEY].clone();
        tensors.insert(key.clone(), tensor);
    });
    let (_, warnings) = Model::from_adapter(&tiny(), folder.path()).unwrap();
    assert!(matches!(&warnings[..], [Warning::UnknownTensor { key: found, .. }] if *found == key), "{warnings:?}");
}

#[test]
fn an_adapter_that_computes_otherwise_does_not_load_into_a_model() {
    let (_, folder) = saved();
    let pfeiffer = Bottleneck::default();
    for (bottleneck, field) in [
        (Bottleneck { adapter_style: AdapterStyle::Parallel, ..pfeiffer.clone() }, "adapter_style"),
        (Bottleneck { non_linearity: peft::Activation::Tanh, ..pfeiffer.clone() }, "non_linearity"),
        (Bottleneck { scaling: 2.0, ..pfeiffer.clone() }, "scaling"),
        (Bottleneck { train_layer_norms: true, ..pfeiffer.clone() }, "train_layer_norms"),
    ] {
        let model = Model::new(&tiny(), &ModelOptions::new(Method::Bottleneck(bottleneck), 2)).unwrap();
        let message = model.load_adapter(folder.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("the adapter has {field}")), "{message}");
    }
    // What only training or a start knows does not matter, and how the same size is said neither.
    let other = Bottleneck {
        dropout: 0.5,
        init_weights: InitWeights::MamAdapter,
        bottleneck_size: Some(2),
        reduction_factor: 3,
        ..pfeiffer
    };
    let model = Model::new(&tiny(), &ModelOptions::new(Method::Bottleneck(other), 2)).unwrap();
    assert_eq!(model.load_adapter(folder.path()).unwrap(), []);
}
