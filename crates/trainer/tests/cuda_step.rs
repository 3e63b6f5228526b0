//! What a training step has a GPU do, and what it keeps there. Without a GPU: `eval "$(scripts/cuda_emulator.sh)"` first.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/batches.rs"]
mod batches;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use batches::write_batches;
use candle_core::{Device, Tensor, safetensors};
use glue::{Glue, Task};
use peft::{Method, Precision};
use trainer::{DeviceName, InitialValues, Passes, Run, Trainer, replay};

/// Launches and memory are those of the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The sizes of a BERT.
#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
}

/// The tiny BERT in another shape, with small weights that differ from number to number.
fn write_bert(shape: Shape, folder: &Path) {
    let Shape { layers, hidden, inner, heads } = shape;
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft/tests/oracle/tiny-bert");
    let mut config = std::fs::read_to_string(tiny.join("config.json")).unwrap();
    for (field, old, new) in [
        ("num_hidden_layers", 2, layers),
        ("hidden_size", 32, hidden),
        ("intermediate_size", 64, inner),
        ("num_attention_heads", 4, heads),
    ] {
        config = config.replace(&format!("\"{field}\": {old}"), &format!("\"{field}\": {new}"));
    }
    std::fs::write(folder.join("config.json"), config).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in safetensors::load(tiny.join("model.safetensors"), &Device::Cpu).unwrap() {
        let wider = |size: &usize| match size {
            32 => hidden,
            64 => inner,
            other => *other,
        };
        let sizes: Vec<usize> = tensor.dims().iter().map(wider).collect();
        let values = (0..sizes.iter().product()).map(|i: usize| ((i * 37 + i / 11) % 101) as f32 / 2000.0 - 0.02);
        let tensor = Tensor::from_vec(values.collect(), sizes, &Device::Cpu).unwrap();
        match name.contains("layer.1.") {
            true => tensors.extend(
                (1..layers).map(|layer| (name.replace("layer.1.", &format!("layer.{layer}.")), tensor.clone())),
            ),
            false => drop(tensors.insert(name, tensor)),
        }
    }
    safetensors::save(&tensors.into_iter().collect(), folder.join("model.safetensors")).unwrap();
}

/// Trains in bf16: so many steps of so many sequences of 30 tokens.
fn train(method: &Method, folder: &Path, steps: usize, sequences: usize) {
    let batches = folder.join("batches.npz");
    write_batches(&batches, [steps, sequences, 30], |_, _| 30);
    let runs = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Glue::synthetic("a test"), runs.path()).device(DeviceName::Cuda(0));
    let run = Run::new(Task::Mrpc, folder.to_str().unwrap(), method.clone()).with(|s| {
        s.dropout = Some(0.1);
        s.precision = Precision::Bf16;
    });
    let losses = replay(&mut trainer, &run, &batches, InitialValues::New, Passes::Training, None).unwrap().losses;
    assert!(losses.len() == steps && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
}

type Launches = BTreeMap<String, usize>;

/// How often a step launches each kernel but those of attention, which has several of its own; of a BERT with so many layers.
fn launches(method: &Method, layers: usize) -> Launches {
    let folder = tempfile::tempdir().unwrap();
    write_bert(Shape { layers, hidden: 32, inner: 64, heads: 4 }, folder.path());
    let [two, three] = [2, 3].map(|steps| ops::count_launches(|| train(method, folder.path(), steps, 6)).1);
    // The first step rounds what is frozen.
    let mut launches = difference(&three, &two);
    launches.retain(|name, _| !name.starts_with("attention"));
    launches
}

/// By how much counts are more.
fn difference(more: &Launches, less: &Launches) -> Launches {
    let of = |(name, count): (&String, &usize)| (name.clone(), count - less.get(name).copied().unwrap_or(0));
    more.iter().map(of).filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_layer_of_lora_in_bf16_sums_within_its_products() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let [three, four] = [3, 4].map(|layers| launches(&Method::lora(8), layers));
    let layer = difference(&four, &three);
    let expected = [
        ("activation_backward_bf16", 1),
        ("activation_bf16", 1),
        ("layer_norm_256_bf16", 2),
        ("layer_norm_backward_256_bf16", 2),
        // Forward: query, key and value; A of both branches; B of both; the output of attention; the feed-forward network's two.
        // Backward: the same frozen weights, query, key and value one by one; g B of each branch, A of both, the gradients of both A and
        // of each B.
        ("product", 6 + 6 + 6),
        // A and B, forward.
        ("round_arrays", 1),
    ];
    assert_eq!(layer, expected.map(|(name, count)| (name.to_string(), count)).into());
    // BERT-base and MiniLM, without the kernels of attention.
    let all = |launches: &Launches| launches.values().sum::<usize>();
    assert_eq!([9, 3].map(|more| all(&three) + more * all(&layer)), [325, 175], "{three:?}");
}

#[test]
fn a_step_in_bf16_rounds_parameters_in_groups_and_none_twice() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Three layers of six linear ones. All weights with their biases; biases; A and B of each layer, those of the last query alone.
    for (method, groups) in [(Method::Full, 18), (Method::bitfit(), 18), (Method::lora(8), 4)] {
        let launches = launches(&method, 3);
        assert_eq!(launches["round_arrays"], groups, "{method}: {launches:?}");
        // The embeddings, and the gradient of what the head is given.
        assert_eq!(launches["to_bf16"], 2, "{method}: {launches:?}");
    }
}

/// What a layer keeps for its backward pass, in bytes for each token and hidden unit, in bf16, beside a head of 64 columns:
///
/// | what | bytes | who reads it |
/// | --- | ---: | --- |
/// | its input | 2 | A of the branches, and the first norm as its residual |
/// | query, key, value | 6 | attention, which computes its probabilities again |
/// | context | 2 | attention: the sums of gradient and output |
/// | the attention's output | 2 | the first norm, which norms its sum again |
/// | the first norm | 2 | the second norm as its residual |
/// | what the activation is applied to, four times as wide | 8 | the activation's derivative |
/// | the feed-forward network's output | 2 | the second norm |
/// | logarithms, in f32, and the branches' down projections | .1 | attention; B of the branches |
///
/// Nothing is kept of what a frozen layer is given alone, as the activation's result is. Half the bytes for the activation's derivative would
/// be 8 bits, of which no format has bf16's 8 of precision; to compute what it is applied to again is a sixth of a step's products.
fn kept_bytes(hidden: usize, inner: usize, heads: usize, rank: usize) -> usize {
    2 * (8 * hidden + inner) + 2 * (2 * rank) + 4 * heads
}

/// What a layer's parameters take, in bytes: frozen matrices in bf16 alone, frozen vectors in f32, those of linear layers in bf16 too,
/// and of LoRA's, on two of its layers, value, gradient and moments in f32, and the value in bf16 for the pass.
fn parameter_bytes(hidden: usize, inner: usize, rank: usize) -> usize {
    let matrices = 4 * hidden * hidden + 2 * hidden * inner;
    let (biases, norms) = (5 * hidden + inner, 4 * hidden);
    2 * matrices + (4 + 2) * biases + 4 * norms + (4 * 4 + 2) * (2 * 2 * rank * hidden)
}

#[test]
fn a_layer_has_its_frozen_matrices_once_and_keeps_of_a_token_what_its_backward_pass_reads() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (gpu, rank) = (ops::cuda_device(0).unwrap(), 8);
    // A fifth of MiniLM, an eighth of BERT-base and of BERT-large.
    for (hidden, heads) in [(72, 3), (96, 3), (128, 4)] {
        let inner = 4 * hidden;
        let (few, many) = (12, 24); // sequences of 30 tokens
        let peak = |layers, sequences| {
            let folder = tempfile::tempdir().unwrap();
            write_bert(Shape { layers, hidden, inner, heads }, folder.path());
            ops::forget_card_peak_memory(&gpu).unwrap();
            train(&Method::lora(rank), folder.path(), 1, sequences);
            ops::card_peak_memory(&gpu).unwrap() as f64
        };
        // What does not depend on layers, as logits, is the same on both sides.
        let of_layer = |sequences| (peak(5, sequences) - peak(3, sequences)) / 2.0;
        let (of_few, of_many) = (of_layer(few), of_layer(many));
        let tokens = |sequences: usize| 30.0 * sequences as f64;
        let found = (of_many - of_few) / tokens(many - few);
        let expected = kept_bytes(hidden, inner, heads, rank);
        let ratio = found / expected as f64;
        assert!((0.97..1.03).contains(&ratio), "hidden {hidden}: {found} bytes a token and layer, {expected} expected");
        // Where the peak is, the gradients of the layers that follow are not there yet.
        let (found, expected) = (of_few - found * tokens(few), parameter_bytes(hidden, inner, rank));
        let ratio = found / expected as f64;
        assert!((0.9..1.05).contains(&ratio), "hidden {hidden}: {found} bytes of parameters, {expected} expected");
    }
}
