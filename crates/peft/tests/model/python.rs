//! Against transformers and PEFT, by the values that `oracle/make_oracle.py` stored.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use candle_core::{DType, Device, Tensor};
use peft::{Lora, Method, Model, ModelOptions, Pooling, Sequence, Targets, TrainableReport, TrainableTensor};
use serde::Deserialize;

use crate::counts::base_without_layers;
use crate::support::*;

#[derive(Deserialize)]
struct Oracle {
    sequences: Vec<Ids>,
    labels: Vec<u32>,
    num_labels: usize,
    logits: BTreeMap<String, Vec<Vec<f64>>>,
    lora: BTreeMap<String, LoraCase>,
    counts: BTreeMap<String, BTreeMap<String, Counts>>,
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
}

#[derive(Deserialize)]
struct Counts {
    r: usize,
    targets: Vec<String>,
    trainable: usize,
    all: usize,
    line: String,
    names: BTreeSet<String>,
}

impl Oracle {
    fn read() -> Self {
        serde_json::from_slice(&std::fs::read(oracle_folder().join("oracle.json")).unwrap()).unwrap()
    }

    fn sequences(&self) -> Vec<Sequence> {
        let sequence =
            |ids: &Ids| Sequence { input_ids: ids.input_ids.clone(), token_type_ids: ids.token_type_ids.clone() };
        self.sequences.iter().map(sequence).collect()
    }
}

/// A case's model with its matrices.
fn lora_model(name: &str, case: &LoraCase, num_labels: usize, dtype: DType) -> Model {
    let lora = Lora { r: case.r, lora_alpha: case.lora_alpha, ..Lora::default() }.on(Targets::suffixes(&case.targets));
    let options = ModelOptions { dtype, ..options(Method::Lora(lora), num_labels) };
    let model = Model::new(&tiny(), &options).unwrap();
    for (tensor, values) in &tensors() {
        if let Some(parameter) = tensor.strip_prefix(&format!("{name}.value.")) {
            set(&model, parameter, flat(values));
        }
    }
    model
}

fn tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(oracle_folder().join("oracle.safetensors"), &Device::Cpu).unwrap()
}

/// The tensors under `prefix`, which must be those of the model's trained parameters, no more and no fewer.
fn expected(prefix: &str, model: &Model) -> BTreeMap<String, Vec<f64>> {
    let named: BTreeMap<String, Vec<f64>> = tensors()
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), flat(tensor))))
        .collect();
    let found: Vec<&str> = model.parameters().trainable().map(|(name, _)| name).collect();
    assert_eq!(found, named.keys().map(String::as_str).collect::<Vec<_>>());
    named
}

/// The two number types and how close each comes: f32 to the 1e-5 that was asked for, f64 to the rounding of what it is
/// compared with (full precision for logits, f32 for gradients).
const LOGITS: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::F64, 1e-11)];
const GRADIENTS: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::F64, 1e-7)];

/// `tolerance` is relative to the tensor's largest gradient, and to `loss_gradient` of the whole model for those that cancel.
fn gradients_are_close(model: &Model, oracle: &Oracle, prefix: &str, tolerance: f64) {
    let store = loss(model, &batch(&oracle.sequences()), &oracle.labels, None).backward().unwrap();
    let expected = expected(prefix, model);
    let largest_of_all = expected.values().map(|gradient| largest(gradient)).fold(0.0, f64::max);
    for (name, found) in gradients(model, &store) {
        let scale = if has_zero_gradient(&name) { largest_of_all } else { largest(&expected[&name]) };
        close(&name, &found, &expected[&name], tolerance * scale);
    }
}

#[test]
fn logits_equal_those_of_transformers_for_both_poolings() {
    let oracle = Oracle::read();
    for (name, pooling) in [("cls", Pooling::Cls), ("mean", Pooling::Mean)] {
        for (dtype, tolerance) in of_device(LOGITS) {
            let options = ModelOptions { pooling, dtype, ..options(Method::Head, oracle.num_labels) };
            let logits = Model::new(&tiny(), &options).unwrap().predict(&batch(&oracle.sequences())).unwrap();
            close(name, &flat(&logits), &oracle.logits[name].concat(), tolerance);
        }
    }
}

#[test]
fn gradients_of_full_fine_tuning_equal_those_of_torch_for_every_parameter() {
    let oracle = Oracle::read();
    for (prefix, pooling) in [("full.cls.", Pooling::Cls), ("full.mean.", Pooling::Mean)] {
        for (dtype, tolerance) in of_device(GRADIENTS) {
            let options = ModelOptions { pooling, dtype, ..options(Method::Full, oracle.num_labels) };
            gradients_are_close(&Model::new(&tiny(), &options).unwrap(), &oracle, prefix, tolerance);
        }
    }
}

#[test]
fn logits_and_gradients_of_lora_equal_those_of_peft_for_the_same_matrices() {
    let oracle = Oracle::read();
    for (name, case) in &oracle.lora {
        for ((dtype, logits_tolerance), (_, gradient_tolerance)) in of_device(LOGITS).zip(of_device(GRADIENTS)) {
            let model = lora_model(name, case, oracle.num_labels, dtype);
            let logits = model.predict(&batch(&oracle.sequences())).unwrap();
            close(name, &flat(&logits), &case.logits.concat(), logits_tolerance);
            gradients_are_close(&model, &oracle, &format!("{name}.gradient."), gradient_tolerance);
        }
    }
}

#[test]
fn logits_of_merged_lora_equal_those_of_peft_for_the_same_matrices() {
    let oracle = Oracle::read();
    for (name, case) in &oracle.lora {
        for (dtype, tolerance) in of_device(LOGITS) {
            let model = lora_model(name, case, oracle.num_labels, dtype).merge_and_unload().unwrap();
            let logits = model.predict(&batch(&oracle.sequences())).unwrap();
            close(name, &flat(&logits), &case.logits.concat(), tolerance);
        }
    }
}

#[test]
fn what_lora_trains_and_its_report_line_are_pefts() {
    for expected in Oracle::read().counts["tiny"].values() {
        let method = Method::Lora(Lora::rank(expected.r).on(Targets::suffixes(&expected.targets)));
        let report = Model::new(&tiny(), &ModelOptions::new(method, 3)).unwrap().trainable_report();
        assert_eq!(report.tensors.iter().map(|tensor| tensor.name.clone()).collect::<BTreeSet<_>>(), expected.names);
        is_pefts(&report, expected);
    }
}

#[test]
fn the_report_line_of_lora_on_bert_base_is_pefts() {
    for expected in Oracle::read().counts["bert_base"].values() {
        let method = Method::Lora(Lora::rank(expected.r).on(Targets::suffixes(&expected.targets)));
        let [one, two] = base_without_layers(&method);
        // Ten more of the second layer.
        let second: Vec<TrainableTensor> =
            two.tensors.iter().filter(|t| t.name.contains("layer.1.")).cloned().collect();
        let tensors = two.tensors.iter().cloned().chain((0..10).flat_map(|_| second.clone())).collect();
        let report = TrainableReport { tensors, total: one.total + 11 * (two.total - one.total), ..two };
        is_pefts(&report, expected);
    }
}

fn is_pefts(report: &TrainableReport, expected: &Counts) {
    assert_eq!(report.trainable(), expected.trainable);
    assert_eq!(report.total + report.copied, expected.all);
    assert_eq!(report.to_string(), expected.line);
}
