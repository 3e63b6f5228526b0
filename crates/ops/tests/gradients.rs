//! Every operation against the same formula in candle's basic operations, and its gradients against finite differences.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use ops::{
    Activation, AttentionOptions, Dropout, Lora, Orthonormal, Precision, RelativeRows, Scores, Segments, Weight,
};

fn options(heads: usize, scores: Scores, dropout: Option<Dropout>) -> AttentionOptions {
    AttentionOptions { heads, scores, dropout }
}

/// Reproducible numbers in (-1, 1), without candle's generator, which has no seed on the CPU.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn variables(shapes: &[&[usize]]) -> Vec<Var> {
    shapes.iter().enumerate().map(|(i, shape)| Var::from_tensor(&numbers(shape, 1 + i as u64)).unwrap()).collect()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let difference = difference.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
    assert!(difference <= tolerance, "largest difference {difference}, tolerance {tolerance}");
}

/// The gradient of `sum(f(inputs) * weights)` for fixed pseudo-random weights, by central differences with step 1e-6: in
/// f64 the truncation error is of the order 1e-12 and the rounding error 1e-10, so 1e-7 leaves room for steep functions.
fn agrees_with_finite_differences(inputs: &[Var], f: impl Fn(&[Var]) -> Result<Tensor>) {
    let weights = numbers(f(inputs).unwrap().dims(), 99);
    let loss = |inputs: &[Var]| (f(inputs).unwrap() * &weights).unwrap().sum_all().unwrap();
    let gradients = loss(inputs).backward().unwrap();
    for (index, input) in inputs.iter().enumerate() {
        let analytic = gradients.get(input).unwrap_or_else(|| panic!("input {index} has no gradient"));
        let analytic = analytic.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let original = input.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for element in 0..original.len() {
            let at = |offset: f64| {
                let mut values = original.clone();
                values[element] += offset;
                input.set(&Tensor::from_vec(values, input.shape(), &Device::Cpu).unwrap()).unwrap();
                loss(inputs).to_scalar::<f64>().unwrap()
            };
            let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
            let difference = (numeric - analytic[element]).abs();
            assert!(difference < 1e-7, "input {index}, element {element}: {numeric} against {}", analytic[element]);
        }
        input.set(&Tensor::from_vec(original, input.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

fn exact(weight: &Tensor) -> Weight {
    Weight::new(weight.clone(), Precision::F32).unwrap()
}

#[test]
fn linear_is_a_product_and_a_sum_and_its_gradients_are_exact() -> Result<()> {
    let inputs = variables(&[&[5, 4], &[3, 4], &[3]]);
    let expected = inputs[0].matmul(&inputs[1].t()?)?.broadcast_add(&inputs[2])?;
    close(&ops::linear(&inputs[0], &exact(&inputs[1]), Some(&inputs[2]))?, &expected, 1e-14);
    agrees_with_finite_differences(&inputs, |v| ops::linear(&v[0], &exact(&v[1]), Some(&v[2])));
    agrees_with_finite_differences(&inputs[..2], |v| ops::linear(&v[0], &exact(&v[1]), None));
    Ok(())
}

#[test]
fn a_frozen_weight_gets_no_gradient_tensor() -> Result<()> {
    let inputs = variables(&[&[5, 4], &[3, 4], &[3]]);
    let weight = inputs[1].as_detached_tensor();
    let gradients = ops::linear(&inputs[0], &exact(&weight), Some(&inputs[2]))?.sum_all()?.backward()?;
    assert!(gradients.get(&inputs[0]).is_some() && gradients.get(&inputs[2]).is_some());
    assert!(gradients.get(&weight).is_none());
    agrees_with_finite_differences(&[inputs[0].clone(), inputs[2].clone()], |v| {
        ops::linear(&v[0], &exact(&weight), Some(&v[1]))
    });
    Ok(())
}

#[test]
fn a_lora_branch_is_the_papers_formula_and_its_gradients_are_exact() -> Result<()> {
    let (weight, bias) = (numbers(&[3, 4], 20), numbers(&[3], 21));
    let inputs = variables(&[&[5, 4], &[2, 4], &[3, 2]]);
    fn lora<'a>(a: &'a Tensor, b: &'a Tensor, dropout: Option<Dropout>) -> Lora<'a> {
        Lora { a, b, scaling: 1.5, dropout }
    }
    let output = ops::lora_linear(&inputs[0], &exact(&weight), Some(&bias), lora(&inputs[1], &inputs[2], None))?;
    let branch = (inputs[0].matmul(&inputs[1].t()?)?.matmul(&inputs[2].t()?)? * 1.5)?;
    close(&output, &(inputs[0].matmul(&weight.t()?)?.broadcast_add(&bias)? + branch)?, 1e-14);
    let merged = exact(&weight).merge(&lora(&inputs[1], &inputs[2], None))?;
    close(&ops::linear(&inputs[0], &merged, Some(&bias))?, &output, 1e-14);
    let error = exact(&weight).merge(&lora(&inputs[2], &inputs[1], None)).unwrap_err().to_string();
    assert!(error.contains("do not fit"), "{error}");
    for dropout in [None, Dropout::new(0.3, 5)] {
        agrees_with_finite_differences(&inputs, |v| {
            ops::lora_linear(&v[0], &exact(&weight), Some(&bias), lora(&v[1], &v[2], dropout))
        });
    }
    Ok(())
}

/// bf16 rounds each factor by at most a 256th, so a product of two by little more than a 128th, and a sum of products by that
/// share of the sum of their sizes.
fn within_bf16(found: &Tensor, exact: &Tensor, sizes: &Tensor) -> Result<()> {
    let [found, exact, sizes] = [found, exact, sizes].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    for ((found, exact), size) in found.iter().zip(&exact).zip(&sizes) {
        assert!((found - exact).abs() <= size * 1.05 / 128.0, "{found} against {exact}, terms {size}");
    }
    assert!(found.iter().zip(&exact).any(|(found, exact)| found != exact), "nothing was rounded");
    Ok(())
}

#[test]
fn bf16_products_are_the_exact_ones_within_bf16s_rounding_forward_and_backward() -> Result<()> {
    let shapes: [&[usize]; 5] = [&[70, 50], &[53, 50], &[53], &[3, 50], &[53, 3]];
    let [x, w, bias, a, b] =
        [0, 1, 2, 3, 4].map(|i| Var::from_tensor(&numbers(shapes[i], i as u64).to_dtype(DType::F32).unwrap()).unwrap());
    let frozen = |v: &Var| v.as_detached_tensor();
    let lora = Lora { a: &a, b: &b, scaling: 1.5, dropout: None };
    let run = |trained: bool, precision: Precision| -> Result<Vec<Tensor>> {
        let (output, variables) = if trained {
            let weight = Weight::new(w.as_tensor().clone(), precision)?;
            (ops::linear(&x, &weight, Some(&bias))?, vec![&x, &w])
        } else {
            let weight = Weight::new(frozen(&w), precision)?;
            (ops::lora_linear(&x, &weight, Some(&frozen(&bias)), lora.clone())?, vec![&x, &a, &b])
        };
        let upstream = numbers(&[70, 53], 9).to_dtype(DType::F32)?;
        let gradients = (&output * upstream)?.sum_all()?.backward()?;
        let gradients = variables.into_iter().map(|v| gradients.get(v).unwrap().clone());
        Ok(std::iter::once(output).chain(gradients).collect())
    };
    let (ax, aw) = (x.abs()?, w.abs()?);
    let g = numbers(&[70, 53], 9).to_dtype(DType::F32)?.abs()?;
    let (y, dx) = (ax.matmul(&aw.t()?)?, g.matmul(&aw)?);
    let (rounded, reference) = (run(true, Precision::Bf16)?, run(true, Precision::F32)?);
    for ((found, exact), size) in rounded.iter().zip(&reference).zip([&y, &dx, &g.t()?.matmul(&ax)?]) {
        within_bf16(found, exact, size)?;
    }
    let (rounded, reference) = (run(false, Precision::Bf16)?, run(false, Precision::F32)?);
    for ((found, exact), size) in rounded.iter().zip(&reference).zip([&y, &dx]) {
        within_bf16(found, exact, size)?;
    }
    // The gradients of A and B lie in the branch alone, which is never rounded: sums of 70 terms, of the order of 100.
    for (found, exact) in rounded.iter().zip(&reference).skip(2) {
        close(found, exact, 1e-4);
    }
    Ok(())
}

#[test]
fn lora_refuses_a_trainable_weight_because_its_gradient_would_be_lost() {
    let v = variables(&[&[5, 4], &[3, 4], &[2, 4], &[3, 2]]);
    let lora = Lora { a: &v[2], b: &v[3], scaling: 1.0, dropout: None };
    let error = ops::lora_linear(&v[0], &exact(&v[1]), None, lora).unwrap_err().to_string();
    assert!(error.contains("must be frozen"), "{error}");
}

#[test]
fn layer_norm_is_the_slow_formula_and_its_gradients_are_exact() -> Result<()> {
    let inputs = variables(&[&[5, 20], &[20], &[20]]);
    let mean = inputs[0].mean_keepdim(1)?;
    let centered = inputs[0].broadcast_sub(&mean)?;
    let scale = (centered.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
    let expected = centered.broadcast_div(&scale)?.broadcast_mul(&inputs[1])?.broadcast_add(&inputs[2])?;
    close(&ops::layer_norm(&inputs[0], &inputs[1], &inputs[2], 1e-5)?, &expected, 1e-13);
    agrees_with_finite_differences(&inputs, |v| ops::layer_norm(&v[0], &v[1], &v[2], 1e-5));
    Ok(())
}

/// In candle's graph it is composed of the two; recorded, it is one operation.
#[test]
fn a_recorded_norm_of_a_sum_and_its_gradients_are_those_of_the_two_operations() -> Result<()> {
    // More rows than a thread takes at a time.
    for (rows, dropout) in [(2, None), (70, None), (70, Dropout::new(0.3, 5))] {
        let inputs = variables(&[&[rows, 6], &[rows, 6], &[6], &[6]]);
        let weights = numbers(&[rows, 6], 99);
        // Of x and residual, of one of them alone, and of neither: the others are frozen.
        for trained in [[true, true], [true, false], [false, true], [false, false]] {
            let tensor = |index: usize| match trained.get(index) {
                Some(false) => inputs[index].as_detached_tensor(),
                _ => inputs[index].as_tensor().clone(),
            };
            let (x, residual) = (tensor(0), tensor(1));
            let norm = || ops::gate(&ops::add_norm(&x, &residual, dropout, &inputs[2], &inputs[3], 1e-5)?, &weights);
            let (expected, recorded) = (norm()?, ops::record(norm)?);
            close(recorded.value(), &expected, 0.0);
            let (expected, found) = (expected.backward()?, recorded.gradients()?);
            for (index, input) in inputs.iter().enumerate() {
                match expected.get(input) {
                    Some(expected) => close(found.get(input).unwrap(), expected, 1e-14),
                    None => assert!(!trained[index] && found.get(input).is_none()),
                }
            }
        }
    }
    let inputs = variables(&[&[3, 6], &[2, 6], &[6], &[6]]);
    let error = ops::add_norm(&inputs[0], &inputs[1], None, &inputs[2], &inputs[3], 1e-5).unwrap_err().to_string();
    assert!(error.contains("[3, 6] and [2, 6] differ"), "{error}");
    Ok(())
}

#[test]
fn activations_are_candles_and_their_gradients_are_exact() -> Result<()> {
    let inputs = [Var::from_tensor(&(numbers(&[4, 7], 3) * 4.0)?)?];
    let x: &Tensor = &inputs[0];
    let expected = [
        (Activation::Gelu, x.gelu_erf()?),
        (Activation::GeluApproximate, x.gelu()?),
        (Activation::Relu, x.relu()?),
        (Activation::Tanh, x.tanh()?),
        (Activation::Swish, x.silu()?),
    ];
    for (activation, expected) in expected {
        close(&ops::activation(x, activation)?, &expected, 1e-14);
        agrees_with_finite_differences(&inputs, |v| ops::activation(&v[0], activation));
    }
    let single = x.to_dtype(DType::F32)?;
    close(&ops::activation(&single, Activation::Gelu)?, &single.gelu_erf()?, 2e-6);
    Ok(())
}

#[test]
fn a_sum_of_embeddings_is_that_of_the_rows_and_its_gradients_are_exact() -> Result<()> {
    let tables = variables(&[&[6, 4], &[2, 4], &[3, 4]]);
    let rows = [[5u32, 0, 5], [0, 1, 1], [0, 1, 2]].map(|rows| Tensor::new(&rows, &Device::Cpu).unwrap());
    let sum = |v: &[Var]| ops::embedding_sum([&v[0], &v[1], &v[2]], [&rows[0], &rows[1], &rows[2]]);
    let selected = |i: usize| tables[i].index_select(&rows[i], 0);
    close(&sum(&tables)?, &((selected(0)? + selected(1)?)? + selected(2)?)?, 1e-15);
    agrees_with_finite_differences(&tables, sum);
    let error = ops::embedding_sum([&tables[0], &tables[1], &tables[2]], [&rows[0], &rows[0], &rows[2]]).unwrap_err();
    assert!(error.to_string().contains("row 5 of a table of 2"), "{error}");
    Ok(())
}

#[test]
fn losses_are_candles_and_their_gradients_are_exact() -> Result<()> {
    let logits = [Var::from_tensor(&(numbers(&[3, 4], 3) * 9.0)?)?];
    let classes = Tensor::new(&[3u32, 0, 2], &Device::Cpu)?;
    close(&ops::cross_entropy(&logits[0], &classes)?, &candle_nn::loss::cross_entropy(&logits[0], &classes)?, 1e-14);
    agrees_with_finite_differences(&logits, |v| ops::cross_entropy(&v[0], &classes));
    assert!(ops::cross_entropy(&logits[0], &Tensor::new(&[3u32, 0, 4], &Device::Cpu)?).is_err());
    let far = Tensor::new(&[[1e4f32, -1e4]], &Device::Cpu)?; // e^1e4 is infinite
    assert_eq!(ops::cross_entropy(&far, &Tensor::new(&[1u32], &Device::Cpu)?)?.to_scalar::<f32>()?, 2e4);

    let (scores, targets) = (variables(&[&[5, 1]]), numbers(&[5], 8));
    let expected = candle_nn::loss::mse(&scores[0].squeeze(1)?, &targets)?;
    close(&ops::mean_squared_error(&scores[0], &targets)?, &expected, 1e-15);
    agrees_with_finite_differences(&scores, |v| ops::mean_squared_error(&v[0], &targets));
    Ok(())
}

/// Attention of one sequence in candle's basic operations.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (length, hidden) = q.dims2()?;
    let split = |t: &Tensor| t.reshape((length, heads, hidden / heads))?.transpose(0, 1)?.contiguous();
    let scores = (split(q)?.matmul(&split(k)?.t()?)? / ((hidden / heads) as f64).sqrt())?;
    let probabilities = candle_nn::ops::softmax(&scores, D::Minus1)?;
    probabilities.matmul(&split(v)?)?.transpose(0, 1)?.reshape((length, hidden))
}

#[test]
fn packed_attention_is_plain_attention_sequence_by_sequence_and_its_gradients_are_exact() -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6]]);
    let expected = segments
        .ranges()
        .map(|range| {
            let part = |t: &Tensor| t.narrow(0, range.start, range.len());
            plain_attention(&part(&inputs[0])?, &part(&inputs[1])?, &part(&inputs[2])?, 2)
        })
        .collect::<Result<Vec<_>>>()?;
    let output = ops::attention(&inputs[0], &inputs[1], &inputs[2], &segments, options(2, Scores::Content, None))?;
    close(&output, &Tensor::cat(&expected, 0)?, 1e-14);
    for dropout in [None, Dropout::new(0.3, 5)] {
        agrees_with_finite_differences(&inputs, |v| {
            ops::attention(&v[0], &v[1], &v[2], &segments, options(2, Scores::Content, dropout))
        });
    }
    Ok(())
}

#[test]
fn attention_of_one_query_per_sequence_is_that_row_of_all_queries_and_its_gradients_are_exact() -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6]]);
    let starts = Tensor::new(&[0u32, 3, 4], &Device::Cpu)?;
    let queries = Var::from_tensor(&inputs[0].index_select(&starts, 0)?)?;
    let all = ops::attention(&inputs[0], &inputs[1], &inputs[2], &segments, options(2, Scores::Content, None))?;
    let first = ops::attention(&queries, &inputs[1], &inputs[2], &segments, options(2, Scores::Content, None))?;
    close(&first, &all.index_select(&starts, 0)?, 1e-14);
    let inputs = [queries, inputs[1].clone(), inputs[2].clone()];
    for dropout in [None, Dropout::new(0.3, 5)] {
        agrees_with_finite_differences(&inputs, |v| {
            ops::attention(&v[0], &v[1], &v[2], &segments, options(2, Scores::Content, dropout))
        });
    }
    assert!(
        ops::attention(
            &inputs[1].narrow(0, 0, 2)?,
            &inputs[1],
            &inputs[2],
            &segments,
            options(2, Scores::Content, None)
        )
        .is_err()
    );
    Ok(())
}

/// Scores of one sequence's heads and what is added to them, `(heads, queries, keys)`, in candle's basic operations.
fn attention_by_scores(
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    terms: usize,
    added: impl Fn(usize, usize, usize, &dyn Fn(&Tensor, usize) -> Vec<f64>) -> f64,
) -> Result<Tensor> {
    let (length, hidden) = q.dims2()?;
    let width = hidden / heads;
    let head_row = |t: &Tensor, row: usize, head: usize| -> Vec<f64> {
        t.get(row).unwrap().narrow(0, head * width, width).unwrap().to_vec1().unwrap()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut output = vec![0.0; length * hidden];
    for head in 0..heads {
        for i in 0..length {
            let query = head_row(q, i, head);
            let scores: Vec<f64> = (0..length)
                .map(|j| {
                    let key = head_row(k, j, head);
                    let rows = |t: &Tensor, row: usize| head_row(t, row, head);
                    dot(&query, &key) / ((width * terms) as f64).sqrt() + added(head, i, j, &rows)
                })
                .collect();
            let total: f64 = scores.iter().map(|score| score.exp()).sum();
            for (j, score) in scores.iter().enumerate() {
                for (column, value) in head_row(v, j, head).into_iter().enumerate() {
                    output[i * hidden + head * width + column] += score.exp() / total * value;
                }
            }
        }
    }
    Tensor::from_vec(output, (length, hidden), &Device::Cpu)
}

/// Packed attention with `relative` against each sequence alone, where `added` gives what the scores hold besides `q kᵀ`.
fn is_attention_with(
    inputs: &[Var],
    terms: usize,
    relative: impl Fn(&[Var], &Segments) -> Result<Tensor>,
    added: impl Fn(usize, usize, usize, &Tensor, &Tensor, &dyn Fn(&Tensor, usize) -> Vec<f64>) -> f64,
) -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    let expected = segments
        .ranges()
        .map(|range| {
            let [q, k, v] = [0, 1, 2].map(|i| inputs[i].narrow(0, range.start, range.len()).unwrap());
            attention_by_scores([&q, &k, &v], 2, terms, |head, i, j, rows| added(head, i, j, &q, &k, rows))
        })
        .collect::<Result<Vec<_>>>()?;
    let expected = Tensor::cat(&expected, 0)?;
    close(&relative(inputs, &segments)?, &expected, 1e-14);
    agrees_with_finite_differences(inputs, |v| relative(v, &segments));
    // One query per sequence: the first token's.
    let starts = Tensor::new(&[0u32, 3, 4], &Device::Cpu)?;
    let mut first = inputs.to_vec();
    first[0] = Var::from_tensor(&inputs[0].index_select(&starts, 0)?)?;
    close(&relative(&first, &segments)?, &expected.index_select(&starts, 0)?, 1e-14);
    agrees_with_finite_differences(&first, |v| relative(v, &segments));
    Ok(())
}

#[test]
fn attention_within_a_window_leaves_out_the_keys_beyond_it_and_its_gradients_are_exact() -> Result<()> {
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6]]);
    for dropout in [None, Dropout::new(0.3, 5)] {
        let window = |v: &[Var], segments: &Segments| {
            ops::attention(&v[0], &v[1], &v[2], segments, options(2, Scores::Window(1), dropout))
        };
        if dropout.is_some() {
            agrees_with_finite_differences(&inputs, |v| window(v, &Segments::from_lengths(&[3, 1, 4])));
        } else {
            let beyond = |_, i: usize, j: usize, _: &Tensor, _: &Tensor, _: &dyn Fn(&Tensor, usize) -> Vec<f64>| {
                if i.abs_diff(j) > 1 { f64::NEG_INFINITY } else { 0.0 }
            };
            is_attention_with(&inputs, 1, window, beyond)?;
        }
    }
    Ok(())
}

#[test]
fn a_window_as_wide_as_the_sequences_is_attention() -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6]]);
    for dropout in [None, Dropout::new(0.3, 5)] {
        let all = ops::attention(&inputs[0], &inputs[1], &inputs[2], &segments, options(2, Scores::Content, dropout))?;
        let window = Scores::Window(4);
        let found = ops::attention(&inputs[0], &inputs[1], &inputs[2], &segments, options(2, window, dropout))?;
        close(&found, &all, 1e-14);
    }
    Ok(())
}

/// Saturates two tokens away: rows 0 to 4 of a table of 5.
fn saturated(distance: isize) -> usize {
    (distance.clamp(-2, 2) + 2) as usize
}

#[test]
fn a_bias_by_distance_is_added_to_the_scores_and_its_gradients_are_exact() -> Result<()> {
    let rows = RelativeRows::new(6, saturated);
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6], &[5, 2]]);
    let table = inputs[3].to_vec2::<f64>()?;
    let bias = |dropout| {
        let rows = &rows;
        move |v: &[Var], segments: &Segments| {
            let relative = Scores::Bias { table: &v[3], rows };
            ops::attention(&v[0], &v[1], &v[2], segments, options(2, relative, dropout))
        }
    };
    is_attention_with(&inputs, 1, bias(None), |head, i, j, _, _, _| table[saturated(i as isize - j as isize)][head])?;
    let segments = Segments::from_lengths(&[3, 1, 4]);
    agrees_with_finite_differences(&inputs, |v| bias(Dropout::new(0.3, 5))(v, &segments));
    // A frozen table gets no gradient.
    let table = inputs[3].as_detached_tensor();
    let relative = Scores::Bias { table: &table, rows: &rows };
    let output = ops::attention(&inputs[0], &inputs[1], &inputs[2], &segments, options(2, relative, None))?;
    let gradients = output.sum_all()?.backward()?;
    assert!(gradients.get(&inputs[0]).is_some() && gradients.get(&table).is_none());
    Ok(())
}

#[test]
fn disentangled_attention_is_the_papers_sum_of_scores_and_its_gradients_are_exact() -> Result<()> {
    let rows = RelativeRows::new(6, saturated);
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6], &[5, 6], &[5, 6]]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (to_position, to_content) in [(true, true), (true, false), (false, true)] {
        // Only the tables that take part have a gradient.
        let tables = [3, 4].into_iter().zip([to_position, to_content]).filter(|(_, takes_part)| *takes_part);
        let inputs: Vec<Var> = [0, 1, 2].into_iter().chain(tables.map(|(i, _)| i)).map(|i| inputs[i].clone()).collect();
        let terms = inputs.len() - 2;
        let attention = |dropout| {
            let rows = &rows;
            move |v: &[Var], segments: &Segments| {
                let key = to_position.then(|| v[3].as_tensor());
                let query = to_content.then(|| v[v.len() - 1].as_tensor());
                let relative = Scores::Disentangled { key, query, rows };
                ops::attention(&v[0], &v[1], &v[2], segments, options(2, relative, dropout))
            }
        };
        let scale = 1.0 / ((3 * terms) as f64).sqrt();
        is_attention_with(&inputs, terms, attention(None), |_, i, j, q, k, head_row| {
            let row = saturated(i as isize - j as isize);
            let to_position = if to_position { dot(&head_row(q, i), &head_row(&inputs[3], row)) } else { 0.0 };
            let last = &inputs[inputs.len() - 1];
            let to_content = if to_content { dot(&head_row(k, j), &head_row(last, row)) } else { 0.0 };
            scale * (to_position + to_content)
        })?;
        let segments = Segments::from_lengths(&[3, 1, 4]);
        agrees_with_finite_differences(&inputs, |v| attention(Dropout::new(0.3, 5))(v, &segments));
    }
    Ok(())
}

#[test]
fn rows_that_do_not_fit_the_table_or_the_sequences_are_errors() {
    let v = variables(&[&[8, 6], &[8, 6], &[8, 6], &[5, 2], &[4, 2]]);
    let error = |table: &Tensor, longest, lengths: &[usize]| {
        let rows = RelativeRows::new(longest, saturated);
        let relative = Scores::Bias { table, rows: &rows };
        let segments = Segments::from_lengths(lengths);
        ops::attention(&v[0], &v[1], &v[2], &segments, options(2, relative, None)).unwrap_err().to_string()
    };
    assert!(error(&v[3], 3, &[4, 4]).contains("4 tokens, the rows are made for 3"));
    assert!(error(&v[4], 6, &[4, 4]).contains("a table of 4 rows and 2 columns, expected 2 and row 4"));
    assert!(error(&v[0], 6, &[4, 4]).contains("6 columns, expected 2"));
}

#[test]
fn rotary_embeddings_are_complex_multiplication_and_their_gradients_are_exact() -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    let inputs = variables(&[&[8, 12]]);
    let x = inputs[0].to_vec2::<f64>()?;
    let mut expected = Vec::new();
    for range in segments.ranges() {
        for (position, row) in x[range].iter().enumerate() {
            for head in row.chunks(6) {
                // Column i is the real part, column i + 3 the imaginary one of a number that is turned.
                let turned = (0..3).map(|i| {
                    let angle = position as f64 / 100f64.powf(i as f64 / 3.0);
                    (
                        head[i] * angle.cos() - head[i + 3] * angle.sin(),
                        head[i] * angle.sin() + head[i + 3] * angle.cos(),
                    )
                });
                let (real, imaginary): (Vec<f64>, Vec<f64>) = turned.unzip();
                expected.extend(real.into_iter().chain(imaginary));
            }
        }
    }
    let rotary = |v: &[Var]| ops::rotary(&v[0], &segments, 2, 100.0, 0);
    close(&rotary(&inputs)?, &Tensor::from_vec(expected, (8, 12), &Device::Cpu)?, 1e-14);
    agrees_with_finite_differences(&inputs, rotary);
    assert!(ops::rotary(&inputs[0], &segments, 4, 100.0, 0).unwrap_err().to_string().contains("pairs"));
    Ok(())
}

#[test]
fn a_rotary_embedding_from_a_later_position_is_that_of_the_rows_behind_others() -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    let (before, x) = (numbers(&[2, 12], 7), variables(&[&[8, 12]]));
    let longer = ops::prepend(&before, &x[0], &segments)?;
    let turned = ops::rotary(&longer, &segments.lengthened(2), 2, 100.0, 0)?;
    let later = |v: &[Var]| ops::rotary(&v[0], &segments, 2, 100.0, 2);
    close(&later(&x)?, &own_rows(&turned, &segments, 2)?, 1e-14);
    agrees_with_finite_differences(&x, later);
    Ok(())
}

/// The rows of each sequence without the first `count`, where `segments` are those that are left.
fn own_rows(x: &Tensor, segments: &Segments, count: usize) -> Result<Tensor> {
    let lengthened = segments.lengthened(count);
    let parts = lengthened.ranges().map(|range| x.narrow(0, range.start + count, range.len() - count));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

#[test]
fn rows_are_put_before_each_sequence_and_their_gradients_are_exact() -> Result<()> {
    // More rows than a thread takes at a time.
    for lengths in [[3, 1, 4], [40, 2, 33]] {
        let segments = Segments::from_lengths(&lengths);
        let inputs = variables(&[&[2, 3], &[segments.tokens(), 3]]);
        let sequences = segments
            .ranges()
            .map(|range| Tensor::cat(&[inputs[0].as_tensor(), &inputs[1].narrow(0, range.start, range.len())?], 0));
        let expected = Tensor::cat(&sequences.collect::<Result<Vec<_>>>()?, 0)?;
        let output = ops::prepend(&inputs[0], &inputs[1], &segments)?;
        assert_eq!(output.dims(), [segments.lengthened(2).tokens(), 3]);
        close(&output, &expected, 0.0);
        if lengths[0] == 3 {
            agrees_with_finite_differences(&inputs, |v| ops::prepend(&v[0], &v[1], &segments));
        } else {
            let weights = numbers(expected.dims(), 5);
            let found = (&output * &weights)?.sum_all()?.backward()?;
            let basic = (&expected * &weights)?.sum_all()?.backward()?;
            for input in &inputs {
                close(found.get(input).unwrap(), basic.get(input).unwrap(), 1e-14);
            }
        }
    }
    let (prefix, x) = (numbers(&[2, 3], 1), numbers(&[4, 3], 2));
    assert!(ops::prepend(&prefix, &x, &Segments::from_lengths(&[3, 2])).is_err());
    assert!(ops::prepend(&numbers(&[2, 4], 1), &x, &Segments::from_lengths(&[4])).is_err());
    Ok(())
}

#[test]
fn attention_to_a_prefix_is_plain_attention_to_the_keys_with_the_prefix_before_them() -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    // Query, key, value; the keys and values of a prefix of two.
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6], &[2, 6], &[2, 6]]);
    let attend = |v: &[Var], dropout| {
        let (key, value) = (ops::prepend(&v[3], &v[1], &segments)?, ops::prepend(&v[4], &v[2], &segments)?);
        ops::attention(&v[0], &key, &value, &segments, options(2, Scores::Content, dropout))
    };
    let sequences = segments.ranges().map(|range| {
        let part = |t: &Tensor, before: &Tensor| Tensor::cat(&[before, &t.narrow(0, range.start, range.len())?], 0);
        let (key, value) = (part(&inputs[1], &inputs[3])?, part(&inputs[2], &inputs[4])?);
        // The prefix asks nothing: its rows of the result are left out.
        plain_attention(&part(&inputs[0], &inputs[3])?, &key, &value, 2)?.narrow(0, 2, range.len())
    });
    let expected = Tensor::cat(&sequences.collect::<Result<Vec<_>>>()?, 0)?;
    close(&attend(&inputs, None)?, &expected, 1e-14);
    let starts = Tensor::new(&[0u32, 3, 4], &Device::Cpu)?;
    let mut first = inputs.clone();
    first[0] = Var::from_tensor(&inputs[0].index_select(&starts, 0)?)?;
    close(&attend(&first, None)?, &expected.index_select(&starts, 0)?, 1e-14);
    for dropout in [None, Dropout::new(0.3, 5)] {
        agrees_with_finite_differences(&inputs, |v| attend(v, dropout));
        agrees_with_finite_differences(&first, |v| attend(v, dropout));
    }
    // Not as many rows more for each of the three.
    let key = numbers(&[13, 6], 3);
    let error =
        ops::attention(&inputs[0], &key, &key, &segments, options(2, Scores::Content, None)).unwrap_err().to_string();
    assert!(error.contains("13 keys for 8 tokens of 3 sequences"), "{error}");
    Ok(())
}

/// Against the same scores of longer sequences, of which the first queries are left out: the prefix stands where their tokens do.
#[test]
fn relative_attention_counts_a_prefix_among_the_positions_and_its_gradients_are_exact() -> Result<()> {
    let segments = Segments::from_lengths(&[3, 1, 4]);
    let rows = RelativeRows::new(6, saturated);
    let inputs = variables(&[&[8, 6], &[8, 6], &[8, 6], &[2, 6], &[2, 6], &[5, 2], &[5, 6], &[5, 6]]);
    let starts = Tensor::new(&[0u32, 3, 4], &Device::Cpu)?;
    for kind in ["window", "bias", "disentangled"] {
        // What the tables of a kind are, and with them what its attention is.
        let tables: &[usize] = match kind {
            "window" => &[],
            "bias" => &[5],
            _ => &[6, 7],
        };
        let relative = |q: &Tensor, k: &Tensor, v: &Tensor, tables: &[Var], segments: &Segments, dropout| {
            let relative = match tables {
                [] => Scores::Window(2),
                [table] => Scores::Bias { table, rows: &rows },
                tables => Scores::Disentangled { key: Some(&tables[0]), query: Some(&tables[1]), rows: &rows },
            };
            ops::attention(q, k, v, segments, options(2, relative, dropout))
        };
        let attend = |v: &[Var], dropout| {
            let (key, value) = (ops::prepend(&v[3], &v[1], &segments)?, ops::prepend(&v[4], &v[2], &segments)?);
            relative(&v[0], &key, &value, &v[5..], &segments, dropout)
        };
        let mut inputs: Vec<Var> = (0..5).chain(tables.iter().copied()).map(|index| inputs[index].clone()).collect();
        let longer = |own: usize, before: usize| ops::prepend(&inputs[before], &inputs[own], &segments);
        let (q, k, v) = (longer(0, 3)?, longer(1, 3)?, longer(2, 4)?);
        let all = relative(&q, &k, &v, &inputs[5..], &segments.lengthened(2), None)?;
        let expected = own_rows(&all, &segments, 2)?;
        close(&attend(&inputs, None)?, &expected, 1e-14);
        agrees_with_finite_differences(&inputs, |v| attend(v, Dropout::new(0.3, 5)));
        inputs[0] = Var::from_tensor(&inputs[0].index_select(&starts, 0)?)?;
        close(&attend(&inputs, None)?, &expected.index_select(&starts, 0)?, 1e-14);
        agrees_with_finite_differences(&inputs, |v| attend(v, None));
    }
    Ok(())
}

#[test]
fn columns_are_joined_and_cut_and_gates_multiplied_and_their_gradients_are_exact() -> Result<()> {
    // More rows than a thread takes at a time.
    for rows in [3, 70] {
        let inputs = variables(&[&[rows, 4], &[rows, 3], &[rows, 4]]);
        let joined = |v: &[Var]| ops::concatenate_columns(&v[0], &v[1]);
        close(&joined(&inputs)?, &Tensor::cat(&[inputs[0].as_tensor(), inputs[1].as_tensor()], 1)?, 0.0);
        agrees_with_finite_differences(&inputs[..2], joined);
        let cut = |v: &[Var]| ops::narrow_columns(&v[0], 1..3);
        close(&cut(&inputs)?, &inputs[0].narrow(1, 1, 2)?, 0.0);
        agrees_with_finite_differences(&inputs[..1], cut);
        let gated = [inputs[0].clone(), inputs[2].clone()];
        close(&ops::gate(&gated[0], &gated[1])?, &(gated[0].as_tensor() * gated[1].as_tensor())?, 0.0);
        agrees_with_finite_differences(&gated, |v| ops::gate(&v[0], &v[1]));
        close(&ops::add(&gated[0], &gated[1])?, &(gated[0].as_tensor() + gated[1].as_tensor())?, 0.0);
        agrees_with_finite_differences(&gated, |v| ops::add(&v[0], &v[1]));
        close(&ops::sub(&gated[0], &gated[1])?, &(gated[0].as_tensor() - gated[1].as_tensor())?, 0.0);
        agrees_with_finite_differences(&gated, |v| ops::sub(&v[0], &v[1]));
        close(&ops::scale(&gated[0], -0.3)?, &(gated[0].as_tensor() * -0.3)?, 0.0);
        agrees_with_finite_differences(&gated[..1], |v| ops::scale(&v[0], -0.3));
        assert!(ops::add(&inputs[0], &inputs[1]).is_err() && ops::sub(&inputs[0], &inputs[1]).is_err());
        assert!(ops::gate(&inputs[0], &inputs[1]).is_err() && ops::narrow_columns(&inputs[0], 2..5).is_err());
    }
    Ok(())
}

#[test]
fn dropout_the_segment_mean_and_the_first_tokens_have_exact_gradients() -> Result<()> {
    let inputs = variables(&[&[6, 5], &[6, 5]]);
    let segments = Segments::from_lengths(&[2, 4]);
    agrees_with_finite_differences(&inputs[..1], |v| ops::segment_mean(&v[0], &segments));
    agrees_with_finite_differences(&inputs[..1], |v| ops::first_tokens(&v[0], &segments));
    let starts = Tensor::new(&[0u32, 2], &Device::Cpu)?;
    close(&ops::first_tokens(&inputs[0], &segments)?, &inputs[0].index_select(&starts, 0)?, 0.0);
    agrees_with_finite_differences(&inputs[..1], |v| ops::dropout(&v[0], Dropout::new(0.4, 8)));
    for dropout in [None, Dropout::new(0.4, 8)] {
        agrees_with_finite_differences(&inputs, |v| ops::add_dropout(&v[0], &v[1], dropout));
    }
    let expected =
        Tensor::cat(&[inputs[0].narrow(0, 0, 2)?.mean_keepdim(0)?, inputs[0].narrow(0, 2, 4)?.mean_keepdim(0)?], 0)?;
    close(&ops::segment_mean(&inputs[0], &segments)?, &expected, 1e-14);
    Ok(())
}

#[test]
fn segments_that_do_not_cover_the_batch_are_an_error() {
    let hidden = numbers(&[5, 4], 1);
    let error = ops::segment_mean(&hidden, &Segments::from_lengths(&[2, 2])).unwrap_err().to_string();
    assert!(error.contains("4 tokens") && error.contains('5'), "{error}");
    assert!(ops::segment_mean(&hidden, &Segments::from_lengths(&[5, 0])).is_err());
}

#[test]
fn a_bias_is_added_and_a_scale_multiplied_in_each_row_and_their_gradients_are_exact() -> Result<()> {
    // More rows than a thread takes at a time.
    for rows in [3, 70] {
        let inputs = variables(&[&[rows, 4], &[4]]);
        let over = (numbers(&[4], 9) + 2.0)?;
        close(&ops::add_bias(&inputs[0], &inputs[1])?, &inputs[0].broadcast_add(&inputs[1])?, 0.0);
        let product = inputs[0].broadcast_mul(&inputs[1])?;
        close(&ops::scale_columns(&inputs[0], &inputs[1], None)?, &product, 0.0);
        close(&ops::scale_columns(&inputs[0], &inputs[1], Some(&over))?, &product.broadcast_div(&over)?, 1e-15);
        agrees_with_finite_differences(&variables(&[&[rows, 4], &[4, 1]]), |v| ops::scale_columns(&v[0], &v[1], None));
        agrees_with_finite_differences(&inputs, |v| ops::add_bias(&v[0], &v[1]));
        agrees_with_finite_differences(&inputs, |v| ops::scale_columns(&v[0], &v[1], None));
        agrees_with_finite_differences(&inputs, |v| ops::scale_columns(&v[0], &v[1], Some(&over)));
    }
    Ok(())
}

#[test]
fn what_columns_are_divided_by_gets_no_gradient() -> Result<()> {
    let inputs = variables(&[&[3, 4], &[4], &[4]]);
    let gradients = ops::scale_columns(&inputs[0], &inputs[1], Some(&inputs[2]))?.sum_all()?.backward()?;
    assert!(gradients.get(&inputs[1]).is_some() && gradients.get(&inputs[2]).is_none());
    let error = ops::add_bias(&inputs[0], &numbers(&[3], 1)).unwrap_err().to_string();
    assert!(error.contains("do not fit"), "{error}");
    Ok(())
}

#[test]
fn a_hundred_adamw_steps_are_candle_nns() -> Result<()> {
    use candle_nn::Optimizer;
    let start = numbers(&[3, 5], 7).to_dtype(DType::F32)?;
    let (ours, theirs) = (Var::from_tensor(&start)?, Var::from_tensor(&start.copy()?)?);
    let mut reference = candle_nn::AdamW::new(
        vec![theirs.clone()],
        candle_nn::ParamsAdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 },
    )?;
    let mut moments = ops::Moments::zeros(15);
    for step in 1..=100 {
        let loss = |v: &Var| v.as_tensor().sin()?.sqr()?.sum_all();
        let gradients = loss(&ours)?.backward()?;
        let settings = ops::AdamWStep {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            gradient_scale: 1.0,
            step,
        };
        ops::adamw_step(&ours, gradients.get(&ours).unwrap(), &mut moments, settings)?;
        reference.backward_step(&loss(&theirs)?)?;
    }
    // Each step rounds a parameter of the order of one in f32, by up to 6e-8 on either side: 1.2e-5 over the hundred.
    close(&ours, &theirs, 1.2e-5);
    assert!((ops::squared_norm(&ours)? - ours.sqr()?.sum_all()?.to_scalar::<f32>()? as f64).abs() < 1e-5);
    Ok(())
}

#[test]
fn orthogonality_is_the_norm_of_what_a_product_has_beyond_the_identity() -> Result<()> {
    for shape in [[3, 7], [7, 3], [4, 4]] {
        for of in [Orthonormal::Rows, Orthonormal::Columns] {
            let matrix = variables(&[&shape]);
            let (left, right) = match of {
                Orthonormal::Rows => (matrix[0].as_tensor().clone(), matrix[0].t()?),
                Orthonormal::Columns => (matrix[0].t()?, matrix[0].as_tensor().clone()),
            };
            let product = left.contiguous()?.matmul(&right.contiguous()?)?;
            let beyond = (&product - Tensor::eye(product.dims()[0], DType::F64, &Device::Cpu)?)?;
            let expected = (beyond.sqr()?.sum_all()?.sqrt()? * 1.5)?;
            close(&ops::orthogonality(&matrix[0], of, 1.5)?, &expected, 1e-13);
            agrees_with_finite_differences(&matrix, |v| ops::orthogonality(&v[0], of, 1.5));
        }
    }
    Ok(())
}

#[test]
fn a_product_of_trained_matrices_is_candles_and_its_gradients_are_exact() -> Result<()> {
    for shapes in [[&[3, 4][..], &[4, 5]], [&[2, 3, 4], &[2, 4, 5]]] {
        let inputs = variables(&shapes);
        let expected = (inputs[0].matmul(&inputs[1])? * 1.5)?;
        close(&ops::matrix_product(&inputs[0], &inputs[1], 1.5)?, &expected, 1e-14);
        agrees_with_finite_differences(&inputs, |v| ops::matrix_product(&v[0], &v[1], 1.5));
    }
    for shapes in [[&[3, 4][..], &[3, 4]], [&[2, 3, 4], &[3, 4, 5]]] {
        let error = ops::matrix_product(&numbers(shapes[0], 1), &numbers(shapes[1], 2), 1.0).unwrap_err().to_string();
        assert!(error.contains("do not fit"), "{error}");
    }
    Ok(())
}

/// By the definition: the number at `(i r + j, k s + l)` is `a[i, k] b[j, l]`.
#[test]
fn a_kronecker_product_has_the_second_matrix_in_every_block_and_its_gradients_are_exact() -> Result<()> {
    let inputs = variables(&[&[2, 3, 4], &[2, 5, 3]]);
    let outer = |n: usize| -> Result<Tensor> {
        let (a, b) = (inputs[0].get(n)?.reshape((3, 1, 4, 1))?, inputs[1].get(n)?.reshape((1, 5, 1, 3))?);
        (a.broadcast_mul(&b)? * 0.5)?.reshape((15, 12))
    };
    close(&ops::kronecker(&inputs[0], &inputs[1], 0.5)?, &(outer(0)? + outer(1)?)?, 1e-14);
    let first = [inputs[0].get(0)?, inputs[1].get(0)?];
    close(&ops::kronecker(&first[0], &first[1], 0.5)?, &outer(0)?, 1e-14);
    agrees_with_finite_differences(&inputs, |v| ops::kronecker(&v[0], &v[1], 0.5));
    let error = ops::kronecker(&inputs[0], &first[1], 1.0).unwrap_err().to_string();
    assert!(error.contains("do not fit"), "{error}");
    Ok(())
}

/// By the definition: what is above the diagonal, row by row, and the negative of it below.
#[test]
fn a_skew_symmetric_matrix_is_made_of_what_is_above_its_diagonal_and_its_gradients_are_exact() -> Result<()> {
    let vectors = variables(&[&[2, 6]]);
    let found = ops::skew_symmetric(&vectors[0])?;
    assert_eq!(found.dims(), [2, 4, 4]);
    close(&found.t()?, &found.neg()?, 0.0);
    let above: Vec<f64> = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
        .into_iter()
        .map(|(row, column)| found.get(1)?.get(row)?.get(column)?.to_scalar())
        .collect::<Result<_>>()?;
    assert_eq!(above, vectors[0].get(1)?.to_vec1::<f64>()?);
    agrees_with_finite_differences(&vectors, |v| ops::skew_symmetric(&v[0]));
    assert_eq!(ops::skew_symmetric(&numbers(&[0, 3], 1))?.dims(), [0, 3, 3]);
    assert_eq!(ops::skew_symmetric(&numbers(&[1, 1], 1))?.dims(), [1, 2, 2]);
    // Of a matrix of one number nothing is above the diagonal.
    assert_eq!(ops::skew_symmetric(&numbers(&[2, 0], 1))?.to_vec3::<f64>()?, [[[0.0]], [[0.0]]]);
    let error = ops::skew_symmetric(&numbers(&[2, 5], 1)).unwrap_err().to_string();
    assert!(error.contains("5 numbers above its diagonal"), "{error}");
    Ok(())
}

/// By what defines it: `R (I + Q) = I - Q`, and `R Rᵀ = I`, of matrices whose numbers are below 1 and below 10.
#[test]
fn cayleys_transform_of_a_skew_symmetric_matrix_is_orthogonal_and_its_gradients_are_exact() -> Result<()> {
    let identity = Tensor::eye(5, DType::F64, &Device::Cpu)?.broadcast_as((3, 5, 5))?.contiguous()?;
    for scale in [1.0, 10.0] {
        let skew = (ops::skew_symmetric(&numbers(&[3, 10], 4))? * scale)?;
        let rotations = ops::cayley(&skew)?;
        close(&rotations.matmul(&(&identity + &skew)?)?, &(&identity - &skew)?, 1e-13 * scale);
        close(&rotations.matmul(&rotations.t()?.contiguous()?)?, &identity, 1e-13);
    }
    let vectors = variables(&[&[3, 10]]);
    agrees_with_finite_differences(&vectors, |v| ops::cayley(&ops::skew_symmetric(&v[0])?));
    assert_eq!(ops::cayley(&numbers(&[0, 3, 3], 1))?.dims(), [0, 3, 3]);
    assert_eq!(ops::cayley(&numbers(&[2, 0, 0], 1))?.dims(), [2, 0, 0]);
    let (one, half) = (numbers(&[1, 1, 1], 1), |q: &Tensor| (q.neg()? + 1.0)? / (q + 1.0)?);
    close(&ops::cayley(&one)?, &half(&one)?, 1e-15);
    let error = ops::cayley(&numbers(&[2, 3, 4], 1)).unwrap_err().to_string();
    assert!(error.contains("no square matrices"), "{error}");
    Ok(())
}

/// The coefficients are those of PEFT's loop (`tuners/oft/layer.py`, `_cayley_batch`).
#[test]
fn a_neumann_series_is_the_sum_of_powers_near_cayleys_transform_and_its_gradients_are_exact() -> Result<()> {
    let vectors = variables(&[&[2, 3]]);
    let skew = |vectors: &[Var]| ops::skew_symmetric(&vectors[0]);
    let identity = Tensor::eye(3, DType::F64, &Device::Cpu)?.broadcast_as((2, 3, 3))?.contiguous()?;
    for (terms, coefficients) in [
        (1, &[1.0][..]),
        (2, &[1.0, 2.0]),
        (3, &[1.0, 2.0, 2.0, 1.0]),
        (4, &[1.0, 2.0, 2.0, 1.0]),
        (5, &[1.0, 2.0, 2.0, 2.0, 1.0]),
        (7, &[1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0]),
    ] {
        let (mut power, mut expected) = (identity.clone(), identity.zeros_like()?);
        for &coefficient in coefficients {
            expected = (expected + (&power * coefficient)?)?;
            power = power.matmul(&skew(&vectors)?)?;
        }
        close(&ops::cayley_neumann(&skew(&vectors)?, terms)?, &expected, 1e-13);
        agrees_with_finite_differences(&vectors, |v| ops::cayley_neumann(&skew(v)?, terms));
    }
    let small = (skew(&vectors)? * 0.01)?;
    close(&ops::cayley_neumann(&small, 8)?, &ops::cayley(&small.neg()?)?, 1e-12);
    assert_eq!(ops::cayley_neumann(&numbers(&[0, 3, 3], 1), 5)?.dims(), [0, 3, 3]);
    let one = numbers(&[1, 1, 1], 1);
    close(&ops::cayley_neumann(&one, 2)?, &((&one * 2.0)? + 1.0)?, 1e-15);
    let error = ops::cayley_neumann(&numbers(&[2, 3, 4], 1), 5).unwrap_err().to_string();
    assert!(error.contains("no square matrices"), "{error}");
    Ok(())
}

#[test]
fn rows_beyond_a_bound_are_as_long_as_it_and_the_gradient_passes() -> Result<()> {
    let x = variables(&[&[4, 20]]);
    let scales = Tensor::new(&[[0.0], [0.01], [1.0], [100.0]], &Device::Cpu)?;
    x[0].set(&x[0].broadcast_mul(&scales)?)?;
    let bounded = ops::bounded_rows(&x[0], 0.5)?;
    let norms = |x: &Tensor| x.sqr()?.sum_keepdim(1)?.sqrt();
    close(&norms(&bounded)?, &norms(&x[0])?.minimum(0.5)?, 1e-15);
    close(&(&bounded.narrow(0, 0, 2)? * 1.0)?, &x[0].narrow(0, 0, 2)?, 0.0);
    close(&bounded.broadcast_mul(&norms(&x[0])?)?, &x[0].broadcast_mul(&norms(&bounded)?)?, 1e-13);
    let weights = numbers(&[4, 20], 9);
    let gradients = (bounded * &weights)?.sum_all()?.backward()?;
    close(gradients.get(&x[0]).unwrap(), &weights, 0.0);
    assert_eq!(ops::bounded_rows(&numbers(&[0, 3], 1), 0.5)?.dims(), [0, 3]);
    assert_eq!(ops::bounded_rows(&Tensor::new(&[[-2.0]], &Device::Cpu)?, 0.5)?.to_vec2::<f64>()?, [[-0.5]]);
    Ok(())
}

#[test]
fn a_block_product_is_that_with_the_block_diagonal_matrix_and_its_gradients_are_exact() -> Result<()> {
    for count in [1, 3] {
        let inputs = variables(&[&[4, 6], &[count, 2, 2]]);
        let whole = Tensor::zeros((6, 6), DType::F64, &Device::Cpu)?;
        let whole = (0..3).try_fold(whole, |whole, index| {
            whole.slice_assign(&[2 * index..2 * index + 2, 2 * index..2 * index + 2], &inputs[1].get(index % count)?)
        })?;
        close(&ops::block_product(&inputs[0], &inputs[1])?, &inputs[0].matmul(&whole)?, 1e-15);
        agrees_with_finite_differences(&inputs, |v| ops::block_product(&v[0], &v[1]));
    }
    assert_eq!(ops::block_product(&numbers(&[0, 6], 1), &numbers(&[3, 2, 2], 2))?.dims(), [0, 6]);
    let (x, block) = (numbers(&[1, 1], 1), numbers(&[1, 1, 1], 2));
    close(&ops::block_product(&x, &block)?, &(&x * &block.reshape((1, 1))?)?, 1e-16);
    for blocks in [&[2, 2, 2][..], &[3, 2, 1], &[1, 4, 4]] {
        let error = ops::block_product(&numbers(&[4, 6], 1), &numbers(blocks, 2)).unwrap_err().to_string();
        assert!(error.contains("do not fit"), "{error}");
    }
    Ok(())
}
