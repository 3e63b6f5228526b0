//! `peft-glue glue`: every recipe, in any number of interrupted parts.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use trainer::glue::{Baseline, Split};
use trainer::numbers::{self, yes_or_no};
use trainer::summary::Summary;
use trainer::verdict::{AgainstBaseline, Verdict};
use trainer::{Predictions, Recipe, Record, Run, StartsFrom, Stop, Trainer, check_writable, predictions, results};

use crate::arguments::GlueArguments;
use crate::given_adapter::tell_before_downloads;
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
    // Records are enough for these: no data is looked for.
    if arguments.table {
        table(&recipes, &published);
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.verdicts {
        verdicts(&recipes, &published, &predictions::load(&arguments.results)?);
        return Ok(ExitCode::SUCCESS);
    }
    for recipe in &recipes {
        tell_before_downloads([&recipe.run], Path::new(&recipe.name));
    }
    let trainer = Trainer::new(crate::locate_glue()?, &arguments.runs).device(arguments.device.clone());
    let mut trainer = signals::heeded_by(arguments.keeping.of(trainer), progress::logger());
    let plan: Vec<Planned> = recipes
        .iter()
        .flat_map(|recipe| recipe.runs().into_iter().map(|run| (format!("{}-{}", recipe.name, run.seed), run)))
        .map(|(name, run)| {
            let record = published.iter().find(|record| record.run == run && trainer.has_inputs_of(record)).cloned();
            Planned { name, run, record }
        })
        .collect();
    list(&mut trainer, &plan, &published)?;
    if arguments.list {
        return Ok(ExitCode::SUCCESS);
    }
    check_writable(&arguments.results)?;
    let mut made = Vec::new();
    for Planned { name, run, .. } in plan.iter().filter(|planned| planned.record.is_none()) {
        println!("{name}");
        let record = trainer.run(run)?;
        if !record.stop.is_final() {
            println!("{}", record.stop);
            return Ok(crate::status(&[record]));
        }
        println!("  {}", results::publish(&arguments.results, name, &record)?.display());
        if let Some(predictions) = trainer.predictions(run)?.filter(|predictions| predictions.are_of(&record)) {
            println!("  {}", predictions::publish(&arguments.results, name, &predictions)?.display());
        }
        made.push(record);
    }
    Ok(crate::status(&made))
}

/// The published records of each recipe that has some.
fn summaries<'a>(recipes: &[Recipe], published: &'a [Record]) -> Vec<Summary<'a>> {
    let of = |recipe: &Recipe| {
        let runs = recipe.runs();
        Summary { records: published.iter().filter(|record| runs.contains(&record.run)).collect() }
    };
    recipes.iter().map(of).filter(|summary| !summary.records.is_empty()).collect()
}

/// A row for each recipe that has records: its scores over seeds, mean, deviation and interval, against the baselines.
fn table(recipes: &[Recipe], published: &[Record]) {
    println!(
        "| task, baseline | method | dev score | 95 % interval | mean above | interval above | seeds | trained | training | \
         starts from | data |"
    );
    println!("| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | --- | --- |");
    for summary in summaries(recipes, published) {
        let first = summary.records[0];
        let task = first.run.task;
        let name = |baseline: &Baseline| match baseline.split {
            Split::ValidationMismatched => format!("{} (mismatched)", baseline.metric),
            _ => baseline.metric.to_string(),
        };
        let each =
            |said: &dyn Fn(&Baseline) -> String| task.baselines().iter().map(said).collect::<Vec<_>>().join(", ");
        let interval = |baseline: &Baseline| summary.interval_on(baseline.split, baseline.metric);
        let is_above = |baseline: &Baseline| interval(baseline).map(|interval| interval.low > baseline.value);
        println!(
            "| {task}, {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            each(&|baseline| format!("{} {}", name(baseline), baseline.value)),
            summary.name(),
            each(&|baseline| summary.score_on(baseline.split, baseline.metric)),
            each(&|baseline| interval(baseline).map_or("–".into(), numbers::interval)),
            each(&|baseline| yes_or_no(summary.is_above(baseline)).into()),
            each(&|baseline| is_above(baseline).map_or("–", yes_or_no).into()),
            summary.seeds(),
            summary.share_of_model(first.parameters.trainable),
            summary.training_time(),
            first.run.starts_from.as_ref().and_then(StartsFrom::run).map_or("–", |run| run.task.name()),
            first.data.caveat().unwrap_or_else(|| "whole".into()),
        );
    }
}

/// A sentence for each two methods of a task, and for each method and baseline, as a list in Markdown.
fn verdicts(recipes: &[Recipe], published: &[Record], predictions: &[Predictions]) {
    let summaries = summaries(recipes, published);
    let with_caveat = |sentence: String, caveat: Option<String>| match caveat {
        Some(caveat) => println!("- {sentence} ({caveat})."),
        None => println!("- {sentence}."),
    };
    println!("Each two methods of a task, over their seeds:\n");
    for verdict in Verdict::of_all(&summaries, predictions) {
        with_caveat(verdict.to_string(), verdict.caveat);
    }
    println!(
        "\nEach method against each baseline, by its own interval, without a correction for how many there are:\n"
    );
    for against in summaries.iter().flat_map(AgainstBaseline::of) {
        with_caveat(against.to_string(), against.caveat);
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
