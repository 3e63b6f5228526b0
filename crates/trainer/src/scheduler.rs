//! Runs jobs concurrently, on as many threads as asked for, and returns their results in the order of the jobs.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// One of the places for jobs that run concurrently. A job has one from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Counted from 0.
    pub number: usize,
    /// How many slots there are.
    pub at_once: usize,
}

impl Slot {
    /// That of a job which runs alone.
    pub(crate) const ALONE: Self = Self { number: 0, at_once: 1 };
}

/// The results of all jobs, in their order. At most `at_once` jobs run concurrently, and none more than there are jobs; each begins in
/// the order of the jobs. `run` is given a job's index, the job, and its slot.
///
/// # Errors
/// That of the first job, in their order, that failed. No job begins after a failure; those that run by then go on to their end.
pub(crate) fn run_all<J: Sync, T: Send, E: Send>(
    jobs: &[J],
    at_once: usize,
    run: impl Fn(usize, &J, Slot) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let at_once = at_once.min(jobs.len()).max(1);
    let (queue, failed) = (Mutex::new(jobs.iter().enumerate()), AtomicBool::new(false));
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.load(Ordering::Relaxed) { None } else { queue.next() }
    };
    let work = |number| {
        let mut results = Vec::new();
        while let Some((index, job)) = next() {
            let result = run(index, job, Slot { number, at_once });
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.push((index, result));
        }
        results
    };
    let mut results = thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..at_once).map(|number| scope.spawn(move || work(number))).collect();
        let mut results = work(0);
        for other in others {
            results.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        results
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use std::sync::atomic::AtomicUsize;
    use std::sync::{Barrier, mpsc};
    use std::time::Duration;

    use super::*;

    type Outcome = Result<usize, String>;

    #[test]
    fn results_come_in_the_order_of_the_jobs_whichever_ends_first() {
        // The first job ends when the last has.
        let (ended, end) = mpsc::channel();
        let (ended, end) = (Mutex::new(ended), Mutex::new(end));
        let run = |index: usize, &job: &usize, _: Slot| -> Outcome {
            match index {
                0 => end.lock().unwrap().recv_timeout(Duration::from_secs(10)).map_err(|error| error.to_string())?,
                3 => ended.lock().unwrap().send(()).unwrap(),
                _ => {}
            }
            Ok(10 * job)
        };
        assert_eq!(run_all(&[1, 2, 3, 4], 2, run).unwrap(), [10, 20, 30, 40]);
    }

    #[test]
    fn as_many_jobs_run_concurrently_as_asked_for_and_never_more_each_in_a_slot_of_its_own() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let taken = [(); 3].map(|()| AtomicBool::new(false));
        let all_slots = Barrier::new(3); // Nine jobs pass it in threes, or never.
        let run = |_: usize, _: &(), slot: Slot| -> Outcome {
            assert_eq!(slot.at_once, 3);
            assert!(!taken[slot.number].swap(true, Ordering::SeqCst));
            most.fetch_max(1 + running.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            all_slots.wait();
            running.fetch_sub(1, Ordering::SeqCst);
            taken[slot.number].store(false, Ordering::SeqCst);
            Ok(slot.number)
        };
        assert_eq!(run_all(&[(); 9], 3, run).unwrap().len(), 9);
        assert_eq!(most.into_inner(), 3);
    }

    #[test]
    fn there_are_no_more_slots_than_jobs_and_at_least_one() {
        let slot = |_: usize, _: &(), slot: Slot| -> Result<Slot, String> { Ok(slot) };
        assert_eq!(run_all(&[()], 4, slot).unwrap(), [Slot::ALONE]);
        assert_eq!(run_all(&[()], 0, slot).unwrap(), [Slot::ALONE]);
        assert_eq!(run_all(&[], 4, slot).unwrap(), []);
    }

    #[test]
    fn after_a_failure_no_job_begins() {
        let run =
            |index: usize, _: &(), _: Slot| -> Outcome { if index < 2 { Ok(index) } else { Err(index.to_string()) } };
        assert_eq!(run_all(&[(); 5], 1, run).unwrap_err(), "2");
    }

    #[test]
    fn a_job_that_runs_while_another_fails_comes_to_its_end() {
        let (both_run, ended) = (Barrier::new(2), AtomicBool::new(false));
        let run = |index: usize, _: &(), _: Slot| -> Outcome {
            both_run.wait();
            if index == 1 {
                return Err("no memory".into());
            }
            thread::sleep(Duration::from_millis(20));
            ended.store(true, Ordering::SeqCst);
            Ok(0)
        };
        assert_eq!(run_all(&[(); 2], 2, run).unwrap_err(), "no memory");
        assert!(ended.into_inner());
    }

    #[test]
    fn of_several_failures_that_of_the_first_job_is_returned() {
        let both_run = Barrier::new(2);
        let run = |index: usize, _: &(), _: Slot| -> Outcome {
            both_run.wait();
            Err(index.to_string())
        };
        assert_eq!(run_all(&[(); 2], 2, run).unwrap_err(), "0");
    }
}
