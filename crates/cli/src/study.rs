//! `peft-glue study`: the runs of a study's file, in any number of interrupted parts and processes.

use std::process::ExitCode;

use anyhow::Result;
use trainer::glue::Glue;
use trainer::study::{self, Candidate, Stage, Study};
use trainer::{Recipe, Trainer, results};

use crate::arguments::{StudyAction, StudyArguments};
use crate::given_adapter::tell_before_downloads;
use crate::{progress, signals};

/// Makes a study's runs, shows how far it is, hands out what is to be made, or publishes what there is.
pub(crate) fn perform(arguments: &StudyArguments) -> Result<ExitCode> {
    let study = Study::load(&arguments.study)?;
    let name = arguments.study.file_stem().unwrap_or_default().to_string_lossy();
    let published = [results::load(&arguments.results)?, results::study(&arguments.results, &name)?].concat();
    let glue = match arguments.action {
        StudyAction::Run => crate::locate_glue()?,
        // Where the records are no data is needed.
        StudyAction::Show | StudyAction::Next | StudyAction::Publish => {
            Glue::find()?.unwrap_or_else(|| Glue::synthetic("no data is needed"))
        }
    };
    if arguments.action == StudyAction::Run {
        let candidates = study.stage(|_| Ok(None))?.candidates;
        tell_before_downloads(candidates.iter().flat_map(|candidate| &candidate.runs), &arguments.study);
    }
    let trainer = Trainer::new(glue, &arguments.runs)
        .published(published)
        .device(arguments.device.clone())
        .at_once(arguments.at_once.runs())
        .time_budget(arguments.time_budget.map(std::time::Duration::from_secs));
    let mut trainer = signals::heeded_by(arguments.keeping.of(trainer), progress::logger());
    let stage = match arguments.action {
        StudyAction::Run => study::make(&mut trainer, &study, |stage| println!("{stage}"))?,
        StudyAction::Show => study.stage(|run| trainer.record(run))?,
        StudyAction::Next => {
            let stage = study.stage(|run| trainer.record(run))?;
            return next(&trainer, &stage);
        }
        StudyAction::Publish => {
            let mut records = Vec::new();
            let stage = study.stage(|run| {
                let record = trainer.record(run)?;
                records.extend(record.clone());
                Ok(record)
            })?;
            println!("{stage}: {}", results::publish_study(&arguments.results, &name, &records)?.display());
            stage
        }
    };
    if arguments.action != StudyAction::Publish {
        show(&study, &stage);
    }
    let unfinished = || ExitCode::from(signals::status().unwrap_or(crate::UNFINISHED));
    Ok(if stage.missing.is_empty() { ExitCode::SUCCESS } else { unfinished() })
}

/// One line of JSON for each run that has no record: the name of its folder, and the recipe that `peft-glue run --config` makes it of.
fn next(trainer: &Trainer, stage: &Stage) -> Result<ExitCode> {
    for (candidate, run) in &stage.missing {
        let text = Recipe::text(run, stage.candidates[*candidate].starts_from.as_deref())?;
        let folder = trainer.folder(run);
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        println!("{}", serde_json::json!({ "name": name, "recipe": text }));
    }
    Ok(ExitCode::SUCCESS)
}

/// The candidates with a record, the best first, and which fields their scores depend on.
fn show(study: &Study, stage: &Stage) {
    if !study.about.is_empty() {
        println!("{}", study.about);
    }
    println!("{stage}");
    let ranking: Vec<_> = stage.ranking().into_iter().filter(|(_, scores)| !scores.0.is_empty()).collect();
    if ranking.is_empty() {
        return;
    }
    let fields = study.short_names();
    println!("\n| | recipe | {}score | deviation | seeds |", columns(&fields));
    println!("| ---: | --- | {}---: | ---: | ---: |", "---: | ".repeat(fields.len()));
    for (place, (Candidate { recipe, values, runs, .. }, scores)) in ranking.iter().enumerate() {
        let (mean, deviation) = (number(scores.mean()), number(scores.deviation()));
        let seeds = if scores.0.len() == runs.len() {
            runs.len().to_string()
        } else {
            format!("{} of {}", scores.0.len(), runs.len())
        };
        println!("| {} | {recipe} | {}{mean} | {deviation} | {seeds} |", place + 1, columns(values));
    }
    let points: Vec<(&[String], f64)> =
        ranking.iter().map(|(candidate, scores)| (candidate.values.as_slice(), scores.mean())).collect();
    let shares = study::importance(study.fields.len(), &points);
    if shares.iter().any(Option::is_some) {
        println!("\nThe share of the scores' variance that a field alone explains (epsilon squared):");
        for (field, share) in study.fields.iter().zip(shares) {
            println!("  {field}: {}", share.map_or("cannot be told".into(), |share| format!("{:.0} %", 100.0 * share)));
        }
    }
}

fn columns(cells: &[impl AsRef<str>]) -> String {
    cells.iter().map(|cell| format!("{} | ", cell.as_ref())).collect()
}

fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:.4}") } else { "none".into() }
}
