//! `peft-glue glue`: every recipe, in any number of interrupted parts.

use std::process::ExitCode;

use anyhow::Result;
use trainer::glue::{Baseline, Split};
use trainer::numbers::yes_or_no;
use trainer::summary::Summary;
use trainer::{Recipe, Record, Run, StartsFrom, Stop, Trainer, check_writable, results};

use crate::arguments::GlueArguments;
use crate::{progress, signals};

/// A run of a recipe.
struct Planned {
    /// Of its published record.
    name: String,
    run: Run,
    /// Its published record, if it has one.
    record: Option<Record>,
}

/// Makes what is missing, in the order of the recipes.
pub(crate) fn perform(arguments: &GlueArguments) -> Result<ExitCode> {
    let published = results::load(&arguments.results)?;
    let recipes = match arguments.recipes.as_slice() {
        [] => Recipe::all()?,
        names => names.iter().map(|name| Recipe::load(name)).collect::<trainer::Result<_>>()?,
    };
    if arguments.table {
        // Records are enough for it: no data is looked for.
        table(&recipes, &published);
        return Ok(ExitCode::SUCCESS);
    }
    let trainer = Trainer::new(crate::locate_glue()?, &arguments.runs).device(arguments.device.clone());
    let mut trainer = signals::heeded_by(arguments.keeping.of(trainer), progress::logger());
    let plan: Vec<Planned> = recipes
        .iter()
        .flat_map(|recipe| recipe.runs().into_iter().map(|run| (format!("{}-{}", recipe.name, run.seed), run)))
        .map(|(name, run)| {
            let record = published.iter().find(|record| record.run == run).cloned();
            Planned { name, run, record }
        })
        .collect();
    list(&mut trainer, &plan, &published)?;
    if arguments.list {
        return Ok(ExitCode::SUCCESS);
    }
    check_writable(&arguments.results)?;
    for Planned { name, run, .. } in plan.iter().filter(|planned| planned.record.is_none()) {
        println!("{name}");
        let record = trainer.run(run)?;
        if !record.stop.is_final() {
            println!("{}", record.stop);
            return Ok(crate::status(&[record]));
        }
        println!("  {}", results::publish(&arguments.results, name, &record)?.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A row for each recipe that has records: its scores, mean and deviation over seeds, against the baselines.
fn table(recipes: &[Recipe], published: &[Record]) {
    println!("| task, baseline | method | dev score | above | seeds | trained | training | starts from | data |");
    println!("| --- | --- | --- | --- | ---: | ---: | ---: | --- | --- |");
    for recipe in recipes {
        let (task, runs) = (recipe.run.task, recipe.runs());
        let records: Vec<&Record> = published.iter().filter(|record| runs.contains(&record.run)).collect();
        let Some(&first) = records.first() else { continue };
        let summary = Summary { records };
        let name = |baseline: &Baseline| match baseline.split {
            Split::ValidationMismatched => format!("{} (mismatched)", baseline.metric),
            _ => baseline.metric.to_string(),
        };
        let each =
            |said: &dyn Fn(&Baseline) -> String| task.baselines().iter().map(said).collect::<Vec<_>>().join(", ");
        println!(
            "| {task}, {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            each(&|baseline| format!("{} {}", name(baseline), baseline.value)),
            summary.name(),
            each(&|baseline| summary.score_on(baseline.split, baseline.metric)),
            each(&|baseline| yes_or_no(summary.is_above(baseline)).into()),
            summary.seeds(),
            summary.share_of_model(first.parameters.trainable),
            summary.training_time(),
            first.run.starts_from.as_ref().and_then(StartsFrom::run).map_or("–", |run| run.task.name()),
            first.data.caveat().unwrap_or_else(|| "whole".into()),
        );
    }
}

/// What there is, and how long the rest will take.
fn list(trainer: &mut Trainer, plan: &[Planned], published: &[Record]) -> Result<()> {
    let (mut minutes, mut unknown) = (0.0, 0);
    for Planned { name, run, record } in plan {
        let said = match record {
            Some(Record { stop: Stop::Diverged, .. }) => "diverged".into(),
            Some(record) => {
                let scores: Vec<String> =
                    record.run.task.metrics().iter().map(|m| format!("{m} {:.3}", record.best_metric(*m))).collect();
                scores.join(", ")
            }
            None => match expected_minutes(trainer, run, published)? {
                Some(expected) => {
                    minutes += expected;
                    format!("to do, about {expected:.0} min of training")
                }
                None => {
                    unknown += 1;
                    "to do".into()
                }
            },
        };
        println!("{name:18} {said}");
    }
    let missing = plan.iter().filter(|planned| planned.record.is_none()).count();
    match (missing, unknown) {
        (0, _) => println!("every run has its record"),
        (_, 0) => println!("{missing} runs to do: about {minutes:.0} min of training, and the evaluations"),
        _ => println!(
            "{missing} runs to do: about {minutes:.0} min of training, and {unknown} whose length no record of their method tells"
        ),
    }
    Ok(())
}

/// As long as its tokens take at the speed of the last record of the same method and model.
fn expected_minutes(trainer: &mut Trainer, run: &Run, published: &[Record]) -> Result<Option<f64>> {
    let is_alike = |record: &&Record| record.run.method.id() == run.method.id() && record.run.model == run.model;
    let Some(alike) = published.iter().filter(is_alike).max_by_key(|record| record.environment.finished_at) else {
        return Ok(None);
    };
    let tokens = trainer.data(run)?.train.lengths().iter().sum::<usize>() * run.settings.epochs;
    Ok(Some(tokens as f64 / alike.tokens_per_second() / 60.0))
}
