//! `make fuzz`: every target for a while, and a table of what came of it.

#![allow(clippy::print_stdout, clippy::print_stderr)] // Who runs it reads there what came of it.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fuzz::allocator::{self, Counting};
use fuzz::worker::{Inputs, Progress, findings, keep_panics, now, work};
use fuzz::{Input, Outcome, all};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An input that takes longer is one of the faults.
const LONGEST: u64 = 10_000; // ms

/// What came of a target.
#[derive(Default)]
struct Tally {
    progress: Progress,
    aborts: u64,
    memory: u64,
    slow: u64,
    seconds: f64,
}

impl Tally {
    fn add(&mut self, progress: Progress) {
        let sum = &mut self.progress;
        sum.inputs += progress.inputs;
        sum.accepted += progress.accepted;
        sum.panics += progress.panics;
        sum.wrong += progress.wrong;
        sum.most_memory = sum.most_memory.max(progress.most_memory);
    }

    fn faults(&self) -> u64 {
        self.progress.panics + self.progress.wrong + self.aborts + self.memory + self.slow
    }
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--worker", target, seed, from, progress, until] => {
            work(target, seed.parse()?, from.parse()?, Path::new(progress), until.parse()?)?;
            Ok(ExitCode::SUCCESS)
        }
        ["--keep", target, seed, index, kind] => {
            let (inputs, index) = (Inputs::new(target, seed.parse()?)?, index.parse()?);
            inputs.keep(&inputs.get(index), kind, index, kind)?;
            Ok(ExitCode::SUCCESS)
        }
        ["--replay", target, folders @ ..] => replay(target, folders),
        [minutes, seed, targets @ ..] => {
            let minutes = minutes.parse().with_context(|| format!("{minutes:?} is no number of minutes"))?;
            let seed = seed.parse().with_context(|| format!("{seed:?} is no seed"))?;
            fuzz(minutes, seed, targets)
        }
        _ => bail!("expected: MINUTES SEED [TARGET...], or --replay TARGET FOLDER..."),
    }
}

/// Gives stored inputs to a target, and prints what comes of each.
fn replay(target: &str, folders: &[&str]) -> Result<ExitCode> {
    keep_panics();
    let mut inputs = Inputs::new(target, 0)?;
    let mut is_well = true;
    for folder in folders {
        let input = Input::load(Path::new(folder)).with_context(|| folder.to_string())?;
        allocator::begin();
        let outcome = inputs.run(&input);
        let megabytes = allocator::end() >> 20;
        is_well &= matches!(outcome, Ok(Ok(Outcome::Accepted | Outcome::Refused(_))));
        println!("{folder}: {outcome:?}, {megabytes} MB");
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fuzz(minutes: f64, seed: u64, targets: &[&str]) -> Result<ExitCode> {
    let targets: Vec<&str> = match targets {
        [] => all().iter().map(|(name, _)| *name).collect(),
        targets => targets.to_vec(),
    };
    let each = Duration::from_secs_f64(60.0 * minutes / targets.len().max(1) as f64);
    println!("target      inputs      accepted  panics  aborts  over 512 MB  over 10 s  wrong  most memory  inputs/s");
    let mut all_inputs = 0;
    let mut faults = 0;
    for target in targets {
        let tally = one(target, seed, each)?;
        let Progress { inputs, accepted, panics, wrong, most_memory, .. } = tally.progress;
        println!(
            "{target:<10}{inputs:>8}{:>13} %{panics:>8}{:>8}{:>13}{:>11}{wrong:>7}{:>10} MB{:>10.0}",
            100 * accepted / inputs.max(1),
            tally.aborts,
            tally.memory,
            tally.slow,
            most_memory >> 20,
            inputs as f64 / tally.seconds,
        );
        all_inputs += inputs;
        faults += tally.faults();
    }
    println!("{all_inputs} inputs, {faults} faults, from seed {seed}");
    if faults > 0 {
        println!("the inputs lie in {}; fuzz --replay TARGET FOLDER reads one again", findings("").display());
    }
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One target for so long, by one worker after the other: one that an input ends is followed by one that goes on behind it.
fn one(target: &str, seed: u64, time: Duration) -> Result<Tally> {
    let (mut tally, mut from) = (Tally::default(), 0);
    let path = findings("").with_file_name(format!("{target}-{seed}.progress"));
    std::fs::create_dir_all(path.with_file_name(""))?;
    let (began, until) = (now(), now() + time.as_millis() as u64);
    while now() < until {
        let _ = std::fs::remove_file(&path);
        let mut worker = Command::new(std::env::current_exe()?)
            .args(["--worker", target, &seed.to_string(), &from.to_string()])
            .arg(&path)
            .arg(until.to_string())
            .spawn()?;
        let mut is_slow = false;
        let status = loop {
            if let Some(status) = worker.try_wait()? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(50));
            let progress = Progress::read(&path).unwrap_or_default();
            if progress.began > 0 && now().saturating_sub(progress.began) > LONGEST {
                is_slow = true;
                worker.kill()?;
            }
        };
        let progress = Progress::read(&path).unwrap_or_default();
        tally.add(progress);
        if status.success() {
            break;
        }
        if progress.began == 0 {
            bail!("{target}: its worker ended before the first input: {status}");
        }
        let kind = match status.code() {
            _ if is_slow => "slow",
            Some(allocator::EXIT_STATUS) => "memory",
            Some(1) => bail!("{target}: its worker failed at input {}", progress.index),
            _ => "abort",
        };
        match kind {
            "slow" => tally.slow += 1,
            "memory" => tally.memory += 1,
            _ => tally.aborts += 1,
        }
        tally.progress.inputs += 1;
        Command::new(std::env::current_exe()?)
            .args(["--keep", target, &seed.to_string(), &progress.index.to_string(), kind])
            .status()?;
        from = progress.index + 1;
    }
    tally.seconds = (now() - began) as f64 / 1000.0;
    Ok(tally)
}
