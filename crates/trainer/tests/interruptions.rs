//! Runs that are asked to stop, that other processes want too, and whose checkpoints are made at other times; on a tiny checkpoint.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glue::{Glue, Task};
use peft::{AdaLora, Lora, Method};
use support::model;
use tempfile::TempDir;
use trainer::study::over_seeds;
use trainer::{CheckpointEvery, Error, Evaluate, Event, JobLogger, Logger, Place, Record, Run, Stop, Trainer};

/// Twelve short steps with dropout, an evaluation every fourth.
fn run(model: &TempDir, method: Method) -> Run {
    Run::new(Task::Synthetic, model.path().to_str().unwrap(), method).with(|s| {
        s.max_length = 40;
        s.train_limit = Some(24);
        s.batch_size = 8;
        s.epochs = 4;
        s.evaluate = Evaluate::Steps(4);
    })
}

fn trainer(runs: &Path) -> Trainer {
    Trainer::new(Glue::synthetic("a test"), runs).keep_weights(true)
}

/// What must not depend on interruptions: what was logged, and the bytes of the weights.
fn outcome(trainer: &Trainer, record: &Record) -> impl PartialEq + std::fmt::Debug + use<> {
    let weights = std::fs::read(trainer.folder(&record.run).join("weights.safetensors")).unwrap();
    (record.losses.clone(), record.evaluations.clone(), record.best.clone(), record.stop, record.tokens, weights)
}

/// A logger that hands each event on.
#[derive(Clone)]
struct Told<F>(F);

impl<F: Fn(&Event) + Clone + Send + Sync + 'static> Logger for Told<F> {
    fn job(&self, _place: Option<Place>) -> Box<dyn JobLogger> {
        Box::new(self.clone())
    }
}

impl<F: Fn(&Event) + Send> JobLogger for Told<F> {
    fn log(&mut self, event: &Event) {
        self.0(event);
    }
}

fn methods() -> [Method; 3] {
    let adalora = AdaLora { init_r: 3, target_r: 2, tinit: 1, tfinal: 2, ..AdaLora::default() };
    [Method::Lora(Lora { lora_dropout: 0.1, ..Lora::rank(4) }), Method::AdaLora(adalora), Method::Full]
}

#[test]
fn a_run_that_is_asked_to_stop_at_any_moment_goes_on_to_the_bits_of_one_that_was_not() {
    let model = model();
    for method in methods() {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = run(&model, method);
        let mut uninterrupted = trainer(whole.path());
        let expected = uninterrupted.run(&run).unwrap();
        assert_eq!((expected.stop, expected.losses.len(), expected.evaluations.len()), (Stop::Finished, 12, 3));
        let (mut parts_made, mut steps) = (0, Vec::new());
        loop {
            let flag = Arc::new(AtomicBool::new(false));
            let begun = Arc::new(AtomicBool::new(false));
            let seen = begun.clone();
            let mut interrupted = trainer(parts.path()).stop_when(flag.clone()).logger(Told(move |event: &Event| {
                seen.fetch_or(matches!(event, Event::Begun { .. }), Ordering::SeqCst);
            }));
            // From the moment that the model is there, each time a little later: within steps, evaluations and checkpoints.
            let delay = Duration::from_micros(300 * parts_made);
            let asked = std::thread::spawn(move || {
                while !begun.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_micros(50));
                }
                std::thread::sleep(delay);
                flag.store(true, Ordering::SeqCst);
            });
            let record = interrupted.run(&run).unwrap();
            asked.join().unwrap();
            if record.stop == Stop::Finished {
                assert!(outcome(&interrupted, &record) == outcome(&uninterrupted, &expected), "{}", run.key());
                assert!(!interrupted.folder(&run).join("checkpoint.safetensors").exists());
                break;
            }
            assert_eq!(record.stop, Stop::Interrupted);
            assert_eq!(record.losses[..], expected.losses[..record.losses.len()]);
            steps.push(record.losses.len());
            parts_made += 1;
        }
        assert!(parts_made > 2 && steps.is_sorted(), "stopped after the steps {steps:?}");
    }
}

#[test]
fn an_evaluation_that_is_interrupted_is_made_when_the_run_goes_on() {
    let model = model();
    for step in [4, 8, 12] {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = run(&model, Method::lora(2));
        let mut uninterrupted = trainer(whole.path());
        let expected = uninterrupted.run(&run).unwrap();
        let flag = Arc::new(AtomicBool::new(false));
        let set = flag.clone();
        let mut interrupted = trainer(parts.path()).stop_when(flag).logger(Told(move |event: &Event| {
            set.fetch_or(matches!(event, Event::Step { loss, .. } if loss.step == step), Ordering::SeqCst);
        }));
        let record = interrupted.run(&run).unwrap();
        assert_eq!((record.stop, record.losses.len()), (Stop::Interrupted, step));
        assert_eq!(record.evaluations.len(), step / 4 - 1, "the last is the one that was interrupted");
        let mut interrupted = trainer(parts.path());
        let record = interrupted.run(&run).unwrap();
        assert!(outcome(&interrupted, &record) == outcome(&uninterrupted, &expected), "after step {step}");
    }
}

#[test]
fn runs_at_once_all_stop_and_none_begins() {
    let model = model();
    let runs = over_seeds(&run(&model, Method::lora(2)).with(|s| s.epochs = 1000), &[1, 2, 3, 4]);
    let folder = tempfile::tempdir().unwrap();
    let (flag, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (set, counted) = (flag.clone(), begun.clone());
    let mut stopped = trainer(folder.path()).at_once(2).stop_when(flag).logger(Told(move |event: &Event| {
        counted.fetch_add(usize::from(matches!(event, Event::Begun { .. })), Ordering::SeqCst);
        let is_late = matches!(event, Event::Step { loss, .. } if loss.step == 20);
        set.fetch_or(is_late && counted.load(Ordering::SeqCst) == 2, Ordering::SeqCst);
    }));
    let error = stopped.run_all(&runs).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    let has = |run: &Run, file: &str| stopped.folder(run).join(file).exists();
    for (index, run) in runs.iter().enumerate() {
        assert_eq!(has(run, "checkpoint.safetensors"), index < 2);
        assert_eq!(has(run, "record.json"), index < 2);
    }
}

#[test]
fn when_and_how_often_checkpoints_are_made_changes_no_bit() {
    let model = model();
    for method in methods() {
        let run = run(&model, method);
        let every = [
            CheckpointEvery::default(),
            CheckpointEvery::Steps(1),
            CheckpointEvery::Steps(5),
            CheckpointEvery::Time(Duration::ZERO),
        ];
        let outcomes = every.map(|every| {
            let folder = tempfile::tempdir().unwrap();
            let mut trainer = trainer(folder.path()).checkpoint_every(every);
            let record = trainer.run(&run).unwrap();
            outcome(&trainer, &record)
        });
        assert!(outcomes[1..].iter().all(|outcome| *outcome == outcomes[0]), "{}", run.key());
    }
}

/// Says by one channel that a run has begun, and holds it up until the other says that it may go on.
fn held_up(begun: Sender<()>, goes_on: Receiver<()>) -> impl Logger {
    let channels = Arc::new(Mutex::new((begun, goes_on)));
    Told(move |event: &Event| {
        if matches!(event, Event::Begun { .. }) {
            let (begun, goes_on) = &*channels.lock().unwrap();
            begun.send(()).unwrap();
            goes_on.recv().unwrap();
        }
    })
}

#[test]
fn of_two_that_want_one_run_one_makes_it_and_the_other_waits_for_its_record_or_is_refused() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let run = run(&model, Method::lora(2));
    let ((begun, has_begun), (go_on, goes_on)) = (channel(), channel());
    let records = std::thread::scope(|scope| {
        let (run, folder) = (&run, folder.path());
        let first = scope.spawn(move || trainer(folder).logger(held_up(begun, goes_on)).run(run).unwrap());
        has_begun.recv().unwrap();
        let error = trainer(folder).waits(false).run(run).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Busy { .. }), "{message}");
        assert!(message.contains(&format!("process {}", std::process::id())) && message.contains("lock"), "{message}");
        let flag = Arc::new(AtomicBool::new(false));
        let set = flag.clone();
        let stopped = trainer(folder).stop_when(flag).logger(Told(move |event: &Event| {
            set.fetch_or(matches!(event, Event::Waiting { .. }), Ordering::SeqCst);
        }));
        let error = { stopped }.run(run).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
        let second = scope.spawn(move || {
            let waiting = Told(move |event: &Event| match event {
                Event::Waiting { .. } => go_on.send(()).unwrap(),
                Event::Begun { .. } => panic!("it is made twice"),
                _ => {}
            });
            trainer(folder).logger(waiting).run(run).unwrap()
        });
        [first.join().unwrap(), second.join().unwrap()]
    });
    // Down to its seconds: it is one record.
    assert_eq!(records[0], records[1]);
}

#[test]
fn who_watches_a_folder_sees_what_ended_what_is_under_way_and_what_its_process_left() {
    use trainer::progress::{State, of_folder};
    let (model, runs) = (model(), tempfile::tempdir().unwrap());
    let [whole, cut, under_way] = [1, 2, 3].map(|seed| run(&model, Method::bitfit()).seed(seed));
    let record = trainer(runs.path()).run(&whole).unwrap();
    // A stop file ends the second after a step; without its record it looks as one that was killed then.
    std::fs::write(runs.path().join("stop"), "").unwrap();
    trainer(runs.path()).run(&cut).unwrap();
    std::fs::remove_file(runs.path().join("stop")).unwrap();
    let left = trainer(runs.path()).folder(&cut);
    std::fs::remove_file(left.join("record.json")).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (folder, at_step) = (runs.path().to_path_buf(), seen.clone());
    let told = Told(move |event: &Event| {
        if matches!(event, Event::Step { .. }) {
            *at_step.lock().unwrap() = of_folder(&folder).unwrap();
        }
    });
    trainer(runs.path()).logger(told).run(&under_way).unwrap();

    let seen = seen.lock().unwrap();
    let of = |run: &Run| {
        let name = trainer(runs.path()).folder(run);
        seen.iter().find(|progress| Some(progress.folder.as_str()) == name.file_name().unwrap().to_str()).unwrap()
    };
    assert_eq!(seen.len(), 3);
    let ended = of(&whole);
    assert_eq!(
        (ended.state, ended.step, ended.run.as_deref()),
        (State::Ended(Stop::Finished), 12, Some(whole.name().as_str()))
    );
    assert_eq!(ended.best.as_ref().map(|(_, scores)| scores), record.best.as_ref().map(|best| &best.scores));
    let left = of(&cut);
    assert_eq!((left.state, left.step, left.loss.is_some()), (State::Left, 1, true));
    assert_eq!(of(&under_way).state, State::UnderWay);
    let after = of_folder(runs.path()).unwrap();
    assert!(after.iter().all(|progress| progress.state != State::UnderWay));
}
