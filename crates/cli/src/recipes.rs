//! `peft-glue glue`: every recipe, in any number of sittings.

use anyhow::Result;
use trainer::glue::Glue;
use trainer::{Recipe, Record, Run, Stop, Trainer, results};

use crate::arguments::GlueArguments;

/// A run of a recipe.
struct Planned {
    /// Of its published record.
    name: String,
    run: Run,
    /// Its published record, if it has one.
    record: Option<Record>,
}

/// Makes what is missing, in the order of the recipes.
pub fn perform(arguments: &GlueArguments) -> Result<()> {
    let published = results::load(&arguments.results)?;
    let recipes = match arguments.recipes.as_slice() {
        [] => Recipe::all()?,
        names => names.iter().map(|name| Recipe::load(name)).collect::<trainer::Result<_>>()?,
    };
    let mut trainer = Trainer::new(Glue::locate()?, &arguments.runs).device(arguments.device.clone());
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
        return Ok(());
    }
    for Planned { name, run, .. } in plan.iter().filter(|planned| planned.record.is_none()) {
        println!("{name}");
        let record = trainer.run(run)?;
        if !record.stop.is_final() {
            println!("{}", record.stop);
            return Ok(());
        }
        println!("  {}", results::publish(&arguments.results, name, &record)?.display());
    }
    Ok(())
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
                    "to do; how long is not known, since no record tells how fast its method is".into()
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
            "{missing} runs to do: about {minutes:.0} min of training, {unknown} of unknown length, and the evaluations"
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
