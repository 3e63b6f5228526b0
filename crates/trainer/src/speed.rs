//! Measures how fast this processor or GPU trains and evaluates, and remembers it, so that a budget of time becomes a number of examples.

use std::path::Path;
use std::time::Instant;

use peft::Precision;
use serde::{Deserialize, Serialize};

use crate::batches::RunBatches;
use crate::data::TaskData;
use crate::environment::environment;
use crate::error::{Error, Result};
use crate::evaluation::evaluate;
use crate::files;
use crate::run::Run;
use crate::trainer::Trainer;
use crate::training::step::{Learner, Update};

/// Tokens per second, of a method on a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Of training steps.
    pub training: f64,
    /// Of an evaluation.
    pub evaluation: f64,
}

/// A speed with what it depends on.
#[derive(Serialize, Deserialize)]
struct Measured {
    #[serde(flatten)]
    conditions: Conditions,
    speed: Speed,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Conditions {
    processor: String,
    threads: usize,
    device: String,
    model: String,
    method: String,
    precision: Precision,
}

/// Steps that are timed, after one that is not.
const STEPS: usize = 3;

/// The speed of a run's method, model and precision on this machine: as `path` remembers it, else measured on a few of the run's batches.
/// It is remembered, so that a study that was planned by it finds its runs again.
pub(crate) fn speed(trainer: &mut Trainer, run: &Run, path: &Path) -> Result<Speed> {
    let unreadable = |error: serde_json::Error| Error::Content {
        path: path.into(),
        expected: "the speeds of this machine",
        found: error.to_string(),
    };
    let mut known: Vec<Measured> = match files::read(path)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(unreadable)?,
        None => Vec::new(),
    };
    let environment = environment();
    let conditions = Conditions {
        processor: environment.processor,
        threads: environment.threads,
        device: format!("{:?}", trainer.opened_device()?.location()),
        model: run.model.clone(),
        method: run.method_name(),
        precision: run.settings.precision,
    };
    if let Some(found) = known.iter().find(|measured| measured.conditions == conditions) {
        return Ok(found.speed);
    }
    let speed = measure(trainer, run)?;
    known.push(Measured { conditions, speed });
    files::write_atomically(path, &serde_json::to_vec_pretty(&known).map_err(unreadable)?)?;
    Ok(speed)
}

/// The fastest of a few steps, since whatever else the machine does only slows them, and an evaluation of a few sequences.
fn measure(trainer: &mut Trainer, run: &Run) -> Result<Speed> {
    let data = trainer.data(run)?;
    let model = trainer.untrained_model(run)?;
    let mut learner = Learner::new(model, &run.settings)?;
    let mut batches = RunBatches::new(run, &data.train);
    let steps = batches.steps_per_epoch().min(1 + STEPS);
    let mut training = 0.0f64;
    for index in 0..steps {
        let shard = batches.get(index)?;
        let began = Instant::now();
        let loss = learner.step(&shard, Update { index, factor: 1.0 }, &mut None)?;
        loss.to_scalar::<f32>()?; // Waits for a GPU.
        if index > 0 || steps == 1 {
            training = training.max(shard.batch.tokens() as f64 / began.elapsed().as_secs_f64());
        }
    }
    let TaskData { task, train, .. } = &*data;
    let few = train.selected(&(0..train.len().min(64)).collect::<Vec<_>>());
    let began = Instant::now();
    evaluate(&learner.model, *task, &few)?;
    let evaluation = few.lengths().iter().sum::<usize>() as f64 / began.elapsed().as_secs_f64();
    Ok(Speed { training, evaluation })
}
