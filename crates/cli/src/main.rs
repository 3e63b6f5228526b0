//! `peft-glue`: fine-tuning on GLUE without a notebook.

#![allow(clippy::print_stdout, clippy::print_stderr)] // Who types a command reads there what comes of it.

mod adapter;
mod arguments;
mod given_adapter;
mod method;
mod progress;
mod recipes;
mod submit;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use trainer::glue::Glue;
use trainer::{Passes, Record, Start, Trainer};

use crate::arguments::{Arguments, Command, RunArguments, SeveralArguments};

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // candle's own threads wait for work by spinning, and take a core from the operations' threads.
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    match perform(Arguments::from_command_line()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Run { run: arguments, several, save_adapter } => run(&arguments, &several, save_adapter.as_deref()),
        Command::Predict { run, folder } => predict(&run, &folder),
        Command::Replay { run, batches, start, save_adapter, forward_only, merge } => {
            let passes = if forward_only { Passes::Forward { merged: merge } } else { Passes::Training };
            let start = match (&run.adapter, &start) {
                (Some(folder), _) => Start::Adapter(folder),
                (None, Some(file)) => Start::Values(file),
                (None, None) => Start::New,
            };
            replay(&run, &batches, start, passes, save_adapter.as_deref())
        }
        Command::Glue(arguments) => recipes::perform(&arguments),
        Command::Submit(arguments) => submit::perform(&arguments),
        Command::Data => data(),
        Command::Parameters { run, tree } => parameters(&run, tree),
        Command::Adapter(command) => adapter::perform(&command),
    }
}

/// GLUE, downloaded where it is not here. The standard output is the command's own, so a download is told on the other.
fn locate_glue() -> Result<Glue> {
    Ok(Glue::locate_with(|event| eprintln!("{event}"))?)
}

/// A trainer as the arguments say. With `--json` only the record goes to the standard output.
fn trainer(arguments: &RunArguments) -> Result<Trainer> {
    let trainer = Trainer::new(locate_glue()?, &arguments.runs)
        .keep_weights(arguments.keep_weights)
        .device(arguments.device.clone())
        .time_budget(arguments.time_budget.map(Duration::from_secs));
    Ok(trainer.logger(if arguments.json { progress::notes() } else { progress::logger() }))
}

fn run(arguments: &RunArguments, several: &SeveralArguments, save_adapter: Option<&Path>) -> Result<()> {
    if arguments.print_config {
        print!("{}", arguments.config()?);
        return Ok(());
    }
    if arguments.adapter.is_some() {
        bail!("a run trains anew: give --method; predict, replay and parameters take --adapter");
    }
    let keep_weights = arguments.keep_weights || save_adapter.is_some();
    let mut trainer = trainer(arguments)?.keep_weights(keep_weights).at_once(several.at_once.get());
    let runs = several.runs(arguments)?;
    if !arguments.json {
        println!("data: {}", trainer.glue().origin());
    }
    if let [run] = runs.as_slice() {
        if !arguments.json {
            println!("{}", trainer.untrained_model(run)?.trainable_report());
        } else if std::io::stderr().is_terminal() {
            eprintln!("data: {}; record: {}", trainer.glue().origin(), trainer.folder(run).display());
        }
    }
    let records = match runs.as_slice() {
        [run] => vec![trainer.run(run)?],
        runs => trainer.run_all(runs)?,
    };
    if let (Some(folder), [run]) = (save_adapter, runs.as_slice()) {
        trainer.save_adapter(run, folder)?;
    }
    for record in &records {
        if arguments.json {
            println!("{}", serde_json::to_string(record)?);
        } else {
            print_result(&trainer, record, records.len() > 1);
        }
    }
    if let (Some(folder), false) = (save_adapter, arguments.json) {
        println!("adapter: {}", folder.display());
    }
    Ok(())
}

/// What a run reached and where its record lies; under a line that says which run it was, where there are several.
fn print_result(trainer: &Trainer, record: &Record, is_one_of_several: bool) {
    if is_one_of_several {
        println!("{}, seed {}", record.run.method_name(), record.run.seed);
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
    println!("record: {}", trainer.folder(&record.run).join("record.json").display());
}

fn predict(arguments: &RunArguments, folder: &Path) -> Result<()> {
    let mut trainer = trainer(arguments)?.keep_weights(true);
    let run = arguments.run()?;
    let model = match &arguments.adapter {
        Some(adapter) => {
            let (model, warnings) = trainer.adapter_model(&run, adapter)?;
            warnings.iter().for_each(|warning| eprintln!("Warning: {warning}"));
            model
        }
        None => {
            trainer.run(&run)?;
            trainer.trained_model(&run)?
        }
    };
    for path in trainer.write_predictions_of(&model, &run, folder).context("the test predictions")? {
        println!("{}", path.display());
    }
    Ok(())
}

fn replay(
    arguments: &RunArguments,
    batches: &Path,
    start: Start,
    passes: Passes,
    save_adapter: Option<&Path>,
) -> Result<()> {
    let run = arguments.run()?;
    let replayed = trainer::replay(&mut trainer(arguments)?, &run, batches, start, passes, save_adapter)?;
    println!("{}", serde_json::to_string(&replayed)?);
    Ok(())
}

fn data() -> Result<()> {
    let glue = locate_glue()?;
    println!("data: {}", glue.origin());
    for task in glue.tasks() {
        for split in glue.splits(task) {
            println!("{:9} {:23} {}", task.name(), split.to_string(), glue.load(task, split)?.completeness);
        }
    }
    Ok(())
}

fn parameters(arguments: &RunArguments, tree: bool) -> Result<()> {
    let (mut trainer, run) = (trainer(arguments)?, arguments.run()?);
    let model = match &arguments.adapter {
        Some(adapter) => trainer.adapter_model(&run, adapter)?.0,
        None => trainer.untrained_model(&run)?,
    };
    let report = model.trainable_report();
    if tree {
        println!("{}\n{report}", model.trainable_tree());
        return Ok(());
    }
    for tensor in &report.tensors {
        println!("{:>12}  {:?}  {}", trainer::peft::thousands(tensor.count()), tensor.shape, tensor.name);
    }
    println!("{report}");
    Ok(())
}
