//! `peft-glue`: fine-tuning on GLUE without a notebook.

mod arguments;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use trainer::glue::Glue;
use trainer::{Passes, Trainer, Verbosity};

use crate::arguments::{Arguments, Command, RunArguments};

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // candle's own threads wait for work by spinning, and take a core from the operations' threads.
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    match perform(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Run(arguments) => run(&arguments),
        Command::Predict { run, folder } => predict(&run, &folder),
        Command::Replay { run, batches, start, forward_only, merge } => {
            let passes = if forward_only { Passes::Forward { merged: merge } } else { Passes::Training };
            replay(&run, &batches, start.as_deref(), passes)
        }
        Command::Data => data(),
        Command::Parameters(arguments) => parameters(&arguments),
    }
}

/// A trainer as the arguments say. With `--json` only the record goes to the standard output.
fn trainer(arguments: &RunArguments) -> Result<Trainer> {
    let verbosity = if arguments.json { Verbosity::Silent } else { Verbosity::Lines };
    Ok(Trainer::new(Glue::locate()?, &arguments.runs)
        .keep_weights(arguments.keep_weights)
        .time_budget(arguments.time_budget.map(Duration::from_secs))
        .verbosity(verbosity))
}

fn run(arguments: &RunArguments) -> Result<()> {
    let mut trainer = trainer(arguments)?;
    let run = arguments.run()?;
    if arguments.json && std::io::stderr().is_terminal() {
        eprintln!("data: {}; record: {}", trainer.glue().origin(), trainer.folder(&run).display());
    } else if !arguments.json {
        println!("data: {}", trainer.glue().origin());
        println!("{}", trainer.untrained_model(&run)?.trainable_report());
    }
    let record = trainer.run(&run)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&record)?);
        return Ok(());
    }
    match &record.best {
        Some(best) => {
            let scores: Vec<String> =
                best.scores.0.iter().map(|(metric, value)| format!("{metric} {value:.4}")).collect();
            println!("best at epoch {:.2}: {}", best.epoch, scores.join(", "));
        }
        None => println!("no evaluation had a score"),
    }
    if let Some(caveat) = record.data.caveat() {
        println!("note: {caveat}");
    }
    println!("record: {}", trainer.folder(&run).join("record.json").display());
    Ok(())
}

fn predict(arguments: &RunArguments, folder: &Path) -> Result<()> {
    let mut trainer = trainer(arguments)?.keep_weights(true);
    let run = arguments.run()?;
    trainer.run(&run)?;
    for path in trainer.write_predictions(&run, folder).context("the test predictions")? {
        println!("{}", path.display());
    }
    Ok(())
}

fn replay(arguments: &RunArguments, batches: &Path, start: Option<&Path>, passes: Passes) -> Result<()> {
    let replayed = trainer::replay(&mut trainer(arguments)?, &arguments.run()?, batches, start, passes)?;
    println!("{}", serde_json::to_string(&replayed)?);
    Ok(())
}

fn data() -> Result<()> {
    let glue = Glue::locate()?;
    println!("data: {}", glue.origin());
    for task in glue.tasks() {
        for split in glue.splits(task) {
            println!("{:9} {:23} {}", task.name(), split.to_string(), glue.load(task, split)?.completeness);
        }
    }
    Ok(())
}

fn parameters(arguments: &RunArguments) -> Result<()> {
    let report = trainer(arguments)?.untrained_model(&arguments.run()?)?.trainable_report();
    for tensor in &report.tensors {
        println!("{:>12}  {:?}  {}", trainer::peft::thousands(tensor.count()), tensor.shape, tensor.name);
    }
    println!("{report}");
    Ok(())
}
