//! `peft-glue`: fine-tuning on GLUE without a notebook.

// First: what it calls `println!` all others do.
#[macro_use]
mod output;

mod adapter;
mod arguments;
mod given_adapter;
mod method;
mod progress;
mod recipes;
mod records;
mod signals;
mod study;
mod submit;
mod watch;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use trainer::glue::{Glue, Scores, Task};
use trainer::{InitialValues, Passes, Record, Run, StartsFrom, Stop, TensorBoard, Trainer, check_space};

use crate::arguments::{Arguments, Command, KeepingArguments, RunArguments, SeveralArguments};
use crate::output::check_output;

/// The exit status of a command whose runs have not come to their end: the same command goes on.
const UNFINISHED: u8 = 3;
/// The exit status of a command of whose runs one diverged, which the same command would do again.
const DIVERGED: u8 = 4;

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // candle's own threads wait for work by spinning, and take a core from the operations' threads.
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    if let Some(asked) = trainer::limit_threads() {
        eprintln!(
            "Note: RAYON_NUM_THREADS is {asked}, and this machine has use for {}: so many work",
            trainer::most_threads()
        );
    }
    let arguments = Arguments::from_command_line();
    #[cfg(unix)]
    if !arguments.command.trains() {
        // A reader that has seen enough, such as `head`, ends the command without a word, as it ends others. A training goes on.
        // SAFETY: no handler is replaced, and no other thread runs yet.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
    }
    let given = arguments.given().to_vec();
    let status = match perform(arguments) {
        Ok(status) => status,
        Err(error) => failure(&error, &given),
    };
    match output::lost() {
        Some(error) if status == ExitCode::SUCCESS => {
            eprintln!(
                "Error: the standard output did not take everything ({error}); what was made is kept, ask for it again"
            );
            ExitCode::FAILURE
        }
        _ => status,
    }
}

/// Tells an error, and returns the exit status.
fn failure(error: &anyhow::Error, given: &[String]) -> ExitCode {
    use trainer::Error::{Interrupted, StartUnfinished, Unfinished};
    if let (Some(Interrupted { .. } | StartUnfinished { .. } | Unfinished { .. }), Some(status)) =
        (error.downcast_ref(), signals::status())
    {
        eprintln!("Note: {error}");
        return ExitCode::from(status);
    }
    eprintln!("Error: {}", told(error, given));
    status_of(error)
}

/// The exit status of a command that failed.
fn status_of(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        Some(trainer::Error::OutOfTime { .. }) => ExitCode::from(UNFINISHED),
        Some(trainer::Error::Diverged { .. } | trainer::Error::DivergedRun { .. }) => ExitCode::from(DIVERGED),
        _ => ExitCode::FAILURE,
    }
}

/// An error for who typed the command: a setting is called as the option that was typed.
fn told(error: &anyhow::Error, given: &[String]) -> String {
    let Some(trainer::Error::Setting { name, found, expected }) = error.downcast_ref() else {
        return format!("{error:#}");
    };
    let option = match *name {
        "learning_rate" => "lr",
        "head_learning_rate" => "head_lr",
        "warmup_ratio" => "warmup",
        "evaluate" => "eval_steps",
        name => name,
    };
    if !given.iter().any(|given| given == option) {
        return format!("{error:#}");
    }
    let option = option.replace('_', "-");
    format!("{option} is {found}, expected {expected}; give another --{option}")
}

fn perform(arguments: Arguments) -> Result<ExitCode> {
    if arguments.command.trains() {
        signals::watch()?;
    }
    match arguments.command {
        Command::Run { run: arguments, several, keeping, save_adapter } => {
            return run(&arguments, &several, &keeping, save_adapter.as_deref());
        }
        Command::Predict { run, keeping, folder } => return predict(&run, &keeping, &folder),
        Command::Replay { run, batches, start, save_adapter, forward_only, merge } => {
            let passes = if forward_only { Passes::Forward { merged: merge } } else { Passes::Training };
            let start = match (&run.adapter, &start) {
                (Some(folder), _) => InitialValues::Adapter(folder),
                (None, Some(file)) => InitialValues::File(file),
                (None, None) => InitialValues::New,
            };
            replay(&run, &batches, start, passes, save_adapter.as_deref())?;
        }
        Command::Glue(arguments) => return recipes::perform(&arguments),
        Command::Study(arguments) => return study::perform(&arguments),
        Command::Watch { runs, once } => watch::perform(&runs, once)?,
        Command::Submit(arguments) => submit::perform(&arguments)?,
        Command::Data { download } => return data(download),
        Command::Parameters { run, tree } => parameters(&run, tree)?,
        Command::Adapter(command) => adapter::perform(&command)?,
        Command::Records(command) => return records::perform(&command),
    }
    Ok(ExitCode::SUCCESS)
}

/// GLUE, downloaded where it is not here. The standard output is the command's own, so a download is told on the other.
fn locate_glue() -> Result<Glue> {
    Ok(Glue::locate_with(|event| eprintln!("{event}"))?)
}

/// The data that a run needs; where its task is here nothing is downloaded, and where it needs none nothing is looked for.
fn glue_for(run: &Run, needs_data: bool) -> Result<Glue> {
    if run.task == Task::Synthetic {
        return Ok(Glue::synthetic("it is in the program"));
    }
    if !needs_data {
        return Ok(Glue::synthetic("no data is needed"));
    }
    match Glue::find()? {
        Some(glue) if !glue.splits(run.task).is_empty() => Ok(glue),
        _ => locate_glue(),
    }
}

/// A trainer as the arguments say. With `--json` only the record goes to the standard output.
fn trainer(arguments: &RunArguments, glue: Glue) -> Result<Trainer> {
    let trainer = Trainer::new(glue, &arguments.runs)
        .keep_weights(arguments.keep_weights)
        .device(arguments.device.clone())
        .time_budget(arguments.time_budget.map(Duration::from_secs));
    let logger = if arguments.json { progress::notes() } else { progress::logger() };
    Ok(match &arguments.tensorboard {
        Some(folder) => signals::heeded_by(trainer, Box::new((logger, TensorBoard::new(folder)?))),
        None => signals::heeded_by(trainer, logger),
    })
}

/// The same for a run whose model is made and not trained: only some methods look at data for that.
fn trainer_of_model(arguments: &RunArguments, run: &Run) -> Result<Trainer> {
    let needs_data = run.method.needs_total_steps() || run.method.starts_from_data();
    trainer(arguments, glue_for(run, needs_data)?)
}

fn run(
    arguments: &RunArguments,
    several: &SeveralArguments,
    keeping: &KeepingArguments,
    save_adapter: Option<&Path>,
) -> Result<ExitCode> {
    if arguments.print_config {
        print!("{}", arguments.config()?);
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.adapter.is_some() {
        bail!(
            "a run trains anew: give --method, and --starts-from with the adapter's folder to go on from what it has learned; predict, \
             replay and parameters take --adapter"
        );
    }
    let keep_weights = arguments.keep_weights || save_adapter.is_some();
    let runs = several.runs(arguments)?;
    let Some(first) = runs.first() else { bail!("there is no run: give a seed") };
    runs.iter().try_for_each(Run::check)?;
    let glue = glue_for(first, true)?;
    let trainer = trainer(arguments, glue)?.keep_weights(keep_weights).at_once(several.at_once.runs());
    let mut trainer = keeping.of(trainer);
    trainer.check(&runs)?;
    if let Some(folder) = save_adapter {
        let start = runs.iter().filter_map(|run| match &run.starts_from {
            Some(StartsFrom::Adapter(adapter)) => Some(adapter.folder.as_path()),
            _ => None,
        });
        check_output("--save-adapter", folder, start.chain([Path::new(&first.model)]))?;
    }
    if !arguments.json {
        println!("data: {}", trainer.glue().origin());
    }
    if let [run] = runs.as_slice() {
        if !arguments.json || save_adapter.is_some() {
            let report = trainer.untrained_model(run)?.trainable_report();
            let bytes = (size_of::<f32>() * report.trainable()) as u64;
            save_adapter.map_or(Ok(()), |folder| check_space(folder, bytes))?;
            if !arguments.json {
                println!("{report}");
            }
        }
        if arguments.json && std::io::stderr().is_terminal() {
            eprintln!("data: {}; record: {}", trainer.glue().origin(), trainer.folder(run).display());
        }
    }
    let records = match runs.as_slice() {
        [run] => vec![trainer.run(run)?],
        runs => trainer.run_all(runs)?,
    };
    for record in &records {
        if arguments.json {
            println!("{}", record.to_json()?);
        } else {
            print_result(&trainer, record, records.len() > 1);
        }
    }
    if signals::status().is_some() && records.iter().any(|record| !record.stop.is_final()) {
        return Ok(status(&records)); // Who has asked to end waits for nothing more.
    }
    if let (Some(folder), [run]) = (save_adapter, runs.as_slice()) {
        trainer.save_adapter(run, folder)?;
        if !arguments.json {
            println!("adapter: {}", folder.display());
        }
    }
    Ok(status(&records))
}

/// The exit status: of its own, with a line on the standard error, where a run has not come to its end or diverged; that of the signal, if
/// one ended it.
fn status<'a>(records: impl IntoIterator<Item = &'a Record>) -> ExitCode {
    let (mut is_unfinished, mut has_diverged) = (false, false);
    for Record { run, stop, losses, .. } in records {
        match stop {
            Stop::Diverged => eprintln!("Note: {} {stop}", run.name()),
            stop if !stop.is_final() => {
                let step = losses.last().map_or(0, |last| last.step);
                eprintln!("Note: {} is not finished: {stop}, from step {step}", run.name());
            }
            _ => {}
        }
        is_unfinished |= !stop.is_final();
        has_diverged |= *stop == Stop::Diverged;
    }
    match (is_unfinished, has_diverged) {
        (true, _) => ExitCode::from(signals::status().unwrap_or(UNFINISHED)),
        (false, true) => ExitCode::from(DIVERGED),
        (false, false) => ExitCode::SUCCESS,
    }
}

/// What a run reached and where its record lies; under a line that says which run it was, where there are several.
fn print_result(trainer: &Trainer, record: &Record, is_one_of_several: bool) {
    if is_one_of_several {
        println!("{}, seed {}", record.run.method_name(), record.run.seed);
    }
    match &record.best {
        Some(best) => {
            let listed = |scores: &Scores| -> String {
                scores.0.iter().map(|(metric, value)| format!("{metric} {value:.4}")).collect::<Vec<_>>().join(", ")
            };
            println!("best at epoch {:.2}: {}", best.epoch, listed(&best.scores));
            for (split, scores) in &best.other_scores {
                println!("{split}: {}", listed(scores));
            }
        }
        None if record.stop == Stop::Diverged => println!("no evaluation had a score: {}", record.stop),
        None => println!(
            "no evaluation had a score: where all labels or all predictions are equal there is no correlation (Pearson, Spearman); what \
             was trained is kept as it was at the last evaluation"
        ),
    }
    if record.best.is_some() && record.stop != Stop::Finished {
        println!("{}", record.stop);
    }
    if let Some(caveat) = record.data.caveat() {
        println!("note: {caveat}");
    }
    println!("record: {}", trainer.folder(&record.run).join("record.json").display());
}

fn predict(arguments: &RunArguments, keeping: &KeepingArguments, folder: &Path) -> Result<ExitCode> {
    let run = arguments.run()?;
    run.check()?;
    let mut trainer = keeping.of(trainer(arguments, glue_for(&run, true)?)?.keep_weights(true));
    for &split in run.task.test_splits() {
        trainer.glue().require(run.task, split)?;
    }
    check_output("--folder", folder, [])?;
    let mut status_of_run = ExitCode::SUCCESS;
    let model = match &arguments.adapter {
        Some(adapter) => {
            let (model, warnings) = trainer.adapter_model(&run, adapter)?;
            warnings.iter().for_each(|warning| eprintln!("Warning: {warning}"));
            model
        }
        None => {
            let record = trainer.run(&run)?;
            let is_final = record.stop.is_final();
            status_of_run = status(&[record]);
            if signals::status().is_some() && !is_final {
                return Ok(status_of_run); // Who has asked to end waits for nothing more.
            }
            trainer.trained_model(&run)?
        }
    };
    for path in trainer.write_predictions_of(&model, &run, folder).context("the test predictions")? {
        println!("{}", path.display());
    }
    Ok(status_of_run)
}

fn replay(
    arguments: &RunArguments,
    batches: &Path,
    start: InitialValues,
    passes: Passes,
    save_adapter: Option<&Path>,
) -> Result<()> {
    let run = arguments.run()?;
    let mut trainer = trainer_of_model(arguments, &run)?;
    let replayed = trainer::replay(&mut trainer, &run, batches, start, passes, save_adapter)?;
    println!("{}", serde_json::to_string(&replayed)?);
    Ok(())
}

/// Lists every split; one that is broken is told and keeps none of the others from being listed.
fn data(download: bool) -> Result<ExitCode> {
    let glue = if download { Glue::download(|event| eprintln!("{event}")) } else { locate_glue()? };
    println!("data: {}", glue.origin());
    let mut status = ExitCode::SUCCESS;
    for task in glue.tasks() {
        for split in glue.splits(task) {
            let (task_name, split_name) = (task.name(), split.to_string());
            match glue.load(task, split) {
                Ok(dataset) => println!("{task_name:9} {split_name:23} {}", dataset.completeness),
                Err(error) => {
                    println!("{task_name:9} {split_name:23} broken");
                    eprintln!("Error: {error}");
                    status = ExitCode::FAILURE;
                }
            }
        }
    }
    Ok(status)
}

fn parameters(arguments: &RunArguments, tree: bool) -> Result<()> {
    let run = arguments.run()?;
    let mut trainer = trainer_of_model(arguments, &run)?;
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
