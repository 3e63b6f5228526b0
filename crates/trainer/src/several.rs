//! Several runs of one trainer, at once or one after the other.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::{Error, Result};
use crate::progress::{Verbosity, Voice};
use crate::record::Record;
use crate::run::{Run, StartsFrom};
use crate::sitting::describe;
use crate::trainer::Trainer;

/// Where a run sits among those that are under way at once.
#[derive(Clone, Copy)]
pub(crate) struct Seat {
    /// From 0.
    pub number: usize,
    pub at_once: usize,
}

impl Seat {
    pub const ALONE: Self = Self { number: 0, at_once: 1 };
}

/// What a run leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// Its record; the weights if the trainer keeps them.
    Record,
    /// The weights too, whatever the trainer keeps: another run starts from them.
    Weights,
}

/// The record of a run, after that of what it starts from. The trainer is held until all that the run needs is there, and free while it
/// trains.
pub(crate) fn record(
    trainer: &Mutex<&mut Trainer>,
    run: &Run,
    seat: Seat,
    voice: Voice,
    leaves: Leaves,
) -> Result<Record> {
    if let Some(record) = lock(trainer).found(run, &voice, leaves)? {
        return Ok(record);
    }
    if let Some(StartsFrom::Run(first)) = &run.starts_from {
        let record = record(trainer, first, seat, voice.clone(), Leaves::Weights)?;
        if !record.stop.is_final() {
            let [run, start] = [run, first].map(describe);
            return Err(Error::StartUnfinished { run, start, stop: record.stop.to_string() });
        }
    }
    let sitting = lock(trainer).sitting(run, seat, voice, leaves)?;
    sitting.record()
}

/// The records of all runs, in their order.
pub(crate) fn records(
    trainer: &mut Trainer,
    runs: &[Run],
    verbosity: Verbosity,
    at_once: usize,
) -> Result<Vec<Record>> {
    let keys: Vec<String> = runs.iter().map(Run::key).collect();
    let begin = |index: usize| {
        let voice = Voice::new(verbosity);
        if at_once > 1 {
            return (&runs[index], voice.at(index + 1, runs.len()));
        }
        if runs.len() > 1 {
            voice.say(&format!("[{}/{}]", index + 1, runs.len()));
        }
        (&runs[index], voice)
    };
    // What several start from is made once, before them.
    let mut starts: Vec<&Run> = Vec::new();
    for run in runs {
        if let Some(StartsFrom::Run(start)) = &run.starts_from
            && !starts.contains(&&**start)
            && trainer.found(run, &Voice::new(Verbosity::Silent), Leaves::Record)?.is_none()
        {
            starts.push(start);
        }
    }
    for start in starts {
        record(&Mutex::new(&mut *trainer), start, Seat::ALONE, Voice::new(verbosity), Leaves::Weights)?;
    }
    // Equal runs have one folder: one that is there already is asked for again when it has ended.
    let (new, again): (Vec<usize>, Vec<usize>) =
        (0..runs.len()).partition(|&index| !keys[..index].contains(&keys[index]));
    let mut records = those(trainer, &new, begin, at_once)?;
    records.extend(those(trainer, &again, begin, 1)?);
    records.sort_by_key(|(index, _)| *index);
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

/// The records of the runs of these indices, each beside its index; `begin` announces one, and says it with its voice.
fn those<'a>(
    trainer: &mut Trainer,
    indices: &[usize],
    begin: impl Fn(usize) -> (&'a Run, Voice) + Sync,
    at_once: usize,
) -> Result<Vec<(usize, Record)>> {
    let at_once = at_once.min(indices.len()).max(1);
    let (trainer, queue, failed) = (Mutex::new(trainer), Mutex::new(indices.iter()), AtomicBool::new(false));
    let next = || if failed.load(Ordering::Relaxed) { None } else { lock(&queue).next().copied() };
    // One run after the other, until there is none left or one has failed.
    let work = |number: usize| {
        let mut records = Vec::new();
        while let Some(index) = next() {
            let (run, voice) = begin(index);
            let record = record(&trainer, run, Seat { number, at_once }, voice.clone(), Leaves::Record);
            if let Err(error) = &record {
                failed.store(true, Ordering::Relaxed);
                if at_once > 1 {
                    voice.say(&format!("  failed: {error}"));
                }
            }
            records.push((index, record));
        }
        records
    };
    let mut records = thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..at_once).map(|number| scope.spawn(move || work(number))).collect();
        let mut records = work(0);
        for other in others {
            records.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        records
    });
    records.sort_by_key(|(index, _)| *index);
    records.into_iter().map(|(index, record)| Ok((index, record?))).collect()
}

/// A thread that failed left what it held whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
