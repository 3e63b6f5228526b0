//! The inputs that were once faults, and those that are changed, as they are.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use fuzz::allocator::{self, Counting};
use fuzz::input::repository;
use fuzz::worker::Inputs;
use fuzz::{Input, Outcome, all};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The memory of all threads is counted together: one test has the process for itself.
#[test]
fn every_target_takes_what_it_begins_from_and_survives_what_was_once_a_fault() {
    for (name, _) in all() {
        let mut inputs = Inputs::new(name, 1).unwrap();
        // By the same: checkpoints are of its own runs.
        let own: Vec<Input> = (0..).map(|index| inputs.get(index)).take(inputs.own()).collect();
        let mut run = |input: &Input| {
            allocator::begin();
            let outcome = inputs.run(input);
            (outcome, allocator::end())
        };
        for (index, input) in own.iter().enumerate() {
            assert_eq!(run(input).0.unwrap().unwrap(), Outcome::Accepted, "{name}: input {index} of its own");
        }
        let Ok(folders) = std::fs::read_dir(repository("fuzz/seeds").join(name)) else { continue };
        for folder in folders {
            let folder = folder.unwrap().path();
            let (outcome, memory) = run(&Input::load(&folder).unwrap());
            let outcome = outcome.unwrap_or_else(|panic| Err(std::io::Error::other(panic).into())).unwrap();
            assert!(!matches!(outcome, Outcome::Wrong(_)), "{}: {outcome:?}", folder.display());
            assert!(memory < 100 << 20, "{}: {memory} bytes", folder.display());
        }
    }
}
