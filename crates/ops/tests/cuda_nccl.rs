//! Sums over GPUs by NCCL, on as many as there are. Without one: `eval "$(scripts/cuda_emulator.sh)"` first.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // A test fails by panicking.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use ops::Communicators;

fn values(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| (1 + rank) as f32 * i as f32).collect()
}

/// Two tensors on a rank's GPU, of which the second is there twice.
fn tensors(device: &Device, rank: usize) -> Vec<Tensor> {
    let matrix = Tensor::from_vec(values(rank, 6000), (60, 100), device).unwrap();
    let scalar = Tensor::new(1.0 + rank as f32, device).unwrap();
    vec![matrix, scalar.clone(), scalar]
}

/// That they are those of rank 0, times the sum of the numbers of the ranks from 1, which floats hold exactly.
fn assert_sums(found: &[Tensor], ranks: usize) {
    let factor = (ranks * (ranks + 1) / 2) as f32;
    let expected: Vec<f32> = values(0, 6000).into_iter().map(|value| value * factor).collect();
    assert_eq!(found[0].flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
    for scalar in &found[1..] {
        assert_eq!(scalar.to_scalar::<f32>().unwrap(), factor);
    }
}

#[test]
fn every_gpu_gets_the_sum_over_all_and_who_waits_for_one_that_fails_is_let_go() {
    // SAFETY: the only test of this program has started no thread that reads the environment.
    unsafe { std::env::set_var("CUDA_EMULATOR_DEVICES", "3") };
    let devices: Vec<Device> = (0..ops::cuda_devices()).map(|card| ops::cuda_device(card).unwrap()).collect();
    let is_emulated = ops::card(&devices[0]).unwrap() == "Emulated GPU";
    for count in 1..=devices.len() {
        let communicators = match Communicators::new(&devices[..count]) {
            Ok(communicators) => communicators,
            Err(error) if !is_emulated && error.to_string().contains("does not load") => {
                eprintln!("left out: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        thread::scope(|scope| {
            for (rank, device) in devices[..count].iter().enumerate() {
                let communicators = &communicators;
                scope.spawn(move || {
                    let mut tensors = tensors(device, rank);
                    communicators.sum(rank, &mut tensors).unwrap();
                    assert_sums(&tensors, count);
                });
            }
        });
        let mut double = Tensor::zeros(3, DType::U32, &devices[0]).unwrap();
        assert!(communicators.sum(0, [&mut double]).is_err(), "whole numbers");
    }
    let [first, second, ..] = devices.as_slice() else { return };
    let communicators = Communicators::new(&[first.clone(), second.clone()]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            communicators.sum(0, &mut tensors(first, 0)).unwrap();
            first.synchronize().unwrap();
            done.store(true, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(300));
        assert!(!done.load(Ordering::SeqCst), "it has not waited for the other");
        assert!(communicators.abort() && !communicators.abort(), "aborted once");
    });
    let error = communicators.sum(1, &mut tensors(second, 1)).unwrap_err().to_string();
    assert!(error.contains("another GPU has failed"), "{error}");
}
