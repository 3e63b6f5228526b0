//! What a logger is told of runs, on a tiny checkpoint.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use glue::{Glue, Task};
use peft::Method;
use support::model;
use tempfile::TempDir;
use trainer::{DeviceName, Event, JobLogger, Logger, Place, Run, Trainer};

/// Collects the events of all jobs in a few words, each after the place of its job.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<String>>>);

struct JobCollector(Collector, String);

impl Logger for Collector {
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger> {
        Box::new(JobCollector(self.clone(), place.map(|place| place.to_string()).unwrap_or_default()))
    }
}

impl JobLogger for JobCollector {
    fn log(&mut self, event: &Event) {
        let words = match event {
            Event::Found { .. } => "found".into(),
            Event::Remark { .. } => "note".into(),
            Event::Begun { .. } => "begun".into(),
            Event::Resumed { step, steps } => format!("resumed {step}/{steps}"),
            Event::Step { loss, steps, .. } => format!("step {}/{steps}", loss.step),
            Event::Evaluated { evaluation, .. } => format!("evaluated {}", evaluation.step),
            Event::Ended { stop, .. } => format!("ended {stop:?}"),
            other => other.to_string(),
        };
        self.0.0.lock().unwrap().push(format!("{}{words}", self.1));
    }
}

impl Collector {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn trainer(runs: &TempDir, logger: &Collector) -> Trainer {
    Trainer::new(Glue::synthetic("a test"), runs.path()).device(DeviceName::Cpu).logger(logger.clone())
}

/// Two steps, one in each epoch.
fn run(model: &TempDir) -> Run {
    Run::new(Task::Synthetic, model.path().to_str().unwrap(), Method::bitfit()).with(|s| {
        s.max_length = 40;
        s.train_limit = Some(8);
        s.batch_size = 8;
        s.epochs = 2;
    })
}

#[test]
fn a_job_logs_its_begin_each_step_and_evaluation_and_its_end_and_where_it_was_resumed() {
    let (model, runs, logger) = (model(), tempfile::tempdir().unwrap(), Collector::default());
    let mut interrupted = trainer(&runs, &logger).time_budget(Some(Duration::ZERO));
    interrupted.run(&run(&model)).unwrap();
    // The checkpoint's classifier is for three labels, the task has two: it is told once.
    assert_eq!(logger.take(), ["note", "begun", "step 1/2", "evaluated 1", "ended TimeBudget"]);
    interrupted.run(&run(&model)).unwrap();
    assert_eq!(logger.take(), ["begun", "resumed 1/2", "step 2/2", "evaluated 2", "ended Finished"]);
    interrupted.run(&run(&model)).unwrap();
    assert_eq!(logger.take(), ["found"]);
}

#[test]
fn each_of_several_jobs_has_its_place_and_one_that_fails_is_logged_where_others_go_on() {
    let (model, runs, logger) = (model(), tempfile::tempdir().unwrap(), Collector::default());
    let runs_asked = [run(&model), run(&model), run(&model).with(|s| s.max_length = 5000)];
    trainer(&runs, &logger).at_once(2).run_all(&runs_asked).unwrap_err();
    let events = logger.take();
    assert_eq!(events.iter().filter(|event| event.starts_with("[1/2] ")).count(), 6, "{events:?}");
    assert!(events.iter().any(|event| event.starts_with("[2/2]   failed: setting max_length")), "{events:?}");
}
