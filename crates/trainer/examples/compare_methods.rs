//! BitFit beside LoRA on one task, two seeds each:
//! `cargo run -p peft-glue-trainer --example compare_methods -- mrpc`

#![allow(clippy::print_stdout)] // An example is read where it is run.

use glue::{Glue, Task};
use peft::Method;
use trainer::statistics::mean_and_deviation;
use trainer::{DEFAULT_MODEL, Result, Run, Trainer};

fn main() -> Result<()> {
    let task: Task = match std::env::args().nth(1) {
        Some(name) => name.parse()?,
        None => Task::Mrpc,
    };
    // A run that has a record in this folder is not trained again.
    let mut trainer = Trainer::new(Glue::locate()?, "runs");
    compare(&mut trainer, |method| Run::new(task, DEFAULT_MODEL, method))
}

fn compare(trainer: &mut Trainer, run: impl Fn(Method) -> Run) -> Result<()> {
    for method in [Method::bitfit(), Method::lora(8)] {
        let mut scores = Vec::new();
        for seed in [1, 2] {
            let record = trainer.run(&run(method.clone()).seed(seed))?;
            scores.push(record.best_score());
        }
        let (mean, deviation) = mean_and_deviation(&scores);
        println!("{method}: {mean:.3} ± {deviation:.3}");
    }
    Ok(())
}

#[test]
#[ignore = "needs models/: make test"]
fn it_runs() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let runs = tempfile::tempdir()?;
    let mut trainer = Trainer::new(Glue::synthetic("a test"), runs.path());
    let few = |method| {
        Run::new(Task::Synthetic, DEFAULT_MODEL, method).with(|settings| {
            settings.train_limit = Some(8);
            settings.epochs = 1;
        })
    };
    Ok(compare(&mut trainer, few)?)
}
