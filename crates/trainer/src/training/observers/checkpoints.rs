//! Writes a checkpoint once in a while, from which a run goes on after it was killed.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::checkpoint;
use crate::error::Result;
use crate::record::Stop;
use crate::training::Training;
use crate::training::observers::Observer;

/// How often checkpoints are made. It has no part in what a run comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointEvery {
    /// After so much time, but the first after 10 seconds at the latest. The pause grows where saving takes long: all but the first together
    /// take at most a fiftieth of the time.
    Time(Duration),
    /// After so many steps, whatever that costs; 0 counts as 1.
    Steps(usize),
}

impl Default for CheckpointEvery {
    /// Every minute.
    fn default() -> Self {
        Self::Time(Duration::from_secs(60))
    }
}

/// Time until the first checkpoint.
const FIRST: Duration = Duration::from_secs(10);
/// One part in so many is the most of the time that checkpoints may take.
const PARTS: u32 = 50;

/// The checkpoint of a run.
pub(crate) struct Checkpoints {
    path: PathBuf,
    every: CheckpointEvery,
    pauses: Pauses,
}

/// What was saved so far, and how long that took.
#[derive(Clone, Copy)]
struct Pauses {
    began: Instant,
    saved: Option<Instant>,
    /// Of all checkpoints together, and of the last one.
    spent: Duration,
    last: Duration,
}

impl Pauses {
    /// Whether it is time for a checkpoint. One more that costs as much as the last must be within the part of the time that is theirs.
    fn are_over(&self, pause: Duration, now: Instant) -> bool {
        let Some(saved) = self.saved else {
            return now.duration_since(self.began) >= pause.min(FIRST);
        };
        now.duration_since(saved) >= pause
            && now.duration_since(self.began) >= (self.spent + self.last).saturating_mul(PARTS)
    }

    fn note(&mut self, began: Instant, ended: Instant) {
        self.saved = Some(ended);
        self.last = ended.duration_since(began);
        self.spent += self.last;
    }
}

impl Checkpoints {
    pub(crate) fn new(path: PathBuf, every: CheckpointEvery) -> Self {
        let pauses = Pauses { began: Instant::now(), saved: None, spent: Duration::ZERO, last: Duration::ZERO };
        Self { path, every, pauses }
    }

    /// Writes the checkpoint now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn save(&mut self, training: &mut Training) -> Result<()> {
        let began = Instant::now();
        checkpoint::save(&self.path, &mut training.learner.optimizer, &training.state)?;
        self.pauses.note(began, Instant::now());
        Ok(())
    }
}

impl Observer for Checkpoints {
    fn is_due(&self, step: usize, steps: usize) -> bool {
        step < steps
            && match self.every {
                CheckpointEvery::Steps(every) => step.is_multiple_of(every.max(1)),
                CheckpointEvery::Time(pause) => self.pauses.are_over(pause, Instant::now()),
            }
    }

    fn after_step(&mut self, training: &mut Training) -> Result<ControlFlow<Stop>> {
        self.save(training)?;
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds at which checkpoints are made that take so long, of an hour with a step each second.
    fn seconds(pause: u64, cost: Duration) -> Vec<u64> {
        let began = Instant::now();
        let mut pauses = Pauses { began, saved: None, spent: Duration::ZERO, last: Duration::ZERO };
        let mut made = Vec::new();
        for second in 1..3600 {
            let now = began + Duration::from_secs(second);
            if pauses.are_over(Duration::from_secs(pause), now) {
                pauses.note(now, now + cost);
                made.push(second);
            }
        }
        made
    }

    #[test]
    fn the_first_checkpoint_is_made_in_the_first_minute_and_the_others_as_often_as_asked_for() {
        let quick = Duration::from_millis(20);
        assert_eq!(seconds(60, quick)[..4], [10, 71, 132, 193]);
        assert_eq!(seconds(3, quick)[..4], [3, 7, 11, 15]);
    }

    #[test]
    fn checkpoints_that_take_long_are_made_seldom_and_take_a_fiftieth_of_the_time() {
        for cost in [2, 5, 20] {
            let made = seconds(60, Duration::from_secs(cost));
            assert_eq!(made[0], 10);
            for (before, second) in made[1..].iter().enumerate() {
                assert!((before as u64 + 2) * cost * 50 <= *second, "{cost} s each: {made:?}");
            }
            assert!(made.len() as u64 * cost * 50 > 3600 - 50 * cost - 60, "{cost} s each: {made:?}");
        }
    }
}
