//! The measured speed of a machine, on a tiny checkpoint.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::time::Instant;

use glue::{Glue, Task};
use peft::Method;
use trainer::{Run, Trainer};

#[test]
fn a_speed_is_measured_once_for_each_method_and_remembered_beside_the_records() {
    let (model, runs) = (support::model(), tempfile::tempdir().unwrap());
    let trainer = || Trainer::new(Glue::synthetic("a test"), runs.path());
    let run = |method| {
        let settings = |s: &mut trainer::Settings| (s.max_length, s.batch_size) = (40, 8);
        Run::new(Task::Synthetic, &model.path().to_string_lossy(), method).with(settings)
    };
    let began = Instant::now();
    let first = trainer().speed(&run(Method::bitfit())).unwrap();
    assert!(first.training > 0.0 && first.evaluation > 0.0);
    assert!(
        first.evaluation * began.elapsed().as_secs_f64() >= 64.0,
        "as many tokens at least as sequences, in that time"
    );
    let again = trainer().speed(&run(Method::bitfit()).seed(2)).unwrap();
    assert_eq!(again, first, "another process, another seed: the same machine");
    let other = trainer().speed(&run(Method::Full)).unwrap();
    assert!(other != first, "another method is measured for itself");
    assert_eq!(trainer().speed(&run(Method::Full)).unwrap(), other);

    std::fs::write(runs.path().join("speeds.json"), "torn").unwrap();
    let error = trainer().speed(&run(Method::Full)).unwrap_err().to_string();
    assert!(error.contains("speeds.json") && error.contains("remove the file"), "{error}");
}
