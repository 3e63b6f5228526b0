//! How much a training step asks of the driver: what the host does for a GPU is its share of the time. The emulator counts; without a
//! GPU: `eval "$(scripts/cuda_emulator.sh)"` first. `make bench-host` shows the same of encoders of the common sizes.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A test fails by panicking.

#[path = "support/batches.rs"]
mod batches;

use std::path::Path;

use batches::write_batches;
use glue::{Glue, Task};
use libloading::{Library, Symbol};
use peft::{Method, Precision};
use trainer::{DeviceName, InitialValues, Passes, Run, Trainer, replay};

/// What the emulated card has been asked for.
struct Counts(Library);

impl Counts {
    fn get(&self, function: &str) -> u64 {
        // SAFETY: both are declared so in the emulator's device.hpp.
        unsafe {
            let count: Symbol<unsafe extern "C" fn() -> u64> = self.0.get(function).unwrap();
            count()
        }
    }

    /// Kernels, products, copies and fills.
    fn launches(&self) -> u64 {
        self.get("emulator_launches")
    }

    /// Pieces of memory.
    fn allocations(&self) -> u64 {
        self.get("emulator_allocations")
    }
}

/// Trains on so many steps, whose batches differ in their tokens.
fn train(folder: &Path, method: &Method, precision: Precision, steps: usize) {
    let batches = folder.join(format!("{steps}.npz"));
    write_batches(&batches, [steps, 6, 30], |step, sequence| 12 + (sequence * 11 + step * 5) % 18);
    let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../peft/tests/oracle/tiny-bert");
    let run = Run::new(Task::Mrpc, checkpoint, method.clone()).with(|s| {
        s.dropout = Some(0.1);
        s.precision = precision;
    });
    let mut trainer = Trainer::new(Glue::synthetic("a test"), folder).device(DeviceName::Cuda(0));
    replay(&mut trainer, &run, &batches, InitialValues::New, Passes::Training, None).unwrap();
}

#[test]
fn a_step_launches_no_more_than_it_did_and_later_steps_ask_the_driver_for_next_to_no_memory() {
    // SAFETY: the only test of this program has started no thread that reads the environment.
    unsafe { std::env::remove_var("PEFT_NO_CUDA_MEMORY_CACHING") };
    if ops::card(&ops::cuda_device(0).unwrap()).unwrap() != "Emulated GPU" {
        eprintln!("left out: only the emulated card counts what it is asked for");
        return;
    }
    // SAFETY: the emulator is loaded by now, and does nothing as it is loaded.
    let counts = Counts(unsafe { Library::new("libemulator.so") }.unwrap());
    let folder = tempfile::tempdir().unwrap();
    // Of BERT with two layers, at most so many for a step. Who makes them fewer lowers them here.
    let ceilings = [
        ("lora", Method::lora(8), Precision::Bf16, 92),
        ("lora", Method::lora(8), Precision::F32, 92),
        ("bitfit", Method::bitfit(), Precision::Bf16, 108),
        ("bitfit", Method::bitfit(), Precision::F32, 92),
        ("full", Method::Full, Precision::Bf16, 151),
        ("full", Method::Full, Precision::F32, 131),
    ];
    let mut above = Vec::new();
    for (name, method, precision, ceiling) in ceilings {
        let launches = |steps| {
            let before = counts.launches();
            train(folder.path(), &method, precision, steps);
            counts.launches() - before
        };
        let (few, many) = (launches(2), launches(6));
        let found = (many - few).div_ceil(4);
        if found > ceiling {
            above.push(format!("{name}, {precision:?}: {found} launches a step, {ceiling} expected at most"));
        }
        // The same again: most of what it needs was freed before. Steps had some hundred pieces each.
        let before = counts.allocations();
        train(folder.path(), &method, precision, 6);
        let asked = counts.allocations() - before;
        if asked > 6 {
            above.push(format!(
                "{name}, {precision:?}: {asked} pieces of memory asked for in six steps, one each expected"
            ));
        }
    }
    assert!(above.is_empty(), "{above:#?}");
}
