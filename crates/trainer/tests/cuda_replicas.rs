//! One run on several GPUs against the same on one, and on the CPU. Without GPUs: `eval "$(scripts/cuda_emulator.sh)"` first, and each
//! test emulates as many as it needs, in a process of its own. With fewer GPUs than a test needs it says so and is left out.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // A test fails by panicking.

mod support;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use glue::{Glue, Task};
use peft::{AdapterStyle, Bottleneck, Method};
use support::model;
use tempfile::TempDir;
use trainer::{DeviceName, Error, InitialValues, Passes, Record, Run, Stop, Trainer, replay};

/// What a test that has not ended by then waits for never comes.
const TIMEOUT: Duration = Duration::from_secs(200);

/// Whether this process has these variables. If not, the test is run again in one that has, whose end is awaited.
fn has(test: &str, variables: &[(&str, OsString)]) -> bool {
    const INSIDE: &str = "TEST_OF_REPLICAS";
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1").envs(variables.iter().cloned());
    let (mut child, began) = (command.spawn().unwrap(), Instant::now());
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > TIMEOUT => {
                child.kill().unwrap();
                panic!("{test} hangs, with {variables:?}");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(status.success(), "{test}, with {variables:?}");
    false
}

fn has_emulated(test: &str, variables: &[(&str, &str)]) -> bool {
    has(test, &variables.iter().map(|&(name, value)| (name, value.into())).collect::<Vec<_>>())
}

/// Whether there are so many GPUs.
fn has_cards(count: usize) -> bool {
    let found = ops::cuda_devices();
    if found < count {
        eprintln!("left out: this takes {count} GPUs, and there are {found}");
    }
    found >= count
}

fn is_emulated() -> bool {
    ops::card(&ops::cuda_device(0).unwrap()).unwrap() == "Emulated GPU"
}

fn tests(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn cards(name: &str) -> DeviceName {
    name.parse().unwrap()
}

fn trainer(runs: &Path, device: DeviceName) -> Trainer {
    Trainer::new(Glue::synthetic("a test"), runs).keep_weights(true).device(device)
}

/// The losses of a method's steps on the oracle's batches.
fn losses(method: &Method, dropout: f64, device: DeviceName) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = tests("../peft/tests/oracle/tiny-bert");
    let run = Run::new(Task::Mrpc, checkpoint.to_str().unwrap(), method.clone()).with(|s| {
        s.learning_rate = 1e-3;
        s.dropout = Some(dropout);
    });
    let batches = tests("tests/oracle/batches.npz");
    let mut trainer = trainer(folder.path(), device);
    replay(&mut trainer, &run, &batches, InitialValues::New, Passes::Training, None).unwrap().losses
}

/// That losses are those expected, up to rounding: sums in another order, and more with every step, since AdamW divides by small roots.
fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-3, "{what}, step {step}: {found} for {expected}");
    }
}

#[test]
fn two_and_three_cards_have_the_losses_of_the_cpu_at_every_step_and_the_same_bits_twice() {
    let test = "two_and_three_cards_have_the_losses_of_the_cpu_at_every_step_and_the_same_bits_twice";
    if !has_emulated(test, &[("CUDA_EMULATOR_DEVICES", "3")]) || !has_cards(2) {
        return;
    }
    let bottleneck = Method::Bottleneck(Bottleneck::new(AdapterStyle::Houlsby));
    let methods = [Method::Full, Method::Head, Method::bitfit(), Method::lora(4), bottleneck];
    for method in &methods {
        let expected = losses(method, 0.0, DeviceName::Cpu);
        let all = ["cuda:0,1", "cuda:1,0,2"].into_iter().take(ops::cuda_devices() - 1);
        for name in all {
            let found = losses(method, 0.0, cards(name));
            assert_close(&found, &expected, &format!("{method} on {name}"));
            assert_eq!(losses(method, 0.0, cards(name)), found, "{method} on {name}: not the same bits twice");
        }
    }
    let dropped = losses(&Method::lora(4), 0.1, cards("cuda:0,1"));
    assert_eq!(losses(&Method::lora(4), 0.1, cards("cuda:0,1")), dropped, "not the same bits twice with dropout");
    assert!(dropped != losses(&Method::lora(4), 0.0, cards("cuda:0,1")), "dropout drops nothing");
}

/// Eight steps, the fourth and the last of one sequence.
fn run(model: &TempDir, dropout: f64) -> Run {
    Run::new(Task::Synthetic, model.path().to_str().unwrap(), Method::lora(4)).with(|s| {
        s.max_length = 40;
        s.train_limit = Some(25);
        s.batch_size = 8;
        s.epochs = 2;
        s.dropout = Some(dropout);
    })
}

fn step_losses(record: &Record) -> Vec<f64> {
    record.losses.iter().map(|logged| logged.loss).collect()
}

#[test]
fn a_whole_run_with_batches_of_fewer_sequences_than_cards_is_that_of_one_card() {
    let test = "a_whole_run_with_batches_of_fewer_sequences_than_cards_is_that_of_one_card";
    if !has_emulated(test, &[("CUDA_EMULATOR_DEVICES", "3")]) || !has_cards(2) {
        return;
    }
    let (model, one, several) = (model(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = run(&model, 0.0);
    let expected = trainer(one.path(), cards("cuda:0")).run(&run).unwrap();
    let all = if has_cards(3) { "cuda:0,1,2" } else { "cuda:0,1" };
    let found = trainer(several.path(), cards(all)).run(&run).unwrap();
    assert_eq!((found.stop, found.losses.len(), found.tokens), (Stop::Finished, 8, expected.tokens));
    assert_close(&step_losses(&found), &step_losses(&expected), all);
    let evaluations = |record: &Record| record.evaluations.iter().map(|found| found.loss).collect::<Vec<_>>();
    assert_close(&evaluations(&found), &evaluations(&expected), "validation");
    assert_eq!((expected.environment.cards, found.environment.cards), (None, Some(all.matches(',').count() + 1)));
}

#[test]
fn a_run_on_two_cards_interrupted_after_every_step_equals_the_uninterrupted_one_bit_for_bit() {
    let test = "a_run_on_two_cards_interrupted_after_every_step_equals_the_uninterrupted_one_bit_for_bit";
    if !has_emulated(test, &[("CUDA_EMULATOR_DEVICES", "2")]) || !has_cards(2) {
        return;
    }
    let (model, whole, parts) = (model(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = run(&model, 0.1);
    let weights = |trainer: &Trainer| std::fs::read(trainer.folder(&run).join("weights.safetensors")).unwrap();
    let mut uninterrupted = trainer(whole.path(), cards("cuda:0,1"));
    let expected = uninterrupted.run(&run).unwrap();
    let mut times = 0;
    let (record, interrupted) = loop {
        let mut interrupted = trainer(parts.path(), cards("cuda:0,1")).time_budget(Some(Duration::ZERO));
        let record = interrupted.run(&run).unwrap();
        times += 1;
        if record.stop == Stop::Finished {
            break (record, interrupted);
        }
    };
    assert_eq!(times, 8);
    assert_eq!((&record.losses, &record.evaluations), (&expected.losses, &expected.evaluations));
    assert!(weights(&interrupted) == weights(&uninterrupted), "the trained weights differ");
}

#[test]
fn a_card_that_has_too_little_memory_for_its_share_takes_it_in_parts_with_the_same_losses() {
    let test = "a_card_that_has_too_little_memory_for_its_share_takes_it_in_parts_with_the_same_losses";
    // 32 MiB are cuBLASLt's scratch.
    let memory = [("CUDA_EMULATOR_DEVICES", "2"), ("CUDA_EMULATOR_MEMORY", "1024,34")];
    if !has_emulated(test, &memory) || !has_cards(2) {
        return;
    }
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let run = run(&model, 0.0).with(|s| {
        s.train_limit = Some(192);
        s.batch_size = 96;
        s.epochs = 1;
    });
    let expected = trainer(folder.path(), DeviceName::Cpu).run(&run).unwrap();
    let runs = folder.path().join("cards");
    let mut interrupted = trainer(&runs, cards("cuda:0,1")).time_budget(Some(Duration::ZERO));
    interrupted.run(&run).unwrap();
    let checkpoint = std::fs::read(interrupted.folder(&run).join("checkpoint.safetensors")).unwrap();
    let in_parts = !String::from_utf8_lossy(&checkpoint).contains(r#"\"part_tokens\":null"#);
    assert_eq!(in_parts, is_emulated(), "whether it was taken in parts; a GPU has enough memory");
    let found = trainer(&runs, cards("cuda:0,1")).run(&run).unwrap();
    assert_close(&step_losses(&found), &step_losses(&expected), "in parts");
}

#[test]
fn a_card_without_memory_for_one_sequence_ends_the_run_with_what_it_lacks_and_the_run_goes_on_elsewhere() {
    if !is_emulated() {
        eprintln!("left out: a GPU is not there to be spoiled");
        return;
    }
    let test = "a_card_without_memory_for_one_sequence_ends_the_run_with_what_it_lacks_and_the_run_goes_on_elsewhere";
    let memory = [("CUDA_EMULATOR_DEVICES", "2"), ("CUDA_EMULATOR_MEMORY", "1024,33")];
    if !has_emulated(test, &memory) || !has_cards(2) {
        return;
    }
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    // Of the second card's 1 MiB, parameters of 280 KiB and their moments leave too little for their gradients.
    let run = Run { method: Method::lora(280), ..run(&model, 0.0) };
    let error = trainer(folder.path(), cards("cuda:0,1")).run(&run).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("cuda:1, Emulated GPU, has 33 MiB"), "{error}");
    let record = trainer(folder.path(), cards("cuda:0")).run(&run).unwrap();
    assert_eq!((record.stop, record.losses.len()), (Stop::Finished, 8));
}

#[test]
fn a_card_that_breaks_down_at_any_launch_ends_the_run_with_its_name_and_no_card_waits_for_ever() {
    if !is_emulated() {
        eprintln!("left out: a GPU is not there to be spoiled");
        return;
    }
    let test = "a_card_that_breaks_down_at_any_launch_ends_the_run_with_its_name_and_no_card_waits_for_ever";
    for card in [0, 1] {
        // More than a step's launches. An update, when other cards may wait, is three: one of them is among these.
        for launch in (1..100).step_by(3) {
            let broken = format!("{card}:{launch}");
            let variables = [("CUDA_EMULATOR_DEVICES", "2"), ("CUDA_EMULATOR_BROKEN", &broken)];
            if !has_emulated(test, &variables) {
                continue;
            }
            let (model, folder) = (model(), tempfile::tempdir().unwrap());
            let run = run(&model, 0.0);
            let error = trainer(folder.path(), cards("cuda:0,1")).run(&run).unwrap_err().to_string();
            let card = env::var("CUDA_EMULATOR_BROKEN").unwrap();
            let name = format!("cuda:{}", card.split(':').next().unwrap());
            let is_told = error.contains("CUDA_ERROR_ILLEGAL_ADDRESS") || error.contains("unhandled cuda error");
            assert!(is_told && error.contains(&name), "{card}: {error}");
            return;
        }
    }
}

#[test]
fn several_cards_without_nccl_are_an_error_that_says_what_to_install_and_one_card_needs_none() {
    if !is_emulated() {
        eprintln!("left out: a GPU is not there to be spoiled");
        return;
    }
    let test = "several_cards_without_nccl_are_an_error_that_says_what_to_install_and_one_card_needs_none";
    // The libraries of before, but for that one.
    let without = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default()).collect();
    for file in folders.iter().filter_map(|folder| folder.read_dir().ok()).flatten().map(|entry| entry.unwrap()) {
        let name = file.file_name();
        if !name.to_string_lossy().starts_with("libnccl") {
            let _ = std::os::unix::fs::symlink(file.path(), without.path().join(name)); // The first of a name counts.
        }
    }
    let variables =
        [("CUDA_EMULATOR_DEVICES", "2".into()), ("LD_LIBRARY_PATH", without.path().as_os_str().to_os_string())];
    if !has(test, &variables) {
        return;
    }
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let run = run(&model, 0.0);
    let error = trainer(folder.path(), cards("cuda:0,1")).run(&run).unwrap_err().to_string();
    assert!(error.contains("libnccl.so.2") && error.contains("pip install nvidia-nccl-cu13"), "{error}");
    assert_eq!(trainer(folder.path(), cards("cuda:0")).run(&run).unwrap().stop, Stop::Finished);
}

#[test]
fn a_card_that_is_not_there_and_several_runs_at_once_on_several_cards_are_refused() {
    let test = "a_card_that_is_not_there_and_several_runs_at_once_on_several_cards_are_refused";
    if !has_emulated(test, &[("CUDA_EMULATOR_DEVICES", "2")]) || !has_cards(2) {
        return;
    }
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let runs = [1, 2].map(|seed| run(&model, 0.0).seed(seed));
    let error = trainer(folder.path(), cards("cuda:0,99")).run(&runs[0]).unwrap_err().to_string();
    assert!(error.contains("cuda:99") && error.contains("GPUs"), "{error}");
    let mut trainer = trainer(folder.path(), cards("cuda:0,1")).at_once(2);
    let error = trainer.run_all(&runs).unwrap_err().to_string();
    assert!(error.contains("at_once") && error.contains("cuda:0,1"), "{error}");
}
