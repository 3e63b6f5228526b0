//! `peft-glue submit`: the zip that GLUE's server takes.

use anyhow::{Error, Result, anyhow};
use trainer::glue::{Glue, Task};
use trainer::submission::{self, File, Source};
use trainer::{Record, Run, Trainer, results};

use crate::arguments::SubmitArguments;
use crate::{progress, signals};

/// Writes the zip, after what has to be trained again for it.
pub(crate) fn perform(arguments: &SubmitArguments) -> Result<()> {
    let SubmitArguments { list, results: folder, runs, output, method, device, keeping } = arguments;
    let records = results::load(folder)?;
    let trainer = Trainer::new(crate::locate_glue()?, runs).device(device.clone()).keep_weights(true);
    let mut trainer = signals::heeded_by(keeping.of(trainer), progress::logger());
    let files = submission::files(trainer.glue(), &records, method.as_deref());
    println!("data: {}", trainer.glue().origin());
    if !files.iter().any(|file| matches!(file.source, Source::Run(_))) {
        return Err(nothing_but_majorities(arguments, &records, trainer.glue()));
    }
    for run in submission::missing(&trainer, &files)? {
        let (name, runs) = (run.name(), runs.display());
        println!("no weights in {runs} of {name}: to be trained again, {}", duration(run, &records));
    }
    if !list {
        submission::write(&mut trainer, &files, output)?;
    }
    print_table(&trainer, &files, method.as_deref())?;
    if !list {
        println!("submission: {}", output.display());
    }
    Ok(())
}

/// Why there is nothing to predict with or nothing to predict.
fn nothing_but_majorities(arguments: &SubmitArguments, records: &[Record], glue: &Glue) -> Error {
    let (folder, method) = (arguments.results.display(), arguments.method.as_deref());
    let tasks: Vec<&str> = Task::ALL
        .into_iter()
        .filter(|&task| submission::best(records, task, method).is_some())
        .map(Task::name)
        .collect();
    if !tasks.is_empty() {
        return anyhow!(
            "{folder} has records of {}, and their test sets are not here (data: {}); set GLUE_DIR to a folder that has them",
            tasks.join(", "),
            glue.origin()
        );
    }
    let mut methods: Vec<&str> = records.iter().map(|record| record.run.method.id()).collect();
    methods.sort_unstable();
    methods.dedup();
    let expected = method.map_or("a run".into(), |method| format!("a run of the method {method:?}"));
    let found = match methods.as_slice() {
        [] => "no records".into(),
        methods => format!("records of {}", methods.join(", ")),
    };
    anyhow!(
        "{folder}: expected the record of {expected} that came to its end with a score, found {found}; type `make glue` to make the runs"
    )
}

/// How long a run took by its record.
fn duration(run: &Run, records: &[Record]) -> String {
    match records.iter().find(|record| record.run == *run) {
        Some(Record { train_seconds, environment, .. }) => {
            let place = environment.gpu.as_ref().unwrap_or(&environment.processor);
            format!("which took {:.1} min of training on {place}", train_seconds / 60.0)
        }
        None => "which has no record of how long it takes".into(),
    }
}

/// Each file, its rows, and where they come from.
fn print_table(trainer: &Trainer, files: &[File], method: Option<&str>) -> Result<()> {
    let of_method = method.map(|method| format!(" of {method}")).unwrap_or_default();
    for file in files {
        let source = match file.source {
            Source::Run(published) => {
                // Where the run was made here too, its score is that of the weights that predict.
                let own = trainer.record(&published.run)?;
                reached(own.as_ref().unwrap_or(published))
            }
            Source::NoTestSet => "majority of the training set (no test set here)".into(),
            Source::NoRecord => format!("majority of the training set (no record{of_method})"),
        };
        let rows = file.task.official_rows(file.split).unwrap_or_default();
        println!("{:12} {rows:>6}  {source}", file.name());
    }
    Ok(())
}

/// A run and its validation score, with what must stand beside it.
fn reached(record: &Record) -> String {
    let scores: Vec<String> =
        record.run.task.metrics().iter().map(|&metric| format!("{metric} {:.3}", record.best_metric(metric))).collect();
    let caveat = record.data.caveat().map(|caveat| format!(" ({caveat})")).unwrap_or_default();
    format!("{}: validation {}{caveat}", record.run.name(), scores.join(", "))
}
