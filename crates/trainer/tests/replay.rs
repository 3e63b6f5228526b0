//! Steps on given batches from a given start, against those that torch's AdamW takes on transformers' BERT and PEFT's LoRA:
//! `oracle/make_oracle.py` made the files, and its constants stand here again.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use glue::{Glue, Task};
use peft::{AdaLora, AdapterConfig, AdapterStyle, Bottleneck, Lora, Method};
use serde::Deserialize;
use trainer::{InitialValues, Passes, Replayed, Result, Run, Trainer, replay};

#[derive(Deserialize)]
struct Oracle {
    losses: HashMap<String, Vec<f64>>,
    rank_pattern: BTreeMap<String, Vec<bool>>,
}

fn oracle(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(name)
}

/// As in `make_oracle.py`, which gives B other values than zero.
fn lora() -> Method {
    Method::Lora(Lora { lora_alpha: 8.0, ..Lora::rank(4) })
}

fn bottleneck(style: AdapterStyle) -> Method {
    Method::Bottleneck(Bottleneck::new(style))
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
    passed(Passes::Training, method, batches, start)
}

fn passed(passes: Passes, method: Method, batches: &str, start: &str) -> Result<Replayed> {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Glue::synthetic("a test"), folder.path());
    replay(&mut trainer, &run(method), &oracle(batches), InitialValues::File(&oracle(start)), passes, None)
}

#[test]
fn every_method_has_the_losses_of_torch_transformers_and_peft_at_every_step() {
    let expected: Oracle = serde_json::from_slice(&std::fs::read(oracle("oracle.json")).unwrap()).unwrap();
    for (name, method) in [("full", Method::Full), ("bitfit", Method::bitfit()), ("lora", lora())] {
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

/// The ratio of `make_oracle.py`.
#[test]
fn lora_plus_has_the_losses_of_pefts_groups_at_every_step() {
    let expected: Oracle = serde_json::from_slice(&std::fs::read(oracle("oracle.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Glue::synthetic("a test"), folder.path());
    let run = run(lora()).with(|s| s.loraplus_lr_ratio = Some(4.0));
    let (batches, start) = (oracle("batches.npz"), oracle("lora.safetensors"));
    let replayed = replay(&mut trainer, &run, &batches, InitialValues::File(&start), Passes::Training, None).unwrap();
    assert_eq!(replayed.losses.len(), expected.losses["loraplus"].len());
    for (step, (ours, theirs)) in replayed.losses.iter().zip(&expected.losses["loraplus"]).enumerate() {
        // As above.
        assert!((ours - theirs).abs() <= 1e-4 * theirs.abs(), "step {step}: {ours}, not {theirs}");
    }
    assert_ne!(expected.losses["loraplus"][2..], expected.losses["lora"][2..]);
}

/// The schedule of `make_oracle.py`, over the steps of the batches: its losses, the term that keeps vectors orthonormal among them,
/// under clipping, and what is left of the branches at the end.
#[test]
fn adalora_has_pefts_losses_at_every_step_and_keeps_what_peft_keeps() {
    let expected: Oracle = serde_json::from_slice(&std::fs::read(oracle("oracle.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("adapter");
    let mut trainer = Trainer::new(Glue::synthetic("a test"), folder.path());
    let adalora = AdaLora {
        init_r: 4,
        target_r: 2,
        tinit: 3,
        tfinal: 5,
        delta_t: 2,
        lora_alpha: 8.0,
        orth_reg_weight: 0.1,
        ..AdaLora::default()
    };
    let (batches, start) = (oracle("batches.npz"), oracle("adalora.safetensors"));
    let mut replay = |method, start, passes, save: Option<&std::path::Path>| {
        replay(&mut trainer, &run(method), &batches, start, passes, save).unwrap()
    };
    let replayed = replay(Method::AdaLora(adalora), InitialValues::File(&start), Passes::Training, Some(&adapter));
    assert_eq!(replayed.losses.len(), expected.losses["adalora"].len());
    for (step, (ours, theirs)) in replayed.losses.iter().zip(&expected.losses["adalora"]).enumerate() {
        // As above.
        assert!((ours - theirs).abs() <= 1e-4 * theirs.abs(), "step {step}: {ours}, not {theirs}");
    }
    let (config, _) = AdapterConfig::read(&adapter).unwrap();
    let Method::AdaLora(saved) = &config.method else { panic!("{:?}", config.method) };
    assert_eq!((saved.total_step, &saved.rank_pattern), (Some(20), &expected.rank_pattern));
    // What was masked is gone, and nothing more is masked where training goes on.
    let again = replay(config.method.clone(), InitialValues::Adapter(&adapter), Passes::Training, None);
    assert_eq!(again.losses.len(), 20);
}

#[test]
fn what_a_replay_trained_goes_on_from_the_adapter_that_it_saved() {
    for method in [lora(), bottleneck(AdapterStyle::Houlsby), bottleneck(AdapterStyle::Parallel)] {
        let folder = tempfile::tempdir().unwrap();
        let adapter = folder.path().join("adapter");
        let mut trainer = Trainer::new(Glue::synthetic("a test"), folder.path());
        let mut replay = |start, passes, save: Option<&std::path::Path>| {
            replay(&mut trainer, &run(method.clone()), &oracle("batches.npz"), start, passes, save).unwrap()
        };
        let first = replay(InitialValues::New, Passes::Training, Some(&adapter));
        let after = replay(InitialValues::Adapter(&adapter), Passes::Forward { merged: false }, None);
        let again = replay(InitialValues::Adapter(&adapter), Passes::Training, None);
        assert_ne!(after.losses[0], first.losses[0], "{method}");
        // No dropout: the same sums in the same order.
        assert_eq!(again.losses[0], after.losses[0], "{method}");
        assert_eq!((after.logits.len(), after.logits[0].len(), again.logits.len()), (20, 6, 0));
    }
}

#[test]
fn an_adapter_that_cannot_be_merged_is_an_error_before_the_first_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Glue::synthetic("a test"), folder.path());
    let (run, merged) = (run(bottleneck(AdapterStyle::Pfeiffer)), Passes::Forward { merged: true });
    let error =
        replay(&mut trainer, &run, &oracle("batches.npz"), InitialValues::New, merged, None).unwrap_err().to_string();
    assert!(error.contains("Pfeiffer adapter /16 cannot be merged"), "{error}");
}

#[test]
fn forward_passes_have_the_loss_of_the_start_at_every_batch_merged_or_not() {
    let losses = |passes| passed(passes, lora(), "batches.npz", "lora.safetensors").unwrap().losses;
    let trained = losses(Passes::Training);
    let forward = losses(Passes::Forward { merged: false });
    // The first loss is taken before any update, and there is no dropout: the same sums in the same order.
    assert_eq!(forward[0], trained[0]);
    assert_eq!(forward.len(), trained.len());
    assert_ne!(forward[1..], trained[1..]);
    let merged = losses(Passes::Forward { merged: true });
    assert_eq!(merged.len(), forward.len());
    for (merged, forward) in merged.iter().zip(&forward) {
        // Other sums in f32: logits of the order of 1 differ by at most 40 epsilon, 5e-6, and a cross-entropy by at most twice
        // as much as its logits.
        assert!((merged - forward).abs() <= 1e-5, "{merged}, not {forward}");
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

/// What a file of two sequences of three tokens' room says, one array changed.
fn refusal(name: &str, values: &[f64], shape: &[usize]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.npz");
    let mut arrays: BTreeMap<&str, (&[f64], &[usize])> = BTreeMap::from([
        ("steps", (&[1.0][..], &[][..])),
        ("s0.input_ids", (&[1.0, 8.0, 2.0, 1.0, 2.0, 0.0], &[2, 3])),
        ("s0.attention_mask", (&[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], &[2, 3])),
        ("s0.labels", (&[0.0, 1.0], &[2])),
    ]);
    arrays.insert(name, (values, shape));
    let tensor = |(values, shape): (&[f64], &[usize])| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    let arrays: Vec<(&str, Tensor)> = arrays.into_iter().map(|(name, array)| (name, tensor(array))).collect();
    Tensor::write_npz(&arrays, &path).unwrap();
    let mut trainer = Trainer::new(Glue::synthetic("a test"), folder.path());
    let passes = Passes::Forward { merged: false };
    let replayed = replay(&mut trainer, &run(Method::Head), &path, InitialValues::New, passes, None);
    replayed.err().map(|error| error.to_string())
}

#[test]
fn an_array_that_no_batch_can_have_is_refused_with_name_place_and_value() {
    let ids = [1.0, 8.0, 2.0, 1.0, 2.0, 0.0];
    let with = |place: usize, value: f64| {
        let mut ids = ids;
        ids[place] = value;
        ids
    };
    assert_eq!(refusal("s0.input_ids", &ids, &[2, 3]), None);
    assert_eq!(refusal("s0.token_type_ids", &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0], &[2, 3]), None);
    for (name, values, shape, part) in [
        ("s0.attention_mask", &[1.0, 1.0, 1.0, 0.0, 1.0, 1.0][..], &[2, 3][..], "s0.attention_mask[1, 1] is 1"),
        ("s0.attention_mask", &[1.0, 0.0, 1.0, 1.0, 1.0, 0.0], &[2, 3], "s0.attention_mask[0, 2] is 1"),
        ("s0.attention_mask", &[1.0, 0.5, 0.0, 1.0, 1.0, 0.0], &[2, 3], "s0.attention_mask[0, 1] is 0.5"),
        ("s0.attention_mask", &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], &[2, 3], "s0.attention_mask[1, 0] is 0"),
        ("s0.attention_mask", &[1.0; 8], &[2, 4], "s0.attention_mask has the shape [2, 4], expected [2, 3]"),
        ("s0.token_type_ids", &[0.0; 4], &[2, 2], "s0.token_type_ids has the shape [2, 2]"),
        ("s0.token_type_ids", &with(0, 4_294_967_296.0), &[2, 3], "s0.token_type_ids[0, 0] is 4294967296"),
        ("s0.input_ids", &with(1, 5.9), &[2, 3], "s0.input_ids[0, 1] is 5.9"),
        ("s0.input_ids", &with(3, -1.0), &[2, 3], "s0.input_ids[1, 0] is -1"),
        ("s0.input_ids", &with(4, 4_294_967_301.0), &[2, 3], "s0.input_ids[1, 1] is 4294967301"),
        ("s0.input_ids", &[1.0; 3], &[3], "s0.input_ids has the shape [3]"),
        ("s0.input_ids", &[], &[2, 0], "s0.input_ids has the shape [2, 0]"),
        ("s0.labels", &[0.0, 2.0], &[2], "s0.labels[1] is 2, expected a whole number from 0 to 1"),
        ("s0.labels", &[0.7, 1.0], &[2], "s0.labels[0] is 0.7"),
        ("s0.labels", &[0.0, f64::NAN], &[2], "s0.labels[1] is NaN"),
        ("s0.labels", &[0.0], &[1], "s0.labels has the shape [1], expected [2]"),
        ("steps", &[1.9], &[], "steps is 1.9"),
        ("steps", &[4_294_967_296.0], &[], "steps is 4294967296"),
        ("steps", &[0.0], &[], "expected one number above 0"),
        ("steps", &[1.0, 1.0], &[2], "steps of the shape [2]"),
        ("steps", &[2.0], &[], "no s1.input_ids"),
    ] {
        let error = refusal(name, values, shape).unwrap_or_default();
        assert!(error.contains(part) && error.contains("odd.npz"), "{name} {values:?}: {error}");
    }
}
