//! The real program, ended by signals, without anybody who reads its lines, and beside another that wants the same run; on a tiny checkpoint.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "../../trainer/tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::model;
use tempfile::TempDir;
use trainer::{Record, Stop};

/// A run of the synthetic task that trains for so many epochs.
fn run(model: &TempDir, runs: &Path, epochs: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft-glue"));
    let model = model.path().to_str().unwrap();
    command.args(["run", "--task", "synthetic", "--method", "bitfit", "--device", "cpu", "--max-length", "40"]);
    command.args(["--train-limit", "64", "--batch-size", "8", "--epochs", epochs, "--model", model]);
    command.args(["--eval-steps", "100000", "--runs", runs.to_str().unwrap()]).args(more);
    command
}

/// Waits until something is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The folder of the only run.
fn folder(runs: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(runs).ok()?.flatten().map(|entry| entry.path());
    entries.into_iter().find(|path| path.join("inputs.json").exists())
}

fn record(runs: &Path) -> Record {
    serde_json::from_slice(&std::fs::read(folder(runs).unwrap().join("record.json")).unwrap()).unwrap()
}

fn send(child: &Child, signal: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap();
    assert!(sent.success());
}

/// Begins a run that would take an hour, and has it train for a while.
fn under_way(command: &mut Command, runs: &Path) -> Child {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the run begins", || folder(runs).is_some());
    std::thread::sleep(Duration::from_millis(700));
    child
}

#[test]
fn each_signal_ends_a_training_within_a_second_with_checkpoint_record_status_and_a_line_that_says_how_to_go_on() {
    let (model, runs) = (model(), tempfile::tempdir().unwrap());
    let mut steps = 0;
    for (signal, status) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let child = under_way(&mut run(&model, runs.path(), "100000", &["--json"]), runs.path());
        let began = Instant::now();
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        let (said, took) = (String::from_utf8_lossy(&output.stderr), began.elapsed());
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(took < Duration::from_secs(5), "{signal} took {took:?}");
        assert!(
            said.contains(&format!("SIG{signal}")) && said.contains("interrupted: run it again to go on"),
            "{said}"
        );
        let record = record(runs.path());
        assert_eq!(record.stop, Stop::Interrupted);
        // Of many steps a record holds means, each under its last step.
        let step = record.losses.last().unwrap().step;
        assert!(step > steps, "{signal}: it goes on from step {steps}, to {step}");
        steps = step;
        assert!(folder(runs.path()).unwrap().join("checkpoint.safetensors").exists());
    }
}

#[test]
fn a_signal_that_was_ignored_from_the_start_stays_ignored_as_by_nohup() {
    let (model, runs) = (model(), tempfile::tempdir().unwrap());
    let program = run(&model, runs.path(), "100000", &[]);
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(program.get_program()).args(program.get_args());
    let mut child = under_way(&mut nohup, runs.path());
    send(&child, "HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it trains on");
    send(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_reader_that_leaves_ends_no_training() {
    let (model, runs) = (model(), tempfile::tempdir().unwrap());
    let mut command = run(&model, runs.path(), "40", &[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("data: "), "{line}");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{said}");
    assert_eq!(record(runs.path()).stop, Stop::Finished);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_takes_no_line_ends_no_training_and_is_told_at_the_end() {
    let (model, runs) = (model(), tempfile::tempdir().unwrap());
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let output = run(&model, runs.path(), "2", &[]).stdout(full()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("did not take everything"), "{said}");
    assert_eq!(record(runs.path()).stop, Stop::Finished);
    // Neither stream takes anything.
    let status = run(&model, &runs.path().join("other"), "2", &[]).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(record(&runs.path().join("other")).stop, Stop::Finished);
}

#[test]
fn a_run_that_another_process_makes_is_waited_for_or_refused_by_name() {
    let (model, runs) = (model(), tempfile::tempdir().unwrap());
    let mut first = under_way(&mut run(&model, runs.path(), "100000", &[]), runs.path());
    let refused = run(&model, runs.path(), "100000", &["--no-wait"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains(&format!("process {} is making it", first.id())) && said.contains("--no-wait"), "{said}");

    let mut second =
        run(&model, runs.path(), "100000", &["--json"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines().map(Result::unwrap);
    let waits = format!("process {} is making it; its record is waited for", first.id());
    assert!(lines.any(|line| line.contains(&waits)));
    // The first is killed: the system ends its lock, and the second makes the run.
    first.kill().unwrap();
    first.wait().unwrap();
    let lock = folder(runs.path()).unwrap().join("lock");
    let holder = format!("process {}", second.id());
    wait_until("the second makes the run", || std::fs::read_to_string(&lock).is_ok_and(|text| text == holder));
    std::thread::sleep(Duration::from_millis(500));
    send(&second, "TERM");
    assert_eq!(second.wait().unwrap().code(), Some(143));
    assert_eq!(record(runs.path()).stop, Stop::Interrupted);
}

#[test]
fn checkpoints_are_made_after_so_many_steps_as_asked_for() {
    let (model, runs) = (model(), tempfile::tempdir().unwrap());
    let mut child = under_way(&mut run(&model, runs.path(), "100000", &["--checkpoint-steps", "5"]), runs.path());
    let checkpoint = folder(runs.path()).unwrap().join("checkpoint.safetensors");
    wait_until("a checkpoint is made", || checkpoint.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let output = run(&model, runs.path(), "100000", &["--time-budget", "0"]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let after: usize =
        printed.split("going on after step ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(after > 0 && after.is_multiple_of(5), "{printed}");
}
