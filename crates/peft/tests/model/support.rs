//! What the tests share: the tiny checkpoint, models on it, fixed numbers, comparisons.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use peft::{
    Activation, AdapterStyle, Batch, Bottleneck, Compacter, ForwardPass, Lora, Method, Model, ModelOptions, Pretrained,
    Sequence, Targets,
};

/// Where `make_oracle.py` and what it made are.
pub(crate) fn oracle_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle")
}

/// A random BERT of 2 layers and 32 dimensions, with a classifier of 3 labels.
pub(crate) fn tiny() -> Pretrained {
    Pretrained::from_folder(&oracle_folder().join("tiny-bert")).unwrap()
}

/// Where the models that are compared with Python's stand: the CPU, or the first GPU if `PEFT_TEST_DEVICE` is `cuda:0`.
pub(crate) fn device() -> Device {
    match std::env::var("PEFT_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Device::Cpu,
        #[cfg(feature = "cuda")]
        Ok("cuda:0") => ops::cuda_device(0).unwrap(),
        Ok(other) => panic!("PEFT_TEST_DEVICE: expected cpu, or cuda:0 with the feature cuda, found {other}"),
    }
}

/// A model's options on that device.
pub(crate) fn options(method: Method, labels: usize) -> ModelOptions {
    ModelOptions { device: device(), ..ModelOptions::new(method, labels) }
}

/// The number types that the device computes with, and what goes with each: a GPU has no f64 here.
pub(crate) fn of_device<T, const N: usize>(types: [(DType, T); N]) -> impl Iterator<Item = (DType, T)> {
    let has_f64 = device().is_cpu();
    types.into_iter().filter(move |(dtype, _)| has_f64 || *dtype != DType::F64)
}

/// Three labels in f64, without dropout.
pub(crate) fn exact(method: Method) -> ModelOptions {
    ModelOptions { dtype: DType::F64, dropout: Some(0.0), ..ModelOptions::new(method, 3) }
}

/// Every linear layer of BERT but the classifier.
pub(crate) fn all_linear() -> Targets {
    Targets::suffixes(["query", "key", "value", "dense"])
}

/// LoRA of rank 2 on all linear layers.
pub(crate) fn lora_everywhere() -> Lora {
    Lora::rank(2).on(all_linear())
}

/// Reproducible numbers in (-1, 1), without candle's generator, which has no seed on the CPU.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Sequences of these lengths: random ids below `vocabulary`, the second half of each of the other type.
pub(crate) fn sequences(lengths: &[usize], vocabulary: u32) -> Vec<Sequence> {
    let one = |(index, &length): (usize, &usize)| Sequence {
        input_ids: numbers(length, 7 + index as u64).iter().map(|x| (x.abs() * f64::from(vocabulary)) as u32).collect(),
        token_type_ids: (0..length).map(|position| u32::from(position >= length.div_ceil(2))).collect(),
    };
    lengths.iter().enumerate().map(one).collect()
}

pub(crate) fn batch(sequences: &[Sequence]) -> Batch {
    Batch::new(sequences).unwrap()
}

/// LoRA's B, VeRA's outer vector, AdaLoRA's singular values and LoHa's last factor start at zero, where what stands beside them has no gradient: gives
/// them other values.
pub(crate) fn fill_lora_b(model: &Model) {
    for (index, (name, variable)) in model.parameters().trainable().enumerate() {
        if ["lora_B.weight", "vera_lambda_b", "lora_E", "hada_w2_b"].iter().any(|end| name.ends_with(end)) {
            let values = numbers(variable.elem_count(), 100 + index as u64).iter().map(|x| 0.5 * x).collect();
            set(model, name, values);
        }
    }
}

/// Bottleneck adapters start at or near zero, where gradients are small: gives them other values.
pub(crate) fn fill_bottleneck(model: &Model) {
    for (index, (name, variable)) in model.parameters().trainable().enumerate() {
        if name.contains(".adapter_") || name.contains(".shared_parameters.") {
            let values = numbers(variable.elem_count(), 200 + index as u64).iter().map(|x| 0.5 * x).collect();
            set(model, name, values);
        }
    }
}

/// Bottleneck adapters of every style with dropout, and layer norms trained beside one, and Compacter with and without what layers
/// share. Without ReLU's kink, which finite differences may step over.
pub(crate) fn smooth_bottlenecks() -> [Method; 6] {
    let of = |style| Bottleneck { reduction_factor: 8, dropout: 0.3, ..Bottleneck::new(style) };
    let pfeiffer = Bottleneck { non_linearity: Activation::Gelu, ..of(AdapterStyle::Pfeiffer) };
    let compacter = Compacter { reduction_factor: 4, scaling: 4.0, dropout: 0.3, phm_rank: 2, ..Compacter::default() };
    [
        Method::Bottleneck(of(AdapterStyle::Houlsby)),
        Method::Bottleneck(pfeiffer.clone()),
        Method::Bottleneck(Bottleneck { train_layer_norms: true, ..pfeiffer }),
        Method::Bottleneck(Bottleneck { non_linearity: Activation::Tanh, ..of(AdapterStyle::Parallel) }),
        Method::Compacter(Compacter { shared_w_phm: true, factorized_phm_rule: true, ..compacter.clone() }),
        Method::Compacter(Compacter {
            adapter_style: AdapterStyle::Pfeiffer,
            factorized_phm_w: false,
            shared_phm_rule: false,
            phm_bias: false,
            ..compacter
        }),
    ]
}

/// Sets a trained parameter.
pub(crate) fn set(model: &Model, name: &str, values: Vec<f64>) {
    let variable = model.parameters().get(name).unwrap_or_else(|| panic!("{name} is not trained"));
    let tensor = Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap().to_dtype(variable.dtype()).unwrap();
    variable.set(&tensor.to_device(variable.device()).unwrap()).unwrap();
}

/// The cross-entropy of a pass; `step_seed` turns dropout on.
pub(crate) fn loss(model: &Model, batch: &Batch, labels: &[u32], step_seed: Option<u64>) -> Tensor {
    let pass = match step_seed {
        Some(seed) => ForwardPass::training(&batch.segments, seed),
        None => ForwardPass::evaluation(&batch.segments),
    };
    cross_entropy(&model.forward(batch, &pass).unwrap(), labels)
}

pub(crate) fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Tensor {
    candle_nn::loss::cross_entropy(logits, &Tensor::new(labels, logits.device()).unwrap()).unwrap()
}

/// The gradient of each trained parameter by name.
pub(crate) fn gradients(model: &Model, store: &GradStore) -> BTreeMap<String, Vec<f64>> {
    let gradient = |(name, variable): (&str, &candle_core::Var)| {
        let gradient = store.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        assert_eq!(gradient.dims(), variable.dims(), "{name}");
        (name.to_string(), flat(gradient))
    };
    model.parameters().trainable().map(gradient).collect()
}

/// A tensor's numbers as f64.
pub(crate) fn flat(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap();
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest magnitude.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// Every pair of numbers is at most `tolerance` apart.
pub(crate) fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        // Written so that a NaN fails.
        assert!(difference <= tolerance, "{what}, element {index}: found {found}, expected {expected}");
    }
}

/// A key's bias adds the same to all scores of a query, which softmax ignores: its gradient is zero but for rounding.
pub(crate) fn has_zero_gradient(name: &str) -> bool {
    ["self.key.bias", "k_lin.bias", "attn.k.bias", "pos_key_proj.bias"].iter().any(|key| name.ends_with(key))
}
