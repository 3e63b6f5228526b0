//! A process that gives a target one input after the other, and says in a file how far it is: whoever started it sees the input that ended it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::allocator;
use crate::input::{Input, repository};
use crate::mutation::mutate;
use crate::targets::{Outcome, Target, all};

/// How often a fault at one place is kept.
const KEPT: usize = 3;

/// How far a worker is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The input under way.
    pub index: u64,
    /// When it began, in milliseconds since 1970; 0: the worker sets up its target.
    pub began: u64,
    /// Inputs that were given.
    pub inputs: u64,
    /// Of these, taken by the target.
    pub accepted: u64,
    /// Panics.
    pub panics: u64,
    /// Inputs that were got wrong.
    pub wrong: u64,
    /// The most bytes that an input took.
    pub most_memory: u64,
}

impl Progress {
    /// Reads what a worker wrote.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let number = |place: usize| {
            let bytes = bytes.get(8 * place..8 * place + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let [index, began, inputs, accepted, panics, wrong, most_memory] = std::array::from_fn(number);
        Ok(Self { index, began, inputs, accepted, panics, wrong, most_memory })
    }

    fn write(&self, file: &File) -> Result<()> {
        let Self { index, began, inputs, accepted, panics, wrong, most_memory } = *self;
        let numbers = [index, began, inputs, accepted, panics, wrong, most_memory];
        Ok(file.write_all_at(&numbers.map(u64::to_le_bytes).concat(), 0)?)
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// Where the inputs of faults are kept.
pub fn findings(target: &str) -> PathBuf {
    repository("target/fuzz/findings").join(target)
}

/// A target and the inputs that a seed gives it.
pub struct Inputs {
    target: Box<dyn Target>,
    name: String,
    seed: u64,
}

impl Inputs {
    /// Those of the target of that name.
    ///
    /// # Errors
    /// When there is none, or it cannot be set up.
    pub fn new(name: &str, seed: u64) -> Result<Self> {
        let names = || all().map(|(name, _)| name).join(", ");
        let (_, set_up) = all()
            .into_iter()
            .find(|(other, _)| *other == name)
            .ok_or_else(|| anyhow!("no target {name}; there are {}", names()))?;
        let target = set_up().with_context(|| format!("setting up {name}"))?;
        Ok(Self { target, name: name.into(), seed })
    }

    /// How many inputs the target begins from.
    pub fn own(&self) -> usize {
        self.target.seeds().len()
    }

    /// The input of that number: one of the target's, changed. The first ones are its own as they are.
    pub fn get(&self, index: u64) -> Input {
        let seeds = self.target.seeds();
        if let Some(seed) = usize::try_from(index).ok().and_then(|index| seeds.get(index)) {
            return seed.clone();
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(index);
        let mut input = seeds.choose(&mut random).cloned().unwrap_or_default();
        // Half of the time the parts that are put in are the input's own.
        let other = if random.random_bool(0.5) { seeds.choose(&mut random).cloned() } else { None };
        let other = other.unwrap_or_else(|| input.clone());
        mutate(&mut random, &mut input, &other);
        input
    }

    /// Has the target read an input. The error is what a panic says, and where it was.
    pub fn run(&mut self, input: &Input) -> Result<Result<Outcome>, String> {
        PANIC.with_borrow_mut(String::clear);
        catch_unwind(AssertUnwindSafe(|| self.target.run(input))).map_err(|_| PANIC.with_borrow(String::clone))
    }

    /// Keeps an input, with a line on what came of it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep(&self, input: &Input, kind: &str, index: u64, about: &str) -> Result<()> {
        let folder = findings(&self.name).join(format!("{kind}-{}-{index}", self.seed));
        input.store(&folder)?;
        Ok(std::fs::write(folder.with_extension("log"), format!("{about}\n"))?)
    }
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Has panics leave their place for [`Inputs::run`], and print nothing.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let said = panic.payload_as_str().unwrap_or_default();
        PANIC.with_borrow_mut(|text| *text = format!("{place}: {said}"));
    }));
}

/// Works from an input on, until a time. The process ends in between where an input takes too much memory or aborts.
///
/// # Errors
/// When the target cannot be set up, or a file cannot be written.
pub fn work(target: &str, seed: u64, from: u64, progress: &Path, until: u64) -> Result<()> {
    keep_panics();
    let file = File::options().write(true).create(true).truncate(true).open(progress)?;
    let mut progress = Progress { index: from, ..Progress::default() };
    progress.write(&file)?;
    let mut inputs = Inputs::new(target, seed)?;
    let mut kept: BTreeMap<String, usize> = BTreeMap::new();
    for index in from.. {
        (progress.index, progress.began) = (index, now());
        progress.write(&file)?;
        if progress.began >= until {
            return Ok(());
        }
        let input = inputs.get(index);
        allocator::begin();
        let outcome = inputs.run(&input);
        progress.most_memory = progress.most_memory.max(allocator::end() as u64);
        progress.inputs += 1;
        let (kind, about) = match outcome {
            Ok(Ok(Outcome::Accepted)) => {
                progress.accepted += 1;
                continue;
            }
            Ok(Ok(Outcome::Refused(_))) => continue,
            Ok(Ok(Outcome::Wrong(about))) => {
                progress.wrong += 1;
                ("wrong", about)
            }
            Ok(Err(error)) => {
                progress.wrong += 1;
                ("wrong", format!("{error:#}"))
            }
            Err(panic) => {
                progress.panics += 1;
                ("panic", panic)
            }
        };
        let place = match kind {
            "panic" => about.split(": ").next().unwrap_or_default().to_string(),
            _ => about.chars().filter(|character| character.is_alphabetic()).take(30).collect(),
        };
        let times = kept.entry(place).or_default();
        *times += 1;
        if *times <= KEPT {
            inputs.keep(&input, kind, index, &about)?;
        }
    }
    Ok(())
}
