//! How far the most frequent label of the training set gets on each task's validation set:
//! `cargo run -p peft-glue-data --example majority`

#![allow(clippy::print_stdout)] // An example is read where it is run.

use glue::{Glue, Split};

fn main() -> glue::Result<()> {
    let glue = Glue::find()?.unwrap_or_else(|| Glue::synthetic("no GLUE here"));
    for task in glue.tasks() {
        if ![Split::Train, Split::Validation].iter().all(|split| glue.splits(task).contains(split)) {
            continue;
        }
        let (train, validation) = (glue.load(task, Split::Train)?, glue.load(task, Split::Validation)?);
        let (Some(labels), Some(gold)) = (train.targets()?, validation.targets()?) else { continue };
        let scores = task.score(&labels.majority(gold.len()), &gold)?;
        println!("{task}: {:.3} on {} rows", scores.mean(), validation.completeness);
    }
    Ok(())
}

#[test]
fn it_runs() -> glue::Result<()> {
    main()
}
