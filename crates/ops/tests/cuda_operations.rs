//! The other operations on the GPU against the CPU. Without a GPU: `eval "$(scripts/cuda_emulator.sh)"` first.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{AdamWSettings, AdamWSlot, Dropout, Moments, ParameterMoments, Segments};
use support::{check, gpu, matrix, vector};

/// As in `cuda_layers.rs`: f32 in another order of sums, bf16 rounded to 8 bits.
const TOLERANCES: [(DType, f64); 2] = [(DType::F32, 5e-6), (DType::BF16, 2e-2)];

fn both(name: &str, hidden: usize, inputs: &[Tensor], operation: impl Fn(&[Tensor]) -> Result<Tensor>) {
    for (dtype, tolerance) in TOLERANCES {
        check(name, dtype, tolerance, hidden, inputs, &operation);
    }
}

#[test]
fn a_layer_norm_is_the_cpus_for_odd_widths_and_many_rows() {
    // Rows that registers hold, whole and in part, and those that they do not.
    for (rows, columns) in
        [(1, 4), (7, 36), (300, 130), (5, 384), (9, 512), (3, 768), (2, 776), (6, 1024), (3, 1030), (2, 1032)]
    {
        let inputs = [matrix(rows, columns, 1), vector(columns, 2), vector(columns, 3)];
        both("layer_norm", 1, &inputs, |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-12));
    }
}

#[test]
fn a_norm_of_a_sum_with_a_residual_is_the_cpus() {
    for (rows, columns, dropout) in [
        (1, 4, 0.0),
        (300, 130, 0.2),
        (5, 256, 0.0),
        (9, 384, 0.1),
        (3, 768, 0.3),
        (6, 1024, 0.1),
        (3, 1030, 0.1),
        (2, 1536, 0.2),
    ] {
        let inputs = [matrix(rows, columns, 1), matrix(rows, columns, 4), vector(columns, 2), vector(columns, 3)];
        let norm = |x: &[Tensor]| ops::add_norm(&x[0], &x[1], Dropout::new(dropout, 5), &x[2], &x[3], 1e-12);
        both("add_norm", 2, &inputs, norm);
        both("add_norm of an f32 residual", 1, &inputs, norm);
    }
}

#[test]
fn a_layer_norm_of_rows_that_begin_between_packs_is_the_cpus() {
    let inputs = [matrix(9, 258, 1), vector(256, 2), vector(256, 3)];
    // The rows behind the first 129 numbers, whose address no 16 bytes divide.
    let norm = |x: &[Tensor]| {
        let rows = x[0].detach().flatten_all()?.narrow(0, 129, 8 * 256)?.reshape((8, 256))?;
        ops::without_gradients(|| ops::layer_norm(&rows, &x[1], &x[2], 1e-12))
    };
    for (dtype, tolerance) in TOLERANCES {
        let on = |device: &Device| {
            let place = |tensor: &Tensor, dtype| tensor.to_dtype(dtype).unwrap().to_device(device).unwrap();
            let x = place(&inputs[0].to_dtype(dtype).unwrap(), if device.is_cuda() { dtype } else { DType::F32 });
            let y = norm(&[x, place(&inputs[1], DType::F32), place(&inputs[2], DType::F32)]).unwrap();
            y.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
        };
        let error = support::difference(&on(&gpu()), &on(&Device::Cpu));
        assert!(error <= tolerance, "{dtype:?}: {error:e}");
    }
}

#[test]
fn vectors_over_columns_are_the_cpus() {
    let inputs = [matrix(270, 37, 1), vector(37, 2)];
    both("add_bias", 1, &inputs, |x| ops::add_bias(&x[0], &x[1]));
    both("scale_columns", 1, &inputs, |x| ops::scale_columns(&x[0], &x[1], None));
    let over = (vector(37, 3).abs().unwrap() + 0.5).unwrap();
    both("scale_columns over", 1, &inputs, |x| ops::scale_columns(&x[0], &x[1], Some(&over.to_device(x[0].device())?)));
}

#[test]
fn ranges_of_columns_are_the_cpus() {
    let inputs = [matrix(9, 5, 1), matrix(9, 12, 2)];
    both("concatenate_columns", 2, &inputs, |x| ops::concatenate_columns(&x[0], &x[1]));
    both("narrow_columns", 1, &[matrix(9, 12, 2)], |x| ops::narrow_columns(&x[0], 3..10));
}

#[test]
fn rows_of_sequences_are_the_cpus() {
    let segments = Segments::from_lengths(&[3, 1, 40, 7]);
    let x = matrix(segments.tokens(), 34, 1);
    both("first_tokens", 1, std::slice::from_ref(&x), |x| ops::first_tokens(&x[0], &segments));
    both("segment_mean", 1, std::slice::from_ref(&x), |x| ops::segment_mean(&x[0], &segments));
    both("prepend", 2, &[matrix(5, 34, 2), x.clone()], |x| ops::prepend(&x[0], &x[1], &segments));
    let heads = matrix(segments.tokens(), 3 * 12, 4);
    both("rotary", 1, &[heads], |x| ops::rotary(&x[0], &segments, 3, 10_000.0, 2));
}

#[test]
fn sums_of_embeddings_and_the_gradients_of_their_tables_are_the_cpus() {
    let rows = |rows: &[u32]| Tensor::new(rows, &Device::Cpu).unwrap();
    let indices = [rows(&[3, 0, 3, 3, 11, 7]), rows(&[0, 0, 1, 1, 0, 1]), rows(&[0, 1, 2, 0, 1, 2])];
    let tables = [matrix(12, 34, 1), matrix(2, 34, 2), matrix(5, 34, 3)];
    check("embedding_sum", DType::F32, 5e-6, 0, &tables, |tables| {
        ops::embedding_sum([&tables[0], &tables[1], &tables[2]], [&indices[0], &indices[1], &indices[2]])
    });
}

#[test]
fn a_gate_takes_factors_of_different_types() {
    let inputs = [matrix(7, 37, 1), matrix(7, 37, 2)];
    both("gate", 1, &inputs, |x| ops::gate(&x[0], &x[1]));
    both("gate of f32", 1, &inputs, |x| ops::gate(&x[1], &x[0]));
}

#[test]
fn sums_differences_and_multiples_are_the_cpus_of_one_type_and_of_two() {
    let inputs = [matrix(7, 37, 1), matrix(7, 37, 2)];
    for hidden in [1, 2] {
        both("add", hidden, &inputs, |x| ops::add(&x[0], &x[1]));
        both("sub", hidden, &inputs, |x| ops::sub(&x[0], &x[1]));
        both("add_dropout", hidden, &inputs, |x| ops::add_dropout(&x[0], &x[1], ops::Dropout::new(0.3, 4)));
    }
    both("scale", 1, &inputs[..1], |x| ops::scale(&x[0], -0.3));
}

#[test]
fn losses_are_the_cpus() {
    let classes = Tensor::new(&[0u32, 2, 1, 1, 0], &Device::Cpu).unwrap();
    check("cross_entropy", DType::F32, 5e-6, 0, &[matrix(5, 3, 1)], |x| ops::cross_entropy(&x[0], &classes));
    // More sequences than the block has threads; a loss is f32 whatever the scores are.
    let many = Tensor::new((0..300).map(|row| row % 2).collect::<Vec<u32>>(), &Device::Cpu).unwrap();
    both("cross_entropy", 1, &[matrix(300, 2, 1)], |x| ops::cross_entropy(&x[0], &many));
    let targets = vector(70, 2);
    check("mean_squared_error", DType::F32, 5e-6, 0, &[matrix(70, 1, 1)], |x| ops::mean_squared_error(&x[0], &targets));
}

#[test]
fn what_has_no_kernel_runs_on_the_cpu_and_its_tensors_cross_over() {
    both("orthogonality", 1, &[matrix(4, 9, 1)], |x| ops::orthogonality(&x[0], ops::Orthonormal::Rows, 0.5));
}

/// Parameters of several sizes after steps on a device; whether each step's loss is finite is told by `losses`.
fn stepped(device: &Device, limit: Option<f64>, losses: &[f32]) -> (Vec<Vec<f32>>, Vec<Moments>, Vec<f64>) {
    let sizes = [(3, 5), (70, 130), (1, 1)];
    let place = |tensor: Tensor| tensor.to_device(device).unwrap();
    let parameters: Vec<Var> = sizes.iter().map(|&(m, n)| Var::from_tensor(&place(matrix(m, n, 1))).unwrap()).collect();
    let mut moments: Vec<_> = parameters.iter().map(|p| ParameterMoments::zeros(p).unwrap()).collect();
    let mut factors = Vec::new();
    for (step, &loss) in (1..).zip(losses) {
        let gradients: Vec<Tensor> = sizes.iter().map(|&(m, n)| place(matrix(m, n, 10 + step))).collect();
        let mut slots: Vec<AdamWSlot> = parameters
            .iter()
            .zip(&gradients)
            .zip(&mut moments)
            .enumerate()
            .map(|(index, ((parameter, gradient), moments))| {
                let (learning_rate, weight_decay) = (1e-2 / (index + 1) as f64, 0.01 * index as f64);
                AdamWSlot { parameter, gradient, moments, learning_rate, weight_decay }
            })
            .collect();
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, max_norm: limit, step: step as usize };
        let loss = place(Tensor::new(loss, &Device::Cpu).unwrap());
        factors.push(ops::adamw(&mut slots, &loss, settings).unwrap().value().unwrap());
    }
    let values = |p: &Var| p.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (parameters.iter().map(values).collect(), moments.iter().map(|m| m.read().unwrap().into_owned()).collect(), factors)
}

#[test]
fn adamw_steps_on_all_parameters_are_the_cpus_clipped_and_not_and_none_where_the_loss_is_not_finite() {
    for (limit, losses) in [(Some(1.0), [1.0, 1.0, 1.0]), (None, [1.0, 1.0, 1.0]), (Some(0.5), [1.0, f32::NAN, 2.0])] {
        let (expected, expected_moments, expected_factors) = stepped(&Device::Cpu, limit, &losses);
        let (found, moments, factors) = stepped(&gpu(), limit, &losses);
        let close = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(expected.iter().zip(&found).all(|(expected, found)| close(expected, found)), "{limit:?} {losses:?}");
        for (expected, found) in expected_moments.iter().zip(&moments) {
            assert!(close(&expected.first, &found.first) && close(&expected.second, &found.second), "{losses:?}");
        }
        assert!(expected_factors.iter().zip(&factors).all(|(a, b)| (a - b).abs() < 1e-6), "{factors:?}");
    }
}
