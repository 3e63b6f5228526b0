//! AdaLoRA's budget against PEFT's `RankAllocator` on the same gradients: by the values that `oracle/make_allocation.py` stored.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor, TensorId};
use ops::{Orthonormal, orthogonality};
use peft::{AdaLora, AfterStep, Method, Model, ModelOptions, RankAllocator};
use serde::Deserialize;

use crate::support::*;

#[derive(Deserialize)]
struct Oracle {
    config: AdaLora,
    steps: Vec<Step>,
    regularization: f64,
}

#[derive(Deserialize)]
struct Step {
    budget: usize,
    /// Which values are not zero after the step, by the name of E.
    left: BTreeMap<String, Vec<bool>>,
}

fn oracle() -> (Oracle, HashMap<String, Tensor>) {
    let json = std::fs::read(oracle_folder().join("allocation.json")).unwrap();
    let tensors = candle_core::safetensors::load(oracle_folder().join("allocation.safetensors"), &Device::Cpu).unwrap();
    (serde_json::from_slice(&json).unwrap(), tensors)
}

/// The oracle's model at its start.
fn start(oracle: &Oracle, tensors: &HashMap<String, Tensor>) -> Model {
    let model = Model::new(&tiny(), &ModelOptions::new(Method::AdaLora(oracle.config.clone()), 3)).unwrap();
    for (name, tensor) in tensors {
        if let Some(name) = name.strip_prefix("start.") {
            set(&model, name, flat(tensor));
        }
    }
    model
}

fn allocator(model: &Model) -> RankAllocator {
    let Method::AdaLora(adalora) = model.method() else { panic!("the oracle's method is AdaLoRA") };
    RankAllocator::new(adalora, model.parameters()).unwrap().unwrap()
}

/// The step of the oracle: `p - 0.1 * gradient`, then the allocation.
fn step(model: &Model, allocator: &mut RankAllocator, tensors: &HashMap<String, Tensor>, step: usize) {
    let mut gradients: HashMap<TensorId, &Tensor> = HashMap::new();
    for (name, variable) in model.parameters().trainable() {
        if let Some(gradient) = tensors.get(&format!("gradient.{step}.{name}")) {
            variable.set(&(variable.as_tensor() - (gradient * 0.1).unwrap()).unwrap()).unwrap();
            gradients.insert(variable.id(), gradient);
        }
    }
    allocator.after_step(step, &|variable| gradients.get(&variable.id()).map(|tensor| (*tensor).clone()), 1.0).unwrap();
}

fn left(model: &Model) -> BTreeMap<String, Vec<bool>> {
    let values = model.parameters().trainable().filter(|(name, _)| name.ends_with("lora_E"));
    values
        .map(|(name, variable)| (name.to_string(), flat(variable).iter().map(|value| *value != 0.0).collect()))
        .collect()
}

#[test]
fn a_whole_schedule_has_pefts_budgets_and_masks_pefts_values_at_every_step() {
    let (oracle, tensors) = oracle();
    let model = start(&oracle, &tensors);
    let mut allocator = self::allocator(&model);
    for (index, expected) in oracle.steps.iter().enumerate() {
        step(&model, &mut allocator, &tensors, index);
        assert_eq!(allocator.budget(index).0, expected.budget, "step {index}");
        assert_eq!(left(&model), expected.left, "step {index}");
    }
    let count = |step: &Step| step.left.values().flatten().filter(|left| **left).count();
    let last = oracle.steps.last().unwrap();
    assert_eq!((count(&oracle.steps[0]), count(last)), (4 * oracle.config.init_r, 4 * oracle.config.target_r));
}

#[test]
fn an_allocator_goes_on_from_the_state_of_another() {
    let (oracle, tensors) = oracle();
    let model = start(&oracle, &tensors);
    let mut allocator = self::allocator(&model);
    for (index, expected) in oracle.steps.iter().enumerate() {
        let state: Vec<Vec<f32>> = allocator.state().into_iter().map(|(_, values)| values.clone()).collect();
        allocator = self::allocator(&model);
        allocator.state().into_iter().zip(state).for_each(|((_, values), kept)| *values = kept);
        step(&model, &mut allocator, &tensors, index);
        assert_eq!(left(&model), expected.left, "step {index}");
    }
}

#[test]
fn gradients_that_were_clipped_are_measured_as_clipped() {
    let (oracle, tensors) = oracle();
    let halved: HashMap<String, Tensor> =
        tensors.iter().map(|(name, tensor)| (name.clone(), (tensor * 0.5).unwrap())).collect();
    let states = [(&tensors, 0.5), (&halved, 1.0)].map(|(gradients, scale)| {
        let model = start(&oracle, &tensors);
        let mut allocator = self::allocator(&model);
        let of = |variable: &candle_core::Var| {
            let (name, _) = model.parameters().trainable().find(|(_, other)| other.id() == variable.id())?;
            gradients.get(&format!("gradient.0.{name}")).cloned()
        };
        allocator.after_step(0, &of, scale).unwrap();
        allocator.state().into_iter().map(|(name, values)| (name, values.clone())).collect::<Vec<_>>()
    });
    assert_eq!(states[0], states[1]);
}

/// Of the start's matrices, in f32: sums of some hundred terms around 1.
#[test]
fn the_term_of_the_loss_that_keeps_vectors_orthonormal_is_pefts() {
    let (oracle, tensors) = oracle();
    let model = start(&oracle, &tensors);
    let found = flat(&model.regularization().unwrap().unwrap())[0];
    close("regularization", &[found], &[oracle.regularization], 1e-5 * oracle.regularization);
    assert!(Model::new(&tiny(), &ModelOptions::new(Method::lora(2), 3)).unwrap().regularization().unwrap().is_none());
    // The rows of an identity are orthonormal.
    let identity = Tensor::eye(3, candle_core::DType::F64, &Device::Cpu).unwrap();
    assert_eq!(flat(&orthogonality(&identity, Orthonormal::Rows, 2.0).unwrap()), [0.0]);
}

#[test]
fn a_budget_that_cannot_be_spent_is_refused_by_name() {
    let error =
        |adalora| Model::new(&tiny(), &ModelOptions::new(Method::AdaLora(adalora), 2)).err().unwrap().to_string();
    let adalora = AdaLora { total_step: Some(10), ..AdaLora::default() };
    assert!(error(AdaLora { init_r: 0, ..adalora.clone() }).contains("init_r is 0"));
    assert!(error(AdaLora { target_r: 13, ..adalora.clone() }).contains("target_r is 13"));
    assert!(error(AdaLora { tinit: 6, tfinal: 4, ..adalora.clone() }).contains("total_step is 10"));
    assert!(error(AdaLora { beta1: 1.0, ..adalora.clone() }).contains("beta1 is 1"));
    assert!(error(AdaLora { delta_t: 0, ..adalora.clone() }).contains("deltaT is 0"));
    let pattern = [("bert.no.such.layer.lora_E".to_string(), vec![true])].into();
    assert!(error(AdaLora { rank_pattern: pattern, ..adalora }).contains("bert.no.such.layer.lora_E"));
    let model = Model::new(&tiny(), &ModelOptions::new(Method::AdaLora(AdaLora::default()), 2)).unwrap();
    assert!(model.after_step().err().unwrap().to_string().contains("total_step is not given"));
}
