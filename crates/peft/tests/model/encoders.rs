//! Every architecture against transformers and PEFT, by the values that `oracle/encoders/make_encoders.py` stored, and by finite
//! differences.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, TensorId};
use peft::{
    Architecture, ForwardPass, Ia3, LnTuning, Lora, Method, Model, ModelOptions, Pooling, Precision, Pretrained,
    Sequence, Targets, is_head,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::gradients::agrees_with_finite_differences;
use crate::support::*;

/// The tiny checkpoints; the tests take each.
pub(crate) const CASES: [&str; 8] =
    ["roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "deberta-v3", "deberta-v2", "modernbert"];

pub(crate) fn folder(case: &str) -> PathBuf {
    oracle_folder().join("encoders").join(case)
}

fn checkpoint(case: &str) -> Pretrained {
    Pretrained::from_folder(&folder(case)).unwrap()
}

#[derive(Deserialize)]
pub(crate) struct Oracle {
    sequences: Vec<Ids>,
    pub labels: Vec<u32>,
    logits: BTreeMap<String, Vec<Vec<f64>>>,
    lora: LoraCase,
}

#[derive(Deserialize)]
struct Ids {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct LoraCase {
    r: usize,
    lora_alpha: f64,
    targets: Vec<String>,
    logits: Vec<Vec<f64>>,
    line: String,
}

impl Oracle {
    pub(crate) fn read(case: &str) -> Self {
        serde_json::from_slice(&std::fs::read(folder(case).join("oracle.json")).unwrap()).unwrap()
    }

    pub(crate) fn sequences(&self) -> Vec<Sequence> {
        let sequence =
            |ids: &Ids| Sequence { input_ids: ids.input_ids.clone(), token_type_ids: ids.token_type_ids.clone() };
        self.sequences.iter().map(sequence).collect()
    }
}

fn tensors(case: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(case).join("oracle.safetensors"), &Device::Cpu).unwrap()
}

/// The two number types and how close each comes: f32 to 1e-5, f64 to the rounding of what it is compared with.
const LOGITS: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::F64, 1e-11)];
const GRADIENTS: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::F64, 1e-7)];

/// Every trained parameter's gradient against those under `prefix`, where the oracle has any: as many, of the same names.
/// `tolerance` is relative to the tensor's largest gradient, and to that of the whole model for those that cancel.
fn gradients_are_close(case: &str, model: &Model, prefix: &str, tolerance: f64) {
    let expected: BTreeMap<String, Vec<f64>> = tensors(case)
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), flat(tensor))))
        .collect();
    if expected.is_empty() {
        return assert_eq!(case, "xlm-roberta", "{prefix}: only the case with padding tokens has no gradients");
    }
    let oracle = Oracle::read(case);
    let store = loss(model, &batch(&oracle.sequences()), &oracle.labels, None).backward().unwrap();
    let found = gradients(model, &store);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{case} {prefix}");
    let largest_of_all = expected.values().map(|gradient| largest(gradient)).fold(0.0, f64::max);
    for (name, found) in found {
        let scale = if has_zero_gradient(&name) { largest_of_all } else { largest(&expected[&name]) };
        close(&format!("{case} {prefix}{name}"), &found, &expected[&name], tolerance * scale);
    }
}

#[test]
fn logits_of_every_architecture_equal_those_of_transformers_for_both_poolings() {
    for case in CASES {
        let oracle = Oracle::read(case);
        for (name, pooling) in [("cls", Pooling::Cls), ("mean", Pooling::Mean)] {
            for (dtype, tolerance) in of_device(LOGITS) {
                let options = ModelOptions { pooling, dtype, ..options(Method::Head, 3) };
                let logits = Model::new(&checkpoint(case), &options).unwrap().predict(&batch(&oracle.sequences()));
                let expected = oracle.logits[name].concat();
                close(&format!("{case} {name}"), &flat(&logits.unwrap()), &expected, tolerance * largest(&expected));
            }
        }
    }
}

#[test]
fn gradients_of_every_architecture_equal_those_of_torch_for_every_parameter() {
    for case in CASES {
        for (prefix, pooling) in [("full.cls.", Pooling::Cls), ("full.mean.", Pooling::Mean)] {
            for (dtype, tolerance) in of_device(GRADIENTS) {
                let options = ModelOptions { pooling, dtype, ..options(Method::Full, 3) };
                gradients_are_close(case, &Model::new(&checkpoint(case), &options).unwrap(), prefix, tolerance);
            }
        }
    }
}

/// LoRA on the default targets with the oracle's matrices.
fn lora_model(case: &str, oracle: &Oracle, dtype: DType) -> Model {
    let pretrained = checkpoint(case);
    let targets = pretrained.config.architecture.default_targets();
    assert_eq!(targets, Targets::suffixes(&oracle.lora.targets), "{case}: the oracle's are PEFT's");
    let lora = Lora { r: oracle.lora.r, lora_alpha: oracle.lora.lora_alpha, ..Lora::default() }.on(targets);
    let options = ModelOptions { dtype, ..options(Method::Lora(lora), 3) };
    let model = Model::new(&pretrained, &options).unwrap();
    for (tensor, values) in &tensors(case) {
        if let Some(parameter) = tensor.strip_prefix("lora.value.") {
            set(&model, parameter, flat(values));
        }
    }
    model
}

#[test]
fn logits_and_gradients_of_lora_on_every_architectures_default_targets_equal_those_of_peft() {
    for case in CASES {
        let oracle = Oracle::read(case);
        let expected = oracle.lora.logits.concat();
        for ((dtype, logits_tolerance), (_, gradient_tolerance)) in of_device(LOGITS).zip(of_device(GRADIENTS)) {
            let model = lora_model(case, &oracle, dtype);
            let batch = batch(&oracle.sequences());
            let tolerance = logits_tolerance * largest(&expected);
            close(case, &flat(&model.predict(&batch).unwrap()), &expected, tolerance);
            gradients_are_close(case, &model, "lora.gradient.", gradient_tolerance);
            close(
                &format!("{case} merged"),
                &flat(&model.merge_and_unload().unwrap().predict(&batch).unwrap()),
                &expected,
                tolerance,
            );
        }
    }
}

#[test]
fn the_report_line_of_lora_on_every_architecture_is_pefts() {
    for case in CASES {
        let oracle = Oracle::read(case);
        assert_eq!(lora_model(case, &oracle, DType::F32).trainable_report().to_string(), oracle.lora.line, "{case}");
    }
}

#[test]
fn an_adapter_of_every_architecture_saves_its_head_and_loads_again() {
    for case in CASES {
        let oracle = Oracle::read(case);
        let model = lora_model(case, &oracle, DType::F32);
        let folder = tempfile::tempdir().unwrap();
        // A head of its own, since the checkpoint has one.
        let head = model.parameters().trainable().filter(|(name, _)| is_head(name));
        for (index, (name, variable)) in head.enumerate() {
            set(&model, name, numbers(variable.elem_count(), 300 + index as u64));
        }
        model.save_adapter(folder.path()).unwrap();
        let (again, warnings) = Model::from_adapter(&checkpoint(case), folder.path()).unwrap();
        assert!(warnings.is_empty(), "{case}: {warnings:?}");
        let batch = batch(&oracle.sequences());
        assert_eq!(flat(&again.predict(&batch).unwrap()), flat(&model.predict(&batch).unwrap()), "{case}");
        let config = std::fs::read(folder.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let saved: HashSet<&str> =
            config["modules_to_save"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        // What PEFT must be told to train and save.
        let head: HashSet<&str> = model
            .parameters()
            .trainable()
            .filter_map(|(name, _)| is_head(name).then(|| name.split('.').next()).flatten())
            .collect();
        assert!(saved.is_superset(&head), "{case}: {saved:?}");
    }
}

/// A model of the case with dropout, LoRA's B and bottleneck adapters filled.
fn with_dropout(case: &str, method: Method, pooling: Pooling) -> Model {
    let options = ModelOptions { pooling, dropout: Some(0.2), dtype: DType::F64, ..ModelOptions::new(method, 3) };
    let model = Model::new(&checkpoint(case), &options).unwrap();
    fill_lora_b(&model);
    fill_bottleneck(&model);
    model
}

/// Every linear layer that LoRA may adapt.
fn every_linear_layer() -> Method {
    Method::Lora(Lora { lora_dropout: 0.3, ..Lora::rank(2).on(Targets::pattern(".*")) })
}

#[test]
fn with_dropout_lora_on_every_architecture_has_the_gradient_of_finite_differences() {
    for case in CASES {
        let targets = checkpoint(case).config.architecture.default_targets();
        let on_the_defaults = Method::Lora(Lora { lora_dropout: 0.3, ..Lora::rank(2).on(targets) });
        let batch = batch(&sequences(&[7, 1, 12, 2], 50));
        for method in [on_the_defaults, every_linear_layer()] {
            for pooling in [Pooling::Cls, Pooling::Mean] {
                let model = with_dropout(case, method.clone(), pooling);
                agrees_with_finite_differences(&model, &batch, &[2, 0, 1, 1], Some(5));
            }
        }
    }
}

#[test]
fn what_training_records_of_every_architecture_gives_the_gradients_of_candles_graph() {
    for case in CASES {
        for method in [Method::Full, Method::bitfit(), every_linear_layer()].into_iter().chain(smooth_bottlenecks()) {
            for pooling in [Pooling::Cls, Pooling::Mean] {
                let model = with_dropout(case, method.clone(), pooling);
                let (batch, labels) = (batch(&sequences(&[7, 1, 12, 2], 50)), [2, 0, 1, 1]);
                let expected = gradients(&model, &loss(&model, &batch, &labels, Some(5)).backward().unwrap());
                let labels = Tensor::new(&labels, &Device::Cpu).unwrap();
                let recorded = ops::record(|| -> peft::Result<Tensor> {
                    let logits = model.forward(&batch, &ForwardPass::training(&batch.segments, 5))?;
                    Ok(ops::cross_entropy(&logits, &labels)?)
                });
                let found = recorded.unwrap().gradients().unwrap();
                for (name, variable) in model.parameters().trainable() {
                    let found = flat(found.get(variable).unwrap());
                    let scale = largest(&expected[name]).max(1.0);
                    // The same operations in f64; only gradients that meet are added in another order.
                    close(&format!("{case} {name}"), &found, &expected[name], 1e-13 * scale);
                }
            }
        }
    }
}

#[test]
fn no_frozen_parameter_of_any_architecture_has_a_gradient_tensor() {
    for case in CASES {
        for method in [Method::Head, Method::bitfit(), every_linear_layer()].into_iter().chain(smooth_bottlenecks()) {
            let model = with_dropout(case, method.clone(), Pooling::Cls);
            let batch = batch(&sequences(&[7, 1, 12, 2], 50));
            let store = loss(&model, &batch, &[2, 0, 1, 1], Some(5)).backward().unwrap();
            // candle drops the gradients of intermediate results itself: what is left belongs to parameters.
            let of_parameters: HashSet<TensorId> =
                model.parameters().trainable().map(|(_, variable)| variable.id()).collect();
            assert_eq!(store.get_ids().copied().collect::<HashSet<_>>(), of_parameters, "{case} {method}");
        }
    }
}

#[test]
fn ia3_and_layer_norm_tuning_on_every_architectures_defaults_have_the_gradient_of_finite_differences() {
    for case in CASES {
        let architecture = checkpoint(case).config.architecture;
        for method in [
            Method::Ia3(Ia3::for_architecture(architecture)),
            Method::LnTuning(LnTuning::for_architecture(architecture)),
        ] {
            let model = with_dropout(case, method.clone(), Pooling::Cls);
            agrees_with_finite_differences(&model, &batch(&sequences(&[7, 1, 12, 2], 50)), &[2, 0, 1, 1], Some(5));
            let trained = |end: &str| model.parameters().trainable().filter(|(name, _)| name.ends_with(end)).count();
            // Two vectors for attention, or one where it has one projection, and one or two for what leaves a block.
            let layers = model.config().num_hidden_layers;
            match method {
                Method::Ia3(_) => assert!(trained("ia3_l") % layers == 0 && trained("ia3_l") >= 2 * layers, "{case}"),
                _ => assert!(trained("weight") >= 2 * layers, "{case}"),
            }
        }
    }
}

#[test]
fn bottleneck_adapters_on_every_architecture_have_the_gradient_of_finite_differences() {
    for case in CASES {
        for method in smooth_bottlenecks() {
            for pooling in [Pooling::Cls, Pooling::Mean] {
                let model = with_dropout(case, method.clone(), pooling);
                agrees_with_finite_differences(&model, &batch(&sequences(&[7, 1, 12, 2], 50)), &[2, 0, 1, 1], Some(5));
            }
        }
    }
}

#[test]
fn bottleneck_adapters_of_every_architecture_come_back_from_their_files_with_the_same_logits() {
    for case in CASES {
        let batch = batch(&Oracle::read(case).sequences());
        for method in smooth_bottlenecks() {
            let model = Model::new(&checkpoint(case), &ModelOptions::new(method.clone(), 2)).unwrap();
            fill_bottleneck(&model);
            let folder = tempfile::tempdir().unwrap();
            model.save_adapter(folder.path()).unwrap();
            let (again, warnings) = Model::from_adapter(&checkpoint(case), folder.path()).unwrap();
            assert_eq!(warnings, [], "{case}");
            assert_eq!(again.trainable_report(), model.trainable_report(), "{case} {method}");
            assert_eq!(flat(&again.predict(&batch).unwrap()), flat(&model.predict(&batch).unwrap()), "{case} {method}");
        }
    }
}

/// As for BERT: the formula has no term between two sequences.
#[test]
fn the_logits_of_a_sequence_do_not_depend_on_its_batch_on_any_architecture() {
    for case in CASES {
        let sequences = sequences(&[7, 1, 40, 12, 2], 50);
        for pooling in [Pooling::Cls, Pooling::Mean] {
            let options = ModelOptions { pooling, ..exact(every_linear_layer()) };
            let model = Model::new(&checkpoint(case), &options).unwrap();
            fill_lora_b(&model);
            let together = flat(&model.predict(&batch(&sequences)).unwrap());
            for (sequence, expected) in sequences.iter().zip(together.chunks(3)) {
                let alone = flat(&model.predict(&batch(std::slice::from_ref(sequence))).unwrap());
                close(case, &alone, expected, 1e-13 * largest(&together));
            }
        }
    }
}

/// Saves the case's checkpoint with other names, or without some of its tensors.
fn rewritten(case: &str, name: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let path = |folder: &Path, file: &str| folder.join(file);
    std::fs::copy(path(&folder(case), "config.json"), path(copy.path(), "config.json")).unwrap();
    let tensors = candle_core::safetensors::load(path(&folder(case), "model.safetensors"), &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> =
        tensors.into_iter().filter_map(|(old, tensor)| Some((name(&old)?, tensor))).collect();
    candle_core::safetensors::save(&tensors, path(copy.path(), "model.safetensors")).unwrap();
    copy
}

#[test]
fn a_bare_encoders_checkpoint_loads_without_the_prefix_and_its_head_is_new_and_trained() {
    for case in CASES {
        let bare = rewritten(case, |name| {
            let (_, rest) = name.split_once('.')?;
            (!is_head(name)).then(|| rest.to_string())
        });
        for pooling in [Pooling::Cls, Pooling::Mean] {
            let options = ModelOptions { pooling, ..exact(Method::Head) };
            let whole = Model::new(&checkpoint(case), &options).unwrap();
            let model = Model::new(&Pretrained::from_folder(bare.path()).unwrap(), &options).unwrap();
            let mut new: Vec<&str> = model.parameters().new_names().iter().map(String::as_str).collect();
            new.sort_unstable();
            assert_eq!(new, whole.parameters().trainable().map(|(name, _)| name).collect::<Vec<_>>(), "{case}");
            assert!(new.iter().all(|name| is_head(name)) && model.trainable_report().trainable_without_head() == 0);
            for (name, variable) in whole.parameters().trainable() {
                set(&model, name, flat(variable));
            }
            let batch = batch(&Oracle::read(case).sequences());
            assert_eq!(flat(&model.predict(&batch).unwrap()), flat(&whole.predict(&batch).unwrap()), "{case}");
        }
    }
}

/// Rewrites the copy's `config.json`.
fn edit_config(copy: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = copy.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(config.as_object_mut().unwrap());
    std::fs::write(path, config.to_string()).unwrap();
}

fn logits_of(pretrained: &Pretrained, case: &str) -> Vec<f64> {
    let model = Model::new(pretrained, &exact(Method::Head)).unwrap();
    flat(&model.predict(&batch(&Oracle::read(case).sequences())).unwrap())
}

#[test]
fn a_modernbert_configuration_of_before_transformers_5_means_the_same() {
    let copy = rewritten("modernbert", |name| Some(name.into()));
    edit_config(copy.path(), |config| {
        for field in ["rope_parameters", "layer_types"] {
            config.remove(field).unwrap();
        }
        // As that of ModernBERT-base: both epsilons, the angles' bases, and which layers see all.
        let old = json!({
            "layer_norm_eps": 1e-5, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
            "position_embedding_type": "absolute", "global_attn_every_n_layers": 3,
        });
        config.extend(old.as_object().unwrap().clone());
    });
    let old = Pretrained::from_folder(copy.path()).unwrap();
    assert_eq!(logits_of(&old, "modernbert"), logits_of(&checkpoint("modernbert"), "modernbert"));
    edit_config(copy.path(), |config| drop(config.insert("local_rope_theta".into(), json!(160_000.0))));
    let turned_otherwise = Pretrained::from_folder(copy.path()).unwrap();
    assert_ne!(logits_of(&turned_otherwise, "modernbert"), logits_of(&old, "modernbert"));
}

#[test]
fn the_terms_of_disentangled_attention_may_be_listed_or_joined() {
    let copy = rewritten("deberta-v3", |name| Some(name.into()));
    edit_config(copy.path(), |config| drop(config.insert("pos_att_type".into(), json!("p2c|c2p"))));
    let joined = Pretrained::from_folder(copy.path()).unwrap();
    assert_eq!(logits_of(&joined, "deberta-v3"), logits_of(&checkpoint("deberta-v3"), "deberta-v3"));
}

#[test]
fn what_an_encoder_cannot_be_is_an_error_that_names_the_field() {
    for (case, field, value, part) in [
        ("deberta-v3", "conv_kernel_size", json!(3), "conv_kernel_size 3, expected at most 0"),
        ("deberta-v3", "embedding_size", json!(8), "embedding_size with another size than hidden_size"),
        ("deberta-v3", "pos_att_type", json!(["p2p"]), "pos_att_type with other than c2p, p2c or both"),
        ("deberta-v3", "relative_attention", json!(false), "pos_att_type with other than c2p, p2c or both"),
        (
            "mpnet",
            "relative_attention_num_buckets",
            json!(16),
            "relative_attention_num_buckets 16, expected at least 32",
        ),
        ("modernbert", "layer_types", json!(["full_attention"]), "the number of layer_types 1, expected at least 4"),
        (
            "modernbert",
            "layer_types",
            json!(["chunked_attention"]),
            "layer_types [\"chunked_attention\"]: unknown variant `chunked_attention`",
        ),
        (
            "modernbert",
            "rope_scaling",
            json!({ "type": "linear" }),
            "rope_scaling {\"type\":\"linear\"}, which is not supported",
        ),
        ("modernbert", "global_attn_every_n_layers", json!(0), "expected a whole number from 1 to 1024"),
        ("distilbert", "activation", json!("mish"), "unknown variant `mish`"),
        ("electra", "embedding_size", json!(null), "embedding_size null: invalid type: null"),
    ] {
        let copy = rewritten(case, |name| Some(name.into()));
        edit_config(copy.path(), |config| drop(config.insert(field.into(), value)));
        let message = Pretrained::from_folder(copy.path()).err().unwrap().to_string();
        assert!(message.contains(part) && message.contains("config.json"), "{case} {field}: {message}");
    }
}

#[test]
fn a_sequence_longer_than_an_architectures_positions_is_an_error_that_says_how_many() {
    for (case, limit) in [("mpnet", 150), ("deberta-v3", 40), ("modernbert", 40), ("distilbert", 40)] {
        let pretrained = checkpoint(case);
        assert_eq!(pretrained.max_length(), limit, "{case}");
        let model = Model::new(&pretrained, &exact(Method::Head)).unwrap();
        assert!(model.predict(&batch(&sequences(&[limit], 50))).is_ok());
        let message = model.predict(&batch(&sequences(&[limit + 1], 50))).unwrap_err().to_string();
        assert!(message.contains(&format!("{} tokens", limit + 1)), "{message}");
    }
}

/// A product of bf16 numbers is off by up to a 128th, to either side; a chain of the 20 to 30 that lie between the embeddings and the
/// logits of a tiny model by about `sqrt(30) / 128`, 4.3 %. Of 18 logits none is off by four times that, 17 % of the largest.
#[test]
fn in_bf16_the_logits_of_every_architecture_are_the_exact_ones_within_its_rounding() {
    for case in CASES {
        let logits = |precision| {
            let options = ModelOptions { precision, ..ModelOptions::new(Method::Head, 3) };
            let model = Model::new(&checkpoint(case), &options).unwrap();
            flat(&model.predict(&batch(&Oracle::read(case).sequences())).unwrap())
        };
        let (exact, rounded) = (logits(Precision::F32), logits(Precision::Bf16));
        close(case, &rounded, &exact, 0.17 * largest(&exact));
        assert_ne!(rounded, exact, "{case}: nothing was rounded");
    }
}

#[test]
fn every_architecture_but_berts_own_has_a_case() {
    let of_cases: Vec<Architecture> = CASES.iter().map(|case| checkpoint(case).config.architecture).collect();
    for architecture in Architecture::ALL {
        assert!(architecture == Architecture::Bert || of_cases.contains(&architecture), "{architecture}");
    }
}

#[test]
fn positions_behind_the_padding_token_are_fewer_than_rows() {
    let pretrained = checkpoint("roberta");
    assert_eq!((pretrained.config.max_position_embeddings, pretrained.max_length()), (42, 40));
    let model = Model::new(&pretrained, &exact(Method::Head)).unwrap();
    let message = model.predict(&batch(&sequences(&[41], 50))).unwrap_err().to_string();
    assert!(message.contains("41 tokens") && message.contains("40 positions"), "{message}");
}
