//! Several streams of one GPU, each with a thread of its own. The emulator does their work as late as a card may, and memory that is
//! freed holds NaN for whom has it next: who reads too early, or too late, finds other numbers.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[allow(dead_code)] // The other tests' comparison of two devices.
mod support;

use std::sync::Once;
use std::thread;

use candle_core::{DType, Device, Tensor};
use ops::{AttentionOptions, Dropout, Precision, RelativeRows, Scores, Segments, Weight};
use support::{Passes, difference, matrix, numbers, passes};

fn stream(number: usize) -> Device {
    static PREPARED: Once = Once::new();
    // SAFETY: what reads these variables is called behind this, by whichever test comes first.
    PREPARED.call_once(|| unsafe {
        std::env::set_var("CUDA_EMULATOR_LATE", "1");
        std::env::set_var("CUDA_EMULATOR_ALGORITHMS", "exact");
        std::env::set_var("PEFT_POISON_CUDA_MEMORY", "1");
        std::env::remove_var("PEFT_NO_CUDA_MEMORY_CACHING");
    });
    ops::cuda_stream(0, number).unwrap()
}

#[test]
fn a_tensor_moved_to_another_stream_is_what_its_own_has_computed() {
    let [from, to] = [6, 7].map(stream);
    for seed in 0..4 {
        let expected = matrix(50, 30, seed);
        let written = ops::scale(&expected.to_device(&from).unwrap(), 1.0).unwrap();
        // candle's own copy is in nobody's order but its own: what is read has not been written.
        let early = written.to_device(&to).unwrap().to_device(&Device::Cpu).unwrap();
        if ops::card(&from).unwrap() == "Emulated GPU" {
            assert_ne!(difference(&early, &expected), 0.0);
        }
        let moved = ops::to_device(&written, &to).unwrap();
        drop(written);
        // Whoever has that memory next writes to it.
        let _others: Vec<Tensor> =
            (0..4).map(|_| ops::scale(&matrix(50, 30, 9).to_device(&from).unwrap(), 2.0).unwrap()).collect();
        from.synchronize().unwrap();
        assert_eq!(difference(&moved.to_device(&Device::Cpu).unwrap(), &expected), 0.0);
    }
}

#[test]
fn threads_that_share_a_stream_find_in_their_tensors_what_they_have_written() {
    const THREADS: usize = 4;
    let device = stream(4);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let device = &device;
            scope.spawn(move || {
                let mut kept: Vec<(Tensor, usize)> = Vec::new();
                for (round, x) in numbers(60, thread as u64).into_iter().enumerate() {
                    let count = 1 + ((x + 1.0) * 3000.0) as usize;
                    let own = Tensor::full((1 + thread) as f32, count, &Device::Cpu).unwrap();
                    let own = ops::scale(&own.to_device(device).unwrap(), round as f64).unwrap();
                    kept.push((own, (1 + thread) * round));
                    // Those in the middle go first, so that blocks of all sizes are free.
                    if kept.len() > 8 {
                        let (tensor, expected) = kept.swap_remove(4);
                        let found = tensor.to_vec1::<f32>().unwrap();
                        assert!(found.iter().all(|x| *x == expected as f32), "thread {thread}, round {round}");
                    }
                }
            });
        }
    });
}

/// Attention as of MPNet: heads of 64, a bias by distance, dropout; sentence pairs of up to 128 tokens.
fn attended(device: &Device, thread: u64, round: u64, heads: usize) -> Passes {
    let drawn = numbers(4, 1000 * thread + round);
    let lengths: Vec<usize> = drawn.iter().map(|x| 3 + ((x + 1.0) * 63.0) as usize).collect();
    let segments = Segments::from_lengths(&lengths);
    let (tokens, hidden) = (segments.tokens(), heads * 64);
    let rows = RelativeRows::new(128, |distance| distance.unsigned_abs().min(15) + if distance > 0 { 16 } else { 0 });
    let inputs =
        [matrix(tokens, hidden, 1), matrix(tokens, hidden, 2), matrix(tokens, hidden, 3), matrix(32, heads, 4)];
    passes(device, DType::BF16, 3, &inputs, |x| {
        let scores = Scores::Bias { table: &x[3], rows: &rows };
        let options = AttentionOptions { heads, scores, dropout: Dropout::new(0.1, 7 + round) };
        ops::attention(&x[0], &x[1], &x[2], &segments, options)
    })
}

#[test]
fn attention_of_several_threads_gives_the_bits_that_each_gives_alone() {
    const THREADS: u64 = 3;
    const ROUNDS: u64 = 3;
    stream(0);
    let found: Vec<Vec<Passes>> = thread::scope(|scope| {
        let work = |thread: u64| {
            let device = stream(thread as usize);
            (0..ROUNDS).map(|round| attended(&device, thread, round, 2)).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let alone = stream(THREADS as usize);
    for (thread, rounds) in (0..).zip(&found) {
        for (round, found) in (0..).zip(rounds) {
            let expected = attended(&alone, thread, round, 2);
            assert_eq!(difference(&found.output, &expected.output), 0.0, "thread {thread}, round {round}");
            for (found, expected) in found.gradients.iter().zip(&expected.gradients) {
                assert_eq!(difference(found, expected), 0.0, "thread {thread}, round {round}");
            }
        }
    }
}

#[test]
fn a_product_of_any_number_of_tokens_is_computed_by_what_the_library_takes_for_that_number() {
    let device = stream(5);
    let weight = matrix(24, 16, 2);
    let on_gpu = Weight::new(weight.to_device(&device).unwrap(), Precision::Bf16).unwrap();
    for tokens in [1, 5, 63, 64, 65, 127] {
        let x = matrix(tokens, 16, tokens as u64).to_dtype(DType::BF16).unwrap();
        let y = ops::linear(&x.to_device(&device).unwrap(), &on_gpu, None).unwrap();
        let rounded = weight.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        let expected = x.to_dtype(DType::F32).unwrap().matmul(&rounded.t().unwrap()).unwrap();
        let found = y.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        assert!(difference(&found, &expected) < 4e-3, "{tokens} tokens");
    }
}
