//! The two kinds of kernels side by side: what they give, and how long they take.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // A test fails by panicking; the times are what it is for.

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::{CpuStorage, DType, Device, Result, Tensor};
use half::bf16;

use super::super::{Distances, Term};
use super::*;
use crate::operations::attention::RelativeRows;
use crate::operations::dropout::Dropout;
use crate::segments::Segments;

/// A batch, and what is attended with: `bias` counts the rows of a table by distance, if there is one.
struct Case {
    name: &'static str,
    lengths: Vec<usize>,
    heads: usize,
    head: usize,
    dropout: f64,
    bias: Option<usize>,
}

/// What both passes leave of one kind of kernels, on the CPU, and their times in microseconds, if they were taken.
struct Measured {
    values: Vec<Vec<f32>>, // output, gradients of queries, keys and values
    forward: Option<f32>,
    backward: Option<f32>,
}

fn numbers(gpu: &Gpu, count: usize, seed: u32) -> Buffer {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    gpu.copy(&(0..count).map(|_| next()).collect::<Vec<bf16>>()).unwrap()
}

fn values(buffer: &Buffer) -> Vec<f32> {
    match buffer.to_cpu().unwrap() {
        CpuStorage::BF16(numbers) => numbers.into_iter().map(bf16::to_f32).collect(),
        _ => panic!("expected bf16"),
    }
}

const LAUNCHES: usize = 50;

/// How long the card takes for some work, on average, in microseconds. It is given products of matrices of that size first, so that it
/// finds everything in line and waits for no launch.
fn time(gpu: &Gpu, size: usize, work: &dyn Fn() -> Result<()>) -> f32 {
    let place = Device::Cuda(gpu.device.clone());
    let square = Tensor::ones((size, size), DType::F32, &place).unwrap();
    let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let mut best = f32::INFINITY;
    for _ in 0..3 {
        for _ in 0..5 {
            square.matmul(&square).unwrap();
        }
        let begin = gpu.stream.record_event(timed).unwrap();
        for _ in 0..LAUNCHES {
            work().unwrap();
        }
        let end = gpu.stream.record_event(timed).unwrap();
        best = best.min(begin.elapsed_ms(&end).unwrap() * 1e3 / LAUNCHES as f32);
    }
    best
}

/// Both passes of a case, by the old kernels and by these, timed behind products of that size.
fn measure(case: &Case, size: Option<usize>) -> [Measured; 2] {
    let device = crate::cuda_device(0).unwrap();
    let gpu = Gpu::of(device.as_cuda_device().unwrap()).unwrap();
    let segments = Segments::from_lengths(&case.lengths);
    let (tokens, hidden, heads) = (segments.tokens(), case.heads * case.head, case.heads);
    let shape = [tokens, hidden];
    let new = |seed| numbers(&gpu, tokens * hidden, seed);
    let [q, k, v, gradient] = [1, 2, 3, 4].map(new);

    let longest = case.lengths.iter().copied().max().unwrap_or(1);
    let rows = RelativeRows::new(longest, |distance| distance.unsigned_abs() % case.bias.unwrap_or(1));
    let uploaded = gpu.shared_indices(&rows.rows).unwrap();
    let count = case.bias.unwrap_or(1) * heads;
    let table = gpu.copy(&(0..count).map(|i| (i as f32).sin()).collect::<Vec<f32>>()).unwrap();
    let table_shape = [count / heads, heads];
    let distances = case.bias.map(|_| Distances {
        rows: &rows,
        uploaded: &uploaded,
        table: table.array(&table_shape).unwrap(),
        term: Term::Bias,
    });
    let batch = Batch {
        queries: &segments,
        keys: &segments,
        heads,
        prefix: 0,
        window: None,
        scale: 1.0 / (case.head as f64).sqrt(),
        dropout: Dropout::new(case.dropout, 5),
        distances,
    };
    let inputs = Inputs { query: q.array(&shape).unwrap(), key: k.pointer(), value: v.pointer(), key_stride: hidden };
    let flash = Flash::of(&batch, &inputs, &[]).unwrap();
    let needed = Needed { query: true, keys: true, table: false };

    [false, true].map(|is_flash| {
        let empty = || gpu.empty(Element::Bf16, tokens * hidden).unwrap();
        let (out, [dq, dk, dv]) = (empty(), [(); 3].map(|()| empty()));
        let logarithms = gpu.empty(Element::F32, heads * tokens).unwrap();
        let forward = || match is_flash {
            true => flash.forward(&batch, &gpu, &inputs, (&out, &logarithms)),
            false => batch.forward_by_tiles(&gpu, &inputs, (&out, &logarithms)),
        };
        let upstream = Upstream {
            output: out.array(&shape).unwrap(),
            gradient: gradient.array(&shape).unwrap(),
            logarithms: &logarithms,
        };
        let to = To { query: dq.pointer(), key: dk.pointer(), value: dv.pointer() };
        let backward = || match is_flash {
            true => flash.backward(&batch, &gpu, &inputs, &upstream, &needed, &to).map(drop),
            false => batch.backward_by_tiles(&gpu, &inputs, &upstream, &needed, &to).map(drop),
        };
        forward().unwrap();
        backward().unwrap();
        let timed = |work: &dyn Fn() -> Result<()>| size.map(|size| time(&gpu, size, work));
        Measured {
            values: [&out, &dq, &dk, &dv].map(values).into(),
            forward: timed(&forward),
            backward: timed(&backward),
        }
    })
}

/// Rounding to bf16, as in `tests/cuda_layers.rs`.
const TOLERANCE: f32 = 2e-2;

fn check(case: &Case, size: Option<usize>) -> [Measured; 2] {
    let both = measure(case, size);
    let [old, new] = &both;
    for (what, (old, new)) in
        ["output", "of queries", "of keys", "of values"].iter().zip(old.values.iter().zip(&new.values))
    {
        let most = old.iter().fold(0f32, |most, x| most.max(x.abs()));
        let off =
            old.iter().zip(new).fold(0f32, |off, (a, b)| if b.is_nan() { f32::NAN } else { off.max((a - b).abs()) });
        assert!(off <= TOLERANCE * most, "{}: {what} is off by {off} of {most}", case.name);
    }
    both
}

/// Lengths as of the sentence pairs of MRPC.
fn pairs() -> Vec<usize> {
    (0..32).map(|i| 40 + 7 * i % 21).collect()
}

#[test]
fn both_kinds_of_kernels_give_the_same() {
    for (name, lengths, head, dropout, bias) in [
        ("pairs", pairs(), 64, 0.1, None),
        ("a block's keys", vec![128, 100], 64, 0.1, Some(32)),
        ("more keys", vec![150, 20], 64, 0.0, None),
    ] {
        check(&Case { name, lengths, heads: 2, head, dropout, bias }, None);
    }
}

#[test]
fn times_are_positive() {
    let case = Case { name: "short", lengths: vec![3, 1], heads: 1, head: 32, dropout: 0.0, bias: None };
    for measured in check(&case, Some(8)) {
        assert!(measured.forward.unwrap() > 0.0 && measured.backward.unwrap() > 0.0);
    }
}

#[test]
#[ignore = "needs a GPU, to time: cargo test --features cuda --lib flash -- --ignored --nocapture"]
fn times_of_both_kinds_of_kernels() {
    println!("| microseconds | forward, old | new | backward, old | new |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for (name, lengths, heads, head, dropout, bias) in [
        ("64 x 128, 16 heads of 64", vec![128; 64], 16, 64, 0.0, None),
        ("the same with dropout", vec![128; 64], 16, 64, 0.1, None),
        ("the same with dropout and a bias", vec![128; 64], 16, 64, 0.1, Some(32)),
        ("32 pairs of MRPC, 12 heads of 64, dropout", pairs(), 12, 64, 0.1, None),
        ("the same with a bias", pairs(), 12, 64, 0.1, Some(32)),
        ("32 pairs of MRPC, 12 heads of 32, dropout", pairs(), 12, 32, 0.1, None),
        ("16 x 512, 16 heads of 64, dropout", vec![512; 16], 16, 64, 0.1, None),
        ("64 x 128, 8 heads of 128, dropout", vec![128; 64], 8, 128, 0.1, None),
    ] {
        let [old, new] = check(&Case { name, lengths, heads, head, dropout, bias }, Some(4096));
        let [a, b, c, d] =
            [old.forward, new.forward, old.backward, new.backward].map(|time| time.map_or(f32::NAN, |time| time));
        println!("| {name} | {a:.1} | {b:.1} | {c:.1} | {d:.1} |");
    }
}
