//! Attention and linear layers on the GPU against the CPU. Without a GPU: `eval "$(scripts/cuda_emulator.sh)"` first.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use candle_core::{DType, Device, Result, Tensor};
use ops::{AttentionOptions, Dropout, Lora, Precision, RelativeRows, Scores, Segments, Weight};
use support::{check, matrix, vector};

fn options(heads: usize, scores: Scores, dropout: Option<Dropout>) -> AttentionOptions {
    AttentionOptions { heads, scores, dropout }
}

/// f32 sums of some hundred products in another order: each number is off by a few units in the last place (6e-8) of the
/// largest term. bf16: results are rounded to 8 bits (2^-9 = 2e-3), and so are the probabilities and factors they come from.
const TOLERANCES: [(DType, f64); 2] = [(DType::F32, 5e-6), (DType::BF16, 2e-2)];

fn attention(name: &str, lengths: &[usize], prefix: usize, heads: usize, head: usize, first_only: bool, dropout: f64) {
    let segments = Segments::from_lengths(lengths);
    let (tokens, hidden) = (segments.tokens(), heads * head);
    let queries = if first_only { lengths.len() } else { tokens };
    let keys = tokens + prefix * lengths.len();
    let inputs = [matrix(queries, hidden, 1), matrix(keys, hidden, 2), matrix(keys, hidden, 3)];
    for (dtype, tolerance) in TOLERANCES {
        check(name, dtype, tolerance, 3, &inputs, |inputs| {
            let dropout = Dropout::new(dropout, 7);
            ops::attention(&inputs[0], &inputs[1], &inputs[2], &segments, options(heads, Scores::Content, dropout))
        });
    }
}

#[test]
fn attention_is_the_cpus_for_sequences_of_all_lengths() {
    attention("short", &[1, 17, 5, 16], 0, 3, 32, false, 0.0);
    attention("around a tile", &[64, 65, 1, 33], 0, 2, 64, false, 0.0);
    attention("long", &[300], 0, 1, 32, false, 0.0);
    attention("a block's keys, and one more", &[128, 129, 7], 0, 2, 64, false, 0.1);
    attention("wide heads, and a key more than a block's", &[65, 64], 0, 2, 128, false, 0.1);
    attention("narrow heads, two to a block's keys", &[128, 66], 0, 2, 32, false, 0.1);
}

#[test]
fn attention_gives_the_cpus_gradients_of_queries_or_of_keys_alone() {
    for (head, lengths) in [(64, [60, 3]), (32, [100, 3]), (64, [140, 20])] {
        let (segments, hidden) = (Segments::from_lengths(&lengths), 2 * head);
        let rounded = |seed| matrix(segments.tokens(), hidden, seed).to_dtype(DType::BF16)?.to_dtype(DType::F32);
        let all: Vec<Tensor> = (1..4).map(|seed| rounded(seed).unwrap()).collect();
        for trained in [vec![0], vec![1], vec![2], vec![1, 2]] {
            let inputs: Vec<Tensor> = trained.iter().map(|&input| all[input].clone()).collect();
            for (dtype, tolerance) in TOLERANCES {
                check(&format!("{trained:?} of {lengths:?}"), dtype, tolerance, inputs.len(), &inputs, |x| {
                    let place = |input: usize| match trained.iter().position(|&index| index == input) {
                        Some(at) => Ok(x[at].clone()),
                        None => all[input].to_dtype(x[0].dtype())?.to_device(x[0].device()),
                    };
                    let options = options(2, Scores::Content, Dropout::new(0.1, 7));
                    ops::attention(&place(0)?, &place(1)?, &place(2)?, &segments, options)
                });
            }
        }
    }
}

/// Tensor cores are given numbers by 16 bytes; where those begin elsewhere, others compute the same.
#[test]
fn attention_takes_queries_that_begin_anywhere_in_memory() {
    let (segments, hidden) = (Segments::from_lengths(&[20, 70]), 64);
    let count = segments.tokens() * hidden;
    let queries = vector(count + 1, 1).to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let inputs = [matrix(segments.tokens(), hidden, 2), matrix(segments.tokens(), hidden, 3)];
    for (dtype, tolerance) in TOLERANCES {
        check("behind one number", dtype, tolerance, 2, &inputs, |x| {
            let queries = queries.to_dtype(x[0].dtype())?.to_device(x[0].device())?;
            let query = queries.narrow(0, 1, count)?.reshape(x[0].shape())?;
            ops::attention(&query, &x[0], &x[1], &segments, options(2, Scores::Content, None))
        });
    }
}

#[test]
fn attention_is_the_cpus_for_heads_of_all_widths() {
    for head in [8, 20, 32, 48, 64, 96, 128, 160, 256] {
        attention(&format!("width {head}"), &[19, 40], 0, 2, head, false, 0.0);
    }
}

#[test]
fn attention_of_first_tokens_with_a_prefix_and_with_dropout_is_the_cpus() {
    attention("first tokens", &[70, 3, 1], 0, 2, 32, true, 0.1);
    attention("a prefix", &[20, 3, 66], 5, 2, 64, false, 0.0);
    attention("a prefix and first tokens", &[20, 3], 5, 2, 32, true, 0.3);
    attention("dropout", &[80, 31, 2], 0, 2, 64, false, 0.1);
}

/// Attention that depends on distances, of all tokens or of the first ones, with a prefix of so many keys and values. `attend` is given
/// query, key, value and the tables.
fn relative_attention(
    name: &str,
    lengths: &[usize],
    (prefix, first_only, dropout): (usize, bool, f64),
    hidden: usize,
    tables: &[Tensor],
    attend: impl Fn(&[Tensor], &Segments, Option<Dropout>) -> Result<Tensor>,
) {
    let segments = Segments::from_lengths(lengths);
    let tokens = segments.tokens();
    let keys = tokens + prefix * lengths.len();
    let queries = if first_only { lengths.len() } else { tokens };
    let mut inputs = vec![matrix(queries, hidden, 1), matrix(keys, hidden, 2), matrix(keys, hidden, 3)];
    inputs.extend(tables.iter().cloned());
    for (dtype, tolerance) in TOLERANCES {
        check(name, dtype, tolerance, 3, &inputs, |inputs| attend(inputs, &segments, Dropout::new(dropout, 7)));
    }
}

#[test]
fn attention_within_a_window_is_the_cpus() {
    let window = |name: &str, lengths: &[usize], how, window| {
        relative_attention(name, lengths, how, 64, &[], |x, segments, dropout| {
            ops::attention(&x[0], &x[1], &x[2], segments, options(2, Scores::Window(window), dropout))
        });
    };
    window("narrower than a tile", &[1, 150, 17], (0, false, 0.0), 5);
    window("the next ones alone", &[70, 3], (0, false, 0.0), 1);
    window("wider than a tile, with dropout", &[200, 40], (0, false, 0.2), 70);
    window("wider than a sequence", &[40, 3], (0, false, 0.1), 1000);
    window("behind a prefix, which few queries see", &[90, 3], (5, false, 0.1), 8);
    window("first tokens, which few keys are seen by", &[150, 1], (0, true, 0.0), 5);
    window("first tokens behind a prefix that they see a part of", &[150, 1], (70, true, 0.2), 9);
}

/// Rows as T5 has them: those of keys that follow behind the others, and far distances together.
fn buckets(distance: isize) -> usize {
    let far = distance.unsigned_abs();
    (if far < 4 { far } else { (4 + far / 16).min(7) }) + if distance < 0 { 8 } else { 0 }
}

#[test]
fn attention_with_a_bias_by_distance_is_the_cpus() {
    let rows = RelativeRows::new(210, buckets);
    let bias = |name: &str, lengths: &[usize], how, head: usize| {
        relative_attention(name, lengths, how, 3 * head, &[matrix(16, 3, 9)], |x, segments, dropout| {
            let relative = Scores::Bias { table: &x[3], rows: &rows };
            ops::attention(&x[0], &x[1], &x[2], segments, options(3, relative, dropout))
        });
    };
    bias("around a tile", &[1, 64, 17, 65, 33], (0, false, 0.0), 32);
    bias("the longest, with dropout", &[210, 3], (0, false, 0.2), 16);
    bias("behind a prefix", &[90, 3], (5, false, 0.1), 64);
    bias("first tokens", &[70, 3, 1], (0, true, 0.1), 32);
    bias("first tokens behind a prefix", &[130, 1], (70, true, 0.0), 32);
    bias("a small tile", &[40, 3], (2, false, 0.1), 200);
    bias("all of a block's keys", &[128, 100], (0, false, 0.1), 64);
    bias("more keys than a block's", &[129, 20], (0, false, 0.0), 64);
    bias("wide heads", &[64, 70], (0, false, 0.1), 128);
}

/// Rows as DeBERTa has them: one for each near distance, and far distances together.
fn near_and_far(distance: isize) -> usize {
    let far = distance.unsigned_abs() as isize;
    let step = if far <= 20 { far } else { 20 + (far - 20) / 16 };
    (40 + distance.signum() * step.min(38)) as usize
}

#[test]
fn disentangled_attention_is_the_cpus() {
    let rows = RelativeRows::new(210, near_and_far);
    let disentangled = |name: &str, lengths: &[usize], how, head: usize, to_position: bool, to_content: bool| {
        let tables: Vec<Tensor> = (0..usize::from(to_position) + usize::from(to_content))
            .map(|table| matrix(80, 3 * head, 9 + table as u64))
            .collect();
        relative_attention(name, lengths, how, 3 * head, &tables, |x, segments, dropout| {
            let (key, query) = (to_position.then(|| &x[3]), to_content.then(|| &x[x.len() - 1]));
            let relative = Scores::Disentangled { key, query, rows: &rows };
            ops::attention(&x[0], &x[1], &x[2], segments, options(3, relative, dropout))
        });
    };
    disentangled("around a tile", &[1, 64, 17, 65, 33], (0, false, 0.0), 32, true, true);
    disentangled("content to position", &[70, 3], (0, false, 0.2), 32, true, false);
    disentangled("position to content", &[70, 3], (0, false, 0.2), 32, false, true);
    disentangled("neither", &[40, 3], (0, false, 0.0), 32, false, false);
    disentangled("the longest", &[210, 3], (0, false, 0.1), 16, true, true);
    disentangled("behind a prefix", &[90, 3], (5, false, 0.1), 64, true, true);
    disentangled("first tokens", &[70, 3, 1], (0, true, 0.1), 32, true, true);
    disentangled("first tokens behind a prefix", &[100, 1], (70, true, 0.0), 32, true, true);
    disentangled("a small tile", &[40, 3], (2, false, 0.1), 200, true, true);
}

#[test]
fn a_linear_layer_is_the_cpus_with_a_trained_and_with_a_frozen_weight() {
    for (tokens, inputs, outputs) in [(1, 8, 8), (37, 36, 130), (70, 64, 3)] {
        let (x, weight, bias) = (matrix(tokens, inputs, 1), matrix(outputs, inputs, 2), vector(outputs, 3));
        for (dtype, tolerance) in TOLERANCES {
            let precision = if dtype == DType::F32 { Precision::F32 } else { Precision::Bf16 };
            let on = |x: &Tensor| if x.device().is_cuda() { precision } else { Precision::F32 };
            check("trained", dtype, tolerance, 1, &[x.clone(), weight.clone(), bias.clone()], |inputs| {
                ops::linear(&inputs[0], &Weight::new(inputs[1].clone(), on(&inputs[0]))?, Some(&inputs[2]))
            });
            check("frozen", dtype, tolerance, 1, &[x.clone(), bias.clone()], |inputs| {
                let frozen = weight.to_device(inputs[0].device())?;
                ops::linear(&inputs[0], &Weight::new(frozen, on(&inputs[0]))?, Some(&inputs[1]))
            });
        }
    }
}

#[test]
fn a_weight_that_is_computed_from_what_is_trained_passes_its_gradient_on() {
    for (dtype, tolerance) in TOLERANCES {
        check("computed", dtype, tolerance, 1, &[matrix(9, 24, 1), matrix(16, 24, 2), vector(16, 3)], |inputs| {
            let precision = if inputs[0].dtype() == DType::F32 { Precision::F32 } else { Precision::Bf16 };
            let (weight, bias) = (ops::scale(&inputs[1], 0.5)?, ops::scale(&inputs[2], 2.0)?);
            ops::linear(&inputs[0], &Weight::new(weight, precision)?, Some(&bias))
        });
    }
}

#[test]
fn exact_products_of_bf16_hidden_states_are_taken_in_f32() {
    let (x, weight) = (matrix(9, 24, 1), matrix(10, 24, 2));
    check("exact", DType::BF16, 1e-2, 1, &[x, weight], |inputs| {
        ops::linear(&inputs[0], &Weight::new(inputs[1].clone(), Precision::F32)?, None)
    });
}

/// What TF32 keeps of a number is off by 2^-11 (5e-4) at most, and so is each product twice.
const TF32_TOLERANCE: f64 = 1e-3;

#[test]
fn tf32_products_read_ten_bits_behind_the_point_and_no_more() {
    let full = |value: f32| Tensor::full(value, (256, 256), &Device::Cpu).unwrap().to_device(&support::gpu()).unwrap();
    let ones = full(1.0);
    for (last_bit, seen) in [(10, true), (12, false)] {
        let x = full(1.0 + 2f32.powi(-last_bit));
        for (precision, sees) in [(Precision::F32, true), (Precision::Tf32, seen)] {
            let y = ops::linear(&x, &Weight::new(ones.clone(), precision).unwrap(), None).unwrap();
            // 256 products that are equal, whose sum is exact.
            let expected = if sees { 256.0 * (1.0 + 2f32.powi(-last_bit)) } else { 256.0 };
            assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), vec![expected; 256 * 256], "{precision:?}");
        }
    }
}

#[test]
fn tf32_layers_are_nearly_the_cpus_and_on_the_cpu_exactly() {
    let (x, weight, bias) = (matrix(37, 36, 1), matrix(130, 36, 2), vector(130, 3));
    let layer = |inputs: &[Tensor], precision| {
        ops::linear(&inputs[0], &Weight::new(inputs[1].clone(), precision)?, Some(&inputs[2]))
    };
    let inputs = [x.clone(), weight.clone(), bias];
    check("tf32", DType::F32, TF32_TOLERANCE, 1, &inputs, |inputs| layer(inputs, Precision::Tf32));
    let [exact, found] = [Precision::F32, Precision::Tf32].map(|precision| layer(&inputs, precision).unwrap());
    assert_eq!(support::difference(&found, &exact), 0.0);
    check("tf32 lora", DType::F32, TF32_TOLERANCE, 1, &[x, matrix(4, 36, 4), matrix(130, 4, 5)], |inputs| {
        let (x, a, b) = (&inputs[0], &inputs[1], &inputs[2]);
        let weight = Weight::new(weight.to_device(x.device())?, Precision::Tf32)?;
        ops::lora_linear(x, &weight, None, Lora { a, b, scaling: 0.5, dropout: Dropout::new(0.25, 3) })
    });
}

#[test]
fn a_lora_layer_is_the_cpus_with_and_without_dropout() {
    let weight = matrix(40, 24, 2);
    let bias = vector(40, 3);
    for (rank, dropout) in [(1, 0.0), (4, 0.0), (8, 0.25)] {
        let inputs = [matrix(33, 24, 1), matrix(rank, 24, 4), matrix(40, rank, 5)];
        for (dtype, tolerance) in TOLERANCES {
            check("lora", dtype, tolerance, 1, &inputs, |inputs| {
                let (x, a, b) = (&inputs[0], &inputs[1], &inputs[2]);
                let precision = if x.dtype() == DType::F32 { Precision::F32 } else { Precision::Bf16 };
                let place = |tensor: &Tensor| tensor.to_device(x.device());
                let weight = Weight::new(place(&weight)?, precision)?;
                let lora = Lora { a, b, scaling: 0.5, dropout: Dropout::new(dropout, 3) };
                ops::lora_linear(x, &weight, Some(&place(&bias)?), lora)
            });
        }
    }
}

/// Keys, values and queries side by side, of x and of A and B of the layers that have a branch.
fn projections(inputs: &[Tensor], layers: usize, branches: &[usize], biased: bool, scaling: f64) -> Result<Tensor> {
    let (x, width, columns) = (&inputs[0], 40, inputs[0].dim(1)?);
    let precision = if x.dtype() == DType::F32 { Precision::F32 } else { Precision::Bf16 };
    let place = |tensor: Tensor| tensor.to_device(x.device());
    let weight = |layer: usize| Weight::new(place(matrix(width, columns, 20 + layer as u64))?, precision);
    let weights: Vec<Weight> = (0..layers).map(weight).collect::<Result<_>>()?;
    let biases: Vec<Tensor> =
        (0..layers).map(|layer| place(vector(width, 30 + layer as u64))).collect::<Result<_>>()?;
    let layer = |layer: usize| {
        let branch = branches.iter().position(|branch| *branch == layer).map(|branch| 1 + 2 * branch);
        let lora = branch.map(|at| Lora { a: &inputs[at], b: &inputs[at + 1], scaling, dropout: None });
        ops::LinearLayer { weight: &weights[layer], bias: biased.then_some(&biases[layer]), lora }
    };
    let outputs = ops::linear_layers(x, &(0..layers).map(layer).collect::<Vec<_>>())?;
    outputs[1..].iter().try_fold(outputs[0].clone(), |all, output| ops::concatenate_columns(&all, output))
}

#[test]
fn linear_layers_of_one_input_are_the_cpus_with_branches_beside_any_of_them() {
    let cases: [(usize, &[usize], usize, bool); 7] = [
        (3, &[1, 2], 8, true),
        (3, &[0, 2], 8, false),
        (3, &[0, 1, 2], 4, true),
        (3, &[2], 3, true),
        (2, &[1], 8, true),
        (2, &[], 8, true),
        (4, &[0, 1, 3], 8, true),
    ];
    for (layers, branches, rank, biased) in cases {
        let mut inputs = vec![matrix(33, 24, 1)];
        for branch in 0..branches.len() as u64 {
            inputs.extend([matrix(rank, 24, 4 + branch), matrix(40, rank, 9 + branch)]);
        }
        for (dtype, tolerance) in TOLERANCES {
            let name = format!("{layers} layers, branches beside {branches:?}");
            check(&name, dtype, tolerance, 1, &inputs, |inputs| projections(inputs, layers, branches, biased, 0.5));
        }
    }
}

#[test]
fn a_product_adds_what_was_found_of_its_inputs_gradient_before() {
    let weight = matrix(24, 24, 2);
    for (dtype, tolerance) in TOLERANCES {
        check("a residual", dtype, tolerance, 1, &[matrix(33, 24, 1)], |inputs| {
            let precision = if inputs[0].dtype() == DType::F32 { Precision::F32 } else { Precision::Bf16 };
            let weight = Weight::new(weight.to_device(inputs[0].device())?, precision)?;
            ops::add(&ops::linear(&inputs[0], &weight, None)?, &ops::gate(&inputs[0], &inputs[0])?)
        });
    }
}

#[test]
fn a_sum_of_two_paths_and_pointwise_functions_are_the_cpus() {
    let inputs = [matrix(7, 33, 1), matrix(7, 33, 2)];
    for (dtype, tolerance) in TOLERANCES {
        for activation in [
            ops::Activation::Gelu,
            ops::Activation::GeluApproximate,
            ops::Activation::Relu,
            ops::Activation::Tanh,
            ops::Activation::Swish,
        ] {
            check("pointwise", dtype, tolerance, 2, &inputs, |inputs| {
                let sum =
                    ops::add_dropout(&ops::activation(&inputs[0], activation)?, &inputs[1], Dropout::new(0.2, 5))?;
                ops::gate(&ops::dropout(&sum, Dropout::new(0.4, 6))?, &inputs[0])
            });
        }
    }
}

#[test]
fn hidden_states_go_to_bf16_and_back_and_their_gradient_the_other_way() {
    let x = matrix(5, 31, 1).to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    check("conversion", DType::F32, 4e-3, 1, &[x], |inputs| {
        let rounded = ops::to_precision(&inputs[0], Precision::Bf16)?;
        assert_eq!(rounded.dtype(), if inputs[0].device().is_cuda() { DType::BF16 } else { DType::F32 });
        ops::to_f32(&rounded)
    });
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_how_many_there_are() {
    let message = ops::cuda_device(99).unwrap_err().to_string();
    assert!(message.contains("cuda:99") && message.contains("GPUs"), "{message}");
}

#[test]
fn a_tensor_of_the_cpu_among_those_of_the_gpu_is_an_error() {
    let x = matrix(2, 3, 1).to_device(&support::gpu()).unwrap();
    assert!(ops::gate(&x, &Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap()).is_err());
}
