//! Steps on given batches from a given start, against those that torch's AdamW takes on transformers' BERT and PEFT's LoRA:
//! `oracle/make_oracle.py` made the files, and its constants stand here again.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use std::collections::HashMap;
use std::path::PathBuf;

use glue::{Glue, Task};
use peft::{Lora, Method};
use serde::Deserialize;
use trainer::{Replayed, Result, Run, Trainer, Verbosity, replay};

#[derive(Deserialize)]
struct Oracle {
    losses: HashMap<String, Vec<f64>>,
}

fn oracle(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(name)
}

fn run(method: Method) -> Run {
    let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../peft/tests/oracle/tiny-bert");
    Run::new(Task::Mrpc, checkpoint, method).with(|s| {
        s.learning_rate = 2e-3;
        s.warmup_ratio = 0.1;
        s.dropout = Some(0.0);
    })
}

fn replayed(method: Method, batches: &str, start: &str) -> Result<Replayed> {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Glue::synthetic("a test"), folder.path()).verbosity(Verbosity::Silent);
    replay(&mut trainer, &run(method), &oracle(batches), Some(&oracle(start)))
}

#[test]
fn every_method_has_the_losses_of_torch_transformers_and_peft_at_every_step() {
    let expected: Oracle = serde_json::from_slice(&std::fs::read(oracle("oracle.json")).unwrap()).unwrap();
    for (name, method) in [
        ("full", Method::Full),
        ("bitfit", Method::bitfit()),
        ("lora", Method::Lora(Lora { lora_alpha: 8.0, ..Lora::rank(4) })),
    ] {
        let replayed = replayed(method, "batches.npz", &format!("{name}.safetensors")).unwrap();
        let expected = &expected.losses[name];
        assert_eq!(replayed.losses.len(), expected.len());
        for (step, (ours, theirs)) in replayed.losses.iter().zip(expected).enumerate() {
            // Both sum in f32, in different orders: 1e-7 a number, and more with every step that AdamW divides by a small
            // second moment.
            assert!((ours - theirs).abs() <= 1e-4 * theirs.abs(), "{name}, step {step}: {ours}, not {theirs}");
        }
        assert!(replayed.examples.iter().all(|&examples| examples == 6));
    }
}

#[test]
fn a_start_for_another_method_is_an_error_that_names_the_tensor() {
    let error = replayed(Method::bitfit(), "batches.npz", "lora.safetensors").unwrap_err().to_string();
    assert!(error.contains("lora.safetensors") && error.contains("lora_"), "{error}");
    let error = replayed(Method::lora(4), "batches.npz", "full.safetensors").unwrap_err().to_string();
    assert!(error.contains("full.safetensors") && error.contains("lora_"), "{error}");
    let error = replayed(Method::lora(8), "batches.npz", "lora.safetensors").unwrap_err().to_string();
    assert!(error.contains("lora_A") && error.contains("shape"), "{error}");
}

#[test]
fn a_file_that_holds_no_batches_is_an_error_that_says_what_was_expected() {
    let error = replayed(Method::Full, "oracle.json", "full.safetensors").unwrap_err().to_string();
    assert!(error.contains("oracle.json") && error.contains("npz"), "{error}");
}
