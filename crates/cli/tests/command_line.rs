//! The real program, as someone at a terminal meets it.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use std::collections::BTreeSet;
use std::process::{Command, Output};

fn peft_glue(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft-glue")).args(arguments).envs(variables.iter().copied()).output().unwrap()
}

/// What a failing call prints to the standard error.
fn complaint(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = peft_glue(arguments, variables);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(output.stdout.is_empty() || !arguments.contains(&"--json"));
    String::from_utf8(output.stderr).unwrap()
}

const RUN: [&str; 5] = ["run", "--task", "synthetic", "--method", "bitfit"];

#[test]
fn an_unknown_task_is_answered_with_the_tasks_there_are() {
    let error = complaint(&["run", "--task", "imdb", "--method", "lora"], &[]);
    assert!(error.contains("unknown task \"imdb\"") && error.contains("mrpc"), "{error}");
}

#[test]
fn a_glue_dir_without_glue_is_an_error_and_not_another_copy() {
    let error = complaint(&["data"], &[("GLUE_DIR", "/no/such/folder")]);
    assert!(error.contains("/no/such/folder") && error.contains("correct GLUE_DIR"), "{error}");
}

#[test]
fn a_model_that_is_nowhere_is_an_error_that_says_what_to_do() {
    let error = complaint(&[&RUN[..], &["--model", "./nowhere"]].concat(), &[]);
    assert!(error.contains("./nowhere") && error.contains("config.json"), "{error}");
}

#[test]
fn impossible_numbers_are_refused_by_name() {
    let error = complaint(&[&RUN[..], &["--seed", "minus one"]].concat(), &[]);
    assert!(error.contains("--seed"), "{error}");
}

#[test]
fn merged_branches_are_for_forward_passes_only() {
    let replay = ["replay", "--task", "synthetic", "--method", "lora", "--batches", "batches.npz", "--merge"];
    let error = complaint(&replay, &[]);
    assert!(error.contains("--forward-only"), "{error}");
}

#[test]
fn the_data_command_says_which_copy_it_found() {
    let output = peft_glue(&["data"], &[("GLUE_OFFLINE", "1")]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("data: ") && text.contains("train"), "{text}");
}

#[test]
fn lora_without_targets_adapts_the_layers_that_the_models_architecture_calls_for() {
    for (case, targets) in [
        ("roberta", ["query", "value"].as_slice()),
        ("distilbert", &["q_lin", "v_lin"]),
        ("mpnet", &["q", "v"]),
        ("deberta-v3", &["query_proj", "value_proj"]),
        ("modernbert", &["Wqkv"]),
    ] {
        let model = format!("{}/../peft/tests/oracle/encoders/{case}", env!("CARGO_MANIFEST_DIR"));
        let output = peft_glue(&["parameters", "--task", "mnli", "--method", "lora", "--model", &model], &[]);
        let printed = String::from_utf8(output.stdout).unwrap();
        let branches = printed.lines().filter_map(|line| line.split_once(".lora_A")).map(|(path, _)| path);
        let adapted: BTreeSet<&str> = branches.filter_map(|path| path.rsplit('.').next()).collect();
        assert_eq!(adapted, targets.iter().copied().collect(), "{case}: {printed}");
    }
}
