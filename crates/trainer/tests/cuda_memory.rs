//! A GPU whose memory does not hold a batch. The emulator is told how much it has; a card has enough, and takes the batch whole.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "support/batches.rs"]
mod batches;

use batches::write_batches;
use glue::{Glue, Task};
use peft::Method;
use trainer::{DeviceName, InitialValues, Passes, Run, Trainer, replay};

const SEQUENCES: usize = 96;
const LENGTH: usize = 36;

#[test]
fn a_batch_that_memory_does_not_hold_is_taken_in_parts_with_the_same_losses() {
    // SAFETY: the only test of this program has started no thread that reads the environment.
    unsafe {
        std::env::set_var("CUDA_EMULATOR_MEMORY", "36");
        std::env::remove_var("PEFT_NO_CUDA_MEMORY_CACHING"); // What is kept is given back before memory does not suffice.
    }
    let folder = tempfile::tempdir().unwrap();
    let batches = folder.path().join("batches.npz");
    write_batches(&batches, [2, SEQUENCES, LENGTH], |_, _| LENGTH);
    let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../peft/tests/oracle/tiny-bert");
    let run = Run::new(Task::Mrpc, checkpoint, Method::Full).with(|s| s.dropout = Some(0.0));
    let losses = |device| {
        let glue = Glue::synthetic("a test");
        let mut trainer = Trainer::new(glue, folder.path()).device(device);
        replay(&mut trainer, &run, &batches, InitialValues::New, Passes::Training, None).unwrap().losses
    };
    let (expected, found) = (losses(DeviceName::Cpu), losses(DeviceName::Cuda(0)));
    assert_eq!(found.len(), 2);
    // The sum over parts is taken in another order.
    assert!(expected.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} for {expected:?}");
    // 96 sequences' states of 2 layers take more than the 4 MiB that cuBLASLt's scratch leaves of 36.
    if ops::card(&ops::cuda_device(0).unwrap()).unwrap() == "Emulated GPU" {
        assert!(ops::card_memory(&ops::cuda_device(0).unwrap()).unwrap().1 <= 36 << 20);
    }
}
