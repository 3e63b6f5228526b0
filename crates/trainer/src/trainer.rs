//! The trainer: turns runs into records, and holds what they share: data, pretrained models and devices.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Device;
use glue::{Glue, Split, Targets, Task};
use peft::{Adapter, Model, ModelOptions, Pretrained, Remark, Warning};
use serde::Deserialize;

use crate::checkpoint;
use crate::claim::claim;
use crate::data::{TaskData, check_trainable};
use crate::device::{self, DeviceName};
use crate::error::{Error, Result};
use crate::evaluation::predict;
use crate::events::{Event, Logger, Place, Silent};
use crate::files::{self, RunFolder};
use crate::inputs::{Digests, Inputs};
use crate::integrity::Origin;
use crate::job::{Job, build_model, training_batches};
use crate::limits::Limits;
use crate::losses;
use crate::provenance;
use crate::record::{Record, StepLoss, Stop};
use crate::run::{Run, Settings, StartsFrom};
use crate::scheduler::{self, Slot};
use crate::speed::{self, Speed};
use crate::token_cache::TokenCache;
use crate::tokenizer::Tokenizer;
use crate::training::observers::CheckpointEvery;

/// Turns runs into records. A run that has a finished record is not run again; one that was interrupted goes on.
///
/// Each run has a folder of its own below the runs folder: `record.json`, the checkpoint while it runs, the trained weights of the
/// best evaluation, if they are few or asked for, and all losses, if they are more than a record holds. A file named `stop` in that folder,
/// or in the runs folder, ends a run after its present step, as does [`Trainer::stop_when`] within one. While a process makes a run it holds
/// the lock of a file `lock` in its folder; another that wants the same run waits for its record.
pub struct Trainer {
    glue: Glue,
    runs: PathBuf,
    published: Vec<Record>,
    trains: bool,
    keep_weights: bool,
    movement_examples: Option<usize>,
    limits: Limits,
    checkpoint_every: CheckpointEvery,
    waits: bool,
    logger: Box<dyn Logger>,
    device: DeviceName,
    at_once: usize,
    opened: Option<Vec<Device>>,
    /// By name and the digest of what it is read from.
    pretrained: HashMap<(String, Option<String>), Arc<Pretrained>>,
    digests: Mutex<Digests>,
    /// What was told of models already.
    told: Vec<Remark>,
    data: HashMap<DataKey, Arc<TaskData>>,
}

/// What the tokenized data of a run depends on.
#[derive(PartialEq, Eq, Hash)]
struct DataKey {
    task: Task,
    model: String,
    max_length: usize,
    train_limit: Option<usize>,
    train_extra: bool,
    held_out: bool,
    inputs: Inputs,
}

/// Where a run lies.
struct RunPlace {
    folder: RunFolder,
    inputs: Inputs,
    /// What is another than in the folder of its first inputs, and where that is.
    changed: Vec<&'static str>,
    before: PathBuf,
}

/// What a run is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Its record; the weights if the trainer keeps them.
    Record,
    /// The weights too, whatever the trainer keeps: another run starts from them.
    Weights,
}

impl Trainer {
    /// A trainer on this data, its records below `runs`.
    pub fn new(glue: Glue, runs: impl Into<PathBuf>) -> Self {
        let runs = runs.into();
        Self {
            digests: Mutex::new(Digests::new(runs.join("digests.json"))),
            glue,
            runs,
            published: Vec::new(),
            trains: true,
            keep_weights: false,
            movement_examples: None,
            limits: Limits::default(),
            checkpoint_every: CheckpointEvery::default(),
            waits: true,
            logger: Box::new(Silent),
            device: DeviceName::default(),
            at_once: 1,
            opened: None,
            pretrained: HashMap::new(),
            told: Vec::new(),
            data: HashMap::new(),
        }
    }

    /// Take these records as those of their runs, too: such as published ones ([`crate::results::load`]), whose runs are then not made
    /// again unless their weights are needed.
    pub fn published(mut self, records: Vec<Record>) -> Self {
        self.published.extend(records);
        self
    }

    /// Whether to make a run that has no record, as by default, or to fail.
    pub fn trains(mut self, trains: bool) -> Self {
        self.trains = trains;
        self
    }

    /// Keep the trained weights of every run's best evaluation, not only of those runs that train a small part of the model.
    pub fn keep_weights(mut self, keep: bool) -> Self {
        self.keep_weights = keep;
        self
    }

    /// Measure of each run that is made how far its steps moved the model, on the first so many validation examples, and record it.
    pub fn movement_examples(mut self, examples: Option<usize>) -> Self {
        self.movement_examples = examples;
        self
    }

    /// Stop after this much time from now on, in which data are tokenized and all runs are made. A run that is under way then takes its
    /// step to the end and is measured; each that follows takes one. Asked for again, they go on.
    pub fn time_budget(mut self, budget: Option<Duration>) -> Self {
        self.limits.deadline = budget.and_then(|budget| Instant::now().checked_add(budget));
        self
    }

    /// Stop soon after somebody sets this flag, such as a signal's handler, another thread or a button: between two operations of a step,
    /// of an evaluation, or of tokenizing. Each run that is under way then has a checkpoint and a record that says
    /// [`Stop::Interrupted`]; none begins. Asked for again, they go on, to the bits that they would have come to.
    pub fn stop_when(mut self, flag: Arc<AtomicBool>) -> Self {
        self.limits.stop = flag;
        self
    }

    /// How often a run that is under way has a checkpoint written, from which it goes on after its process was killed; by default every
    /// minute. What a run comes to does not depend on it.
    pub fn checkpoint_every(mut self, every: CheckpointEvery) -> Self {
        self.checkpoint_every = every;
        self
    }

    /// Whether to wait for the record of a run that another process is making, as by default, or to fail.
    pub fn waits(mut self, waits: bool) -> Self {
        self.waits = waits;
        self
    }

    /// Tell this logger what happens to runs, such as a [`LineLogger`](crate::LineLogger); by default nobody is told.
    pub fn logger(mut self, logger: impl Logger + 'static) -> Self {
        self.logger = Box::new(logger);
        self
    }

    /// Where runs are computed; by default [`DeviceName::Auto`]. It is opened when the first model is built.
    ///
    /// Several GPUs each have a shard of every batch, by its sequences, and the losses of one GPU but for rounding, since sums are taken
    /// in another order; with dropout its masks are others too. Equal runs on equally many GPUs give equal bits.
    pub fn device(mut self, name: DeviceName) -> Self {
        (self.device, self.opened) = (name, None);
        self
    }

    /// How many of several runs [`Trainer::run_all`] makes concurrently, each on a thread of its own, with a model and, of a GPU,
    /// a stream of its own; by default 1, as which 0 counts. Each gives the bits that it gives alone.
    ///
    /// It pays on a GPU that one small run does not fill. Each run takes its share of the memory: one that finds too little left
    /// takes its batches in parts, and logs it. On the CPU one run works on all cores, and several at once gain next to nothing.
    pub fn at_once(mut self, runs: usize) -> Self {
        self.at_once = runs.max(1);
        self
    }

    /// The data.
    pub fn glue(&self) -> &Glue {
        &self.glue
    }

    /// How fast this machine trains and evaluates with a run's method, model and precision. It is measured once, and kept in
    /// `speeds.json` beside the records.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn speed(&mut self, run: &Run) -> Result<Speed> {
        let path = self.runs.join("speeds.json");
        speed::speed(self, run, &path)
    }

    /// The folder of a run: one for each content of its data, model and tokenizer.
    pub fn folder(&self, run: &Run) -> PathBuf {
        self.files(run).path().into()
    }

    fn files(&self, run: &Run) -> RunFolder {
        self.place(run).folder
    }

    /// Where a run lies that is made from what is here now. The first of its folders is named by the run, each other by its inputs too; one
    /// whose files do not tell its inputs is of before they were told, and counts as of these.
    fn place(&self, run: &Run) -> RunPlace {
        let inputs = lock(&self.digests).of_run(&self.glue, run);
        let before = self.runs.join(run.key());
        let first = RunFolder::new(before.clone());
        let changed = told_inputs(&first).map(|told| inputs.changed_since(&told)).unwrap_or_default();
        let folder = match changed.is_empty() {
            true => first,
            false => RunFolder::new(self.runs.join(format!("{}-{}", run.key(), inputs.short()))),
        };
        RunPlace { folder, inputs, changed, before }
    }

    /// Fails where runs cannot be made for a reason that is known before data or a model is read: their settings, a file of the data that is
    /// missing, or a folder that cannot be written. Of those that have a record nothing but the settings matters.
    ///
    /// # Errors
    /// The message names the setting, the file or the folder.
    pub fn check(&self, runs: &[Run]) -> Result<()> {
        for run in runs {
            run.check()?;
            check_trainable(run.task)?;
        }
        for run in runs {
            if self.finished(run, Need::Record)?.is_some() {
                continue;
            }
            let validation = if run.settings.held_out { &[] } else { run.task.validation_splits() };
            for &split in [Split::Train].iter().chain(validation) {
                self.glue.require(run.task, split)?;
            }
            if run.settings.train_extra {
                self.glue.require_extra(run.task)?;
            }
            files::check_writable(self.files(run).path())?;
        }
        Ok(())
    }

    /// The finished record of a run, if it has one: of its own, else a published one.
    ///
    /// # Errors
    /// When there is a record that is not whole.
    pub fn record(&self, run: &Run) -> Result<Option<Record>> {
        let is_of = |record: &&Record| record.run == *run && record.stop.is_final() && self.has_inputs_of(record);
        Ok(self.own_record(run)?.or_else(|| self.published.iter().find(is_of).cloned()))
    }

    /// Whether nothing is known by which a record was made from other data, or another model or tokenizer, than its run would be now.
    pub fn has_inputs_of(&self, record: &Record) -> bool {
        let inputs = || lock(&self.digests).of_run(&self.glue, &record.run);
        record.inputs.as_ref().is_none_or(|told| inputs().changed_since(told).is_empty())
    }

    /// The losses of every step of a run that has a record; of a published one those that it holds.
    ///
    /// # Errors
    /// When the record or the file of the losses is not whole.
    pub fn losses(&self, run: &Run) -> Result<Option<Vec<StepLoss>>> {
        let Some(record) = self.record(run)? else { return Ok(None) };
        let RunPlace { folder, inputs, .. } = self.place(run);
        Ok(Some(losses::read(folder.path(), &Origin::new(run, &inputs))?.unwrap_or(record.losses)))
    }

    fn own_record(&self, run: &Run) -> Result<Option<Record>> {
        let RunPlace { folder, inputs, .. } = self.place(run);
        let Some(record) = Record::read(&folder.record())? else { return Ok(None) };
        if record.run != *run || !record.stop.is_final() {
            return Ok(None);
        }
        match record.inputs.as_ref().map(|told| inputs.changed_since(told)).unwrap_or_default().as_slice() {
            [] => Ok(Some(record)),
            changed => Err(Error::Content {
                path: folder.record(),
                expected: "the record of this run",
                found: format!("one that was made from another {}", changed.join(" and ")),
            }),
        }
    }

    /// Whether a run came to its end below this runs folder, and the weights of its best evaluation were kept.
    ///
    /// # Errors
    /// When there is a record that is not whole.
    pub fn has_weights(&self, run: &Run) -> Result<bool> {
        // Where there are weights without a record beside them, the run is on its way: it may not have been at its best yet.
        Ok(self.own_record(run)?.is_some() && self.files(run).weights().exists())
    }

    /// The record of a run: the one it has, or that of running it now.
    ///
    /// # Errors
    /// When data or model are missing or broken, a setting makes no sense, or a file cannot be written.
    pub fn run(&mut self, run: &Run) -> Result<Record> {
        Ok(self.run_all(std::slice::from_ref(run))?.swap_remove(0))
    }

    /// The records of several runs, in their order; [`Trainer::at_once`] says how many are made concurrently. Runs that others start from
    /// are made before all.
    ///
    /// # Errors
    /// As [`Trainer::run`], of the first run that failed. No run begins after a failure; those that are under way by then go on to
    /// their end, and have their records.
    pub fn run_all(&mut self, runs: &[Run]) -> Result<Vec<Record>> {
        self.check(runs)?;
        self.make_starts(runs)?;
        // Equal runs have one folder, one job and one record.
        let mut jobs: Vec<&Run> = Vec::new();
        let mut job_of = |run| {
            jobs.iter().position(|job| *job == run).unwrap_or_else(|| {
                jobs.push(run);
                jobs.len() - 1
            })
        };
        let job_of: Vec<usize> = runs.iter().map(&mut job_of).collect();
        let (of, at_once) = (jobs.len(), self.at_once);
        let trainer = Mutex::new(self);
        let records = scheduler::run_all(&jobs, at_once, |index, run, slot| {
            let place = (of > 1).then_some(Place { number: index + 1, of });
            Self::make(&trainer, run, Need::Record, slot, place)
        })?;
        Ok(job_of.into_iter().map(|job| records[job].clone()).collect())
    }

    /// Makes the runs that those without a record start from, each once.
    fn make_starts(&mut self, runs: &[Run]) -> Result<()> {
        let mut starts = Vec::new();
        for run in runs {
            self.add_starts(run, Need::Record, &mut starts)?;
        }
        for (run, start) in starts {
            let record = Self::make(&Mutex::new(&mut *self), start, Need::Weights, Slot::ALONE, None)?;
            if !record.stop.is_final() {
                let [run, start] = [run, start].map(Run::description);
                return Err(Error::StartUnfinished { run, start, stop: record.stop.to_string() });
            }
        }
        Ok(())
    }

    /// Adds what a run starts from, after what that starts from; nothing where the run is not made again.
    fn add_starts<'a>(&self, run: &'a Run, need: Need, starts: &mut Vec<(&'a Run, &'a Run)>) -> Result<()> {
        if let Some(StartsFrom::Run(start)) = &run.starts_from
            && !starts.iter().any(|(_, other)| *other == &**start)
            && self.finished(run, need)?.is_none()
        {
            self.add_starts(start, Need::Weights, starts)?;
            starts.push((run, start));
        }
        Ok(())
    }

    /// The record of a run, by a job of its own if it has none. The trainer is held until all that the job needs is there, and free
    /// while it trains.
    fn make(trainer: &Mutex<&mut Self>, run: &Run, need: Need, slot: Slot, place: Option<Place>) -> Result<Record> {
        let mut logger = lock(trainer).logger.job(place);
        let found = lock(trainer).finished(run, need)?;
        if let Some(record) = found {
            logger.log(&Event::Found { run });
            lock(trainer).tidy(run)?;
            return Ok(record);
        }
        if !lock(trainer).trains {
            return Err(Error::NoRecord { run: run.description() });
        }
        let RunPlace { folder, changed, before, .. } = lock(trainer).place(run);
        let (limits, waits) = {
            let trainer = lock(trainer);
            (trainer.limits.clone(), trainer.waits)
        };
        if limits.is_interrupted() {
            return Err(Error::Interrupted { place: run.description() });
        }
        if !changed.is_empty() && !folder.path().exists() {
            logger.log(&Event::Changed { run, changed: &changed, before: &before });
        }
        let claimed = claim(&folder, run, waits, &limits, &mut *logger)?;
        // Another process may have made it meanwhile.
        let found = lock(trainer).finished(run, need)?;
        if let Some(record) = found {
            logger.log(&Event::Found { run });
            return Ok(record);
        }
        if claimed.is_some() {
            folder.tidy(false);
        }
        let job = lock(trainer).job(run, need, slot);
        let record = job.and_then(|job| job.run(&mut *logger));
        if let (Err(error), true) = (&record, slot.at_once > 1) {
            logger.log(&Event::Failed { error });
        }
        record
    }

    /// Removes what a process that was killed between a run's record and its end has left beside it.
    fn tidy(&self, run: &Run) -> Result<()> {
        if self.own_record(run)?.is_some() {
            self.files(run).tidy_finished();
        }
        Ok(())
    }

    /// The record that a run has, if nothing of what is needed is missing.
    fn finished(&self, run: &Run, need: Need) -> Result<Option<Record>> {
        let weights_missing = self.needs_weights(need) && !self.has_weights(run)?;
        // A run that diverged before an evaluation of finite outputs has none, however often it is made.
        let has_none = |record: &Record| {
            record.stop == Stop::Diverged && record.evaluations.iter().all(|evaluation| !evaluation.loss.is_finite())
        };
        Ok(self.record(run)?.filter(|record| !weights_missing || has_none(record)))
    }

    fn needs_weights(&self, need: Need) -> bool {
        self.keep_weights || need == Need::Weights
    }

    /// A run with all that it needs.
    fn job(&mut self, run: &Run, need: Need, slot: Slot) -> Result<Job> {
        let cards = self.devices()?.split_off(1);
        if slot.at_once > 1 && !cards.is_empty() {
            // Sums of two runs that each wait for a card which the other holds would never end.
            let (found, expected) =
                (slot.at_once.to_string(), format!("1 with the device {}, or one GPU", self.device));
            return Err(Error::Setting { name: "at_once", found, expected });
        }
        let RunPlace { folder, inputs, .. } = self.place(run);
        Ok(Job {
            run: run.clone(),
            inputs,
            data: self.data(run)?,
            pretrained: self.base(run)?,
            options: self.options(run, slot)?,
            first: self.first_model(run, slot)?,
            cards,
            keep_weights: self.needs_weights(need),
            movement_examples: self.movement_examples,
            limits: self.limits.clone(),
            checkpoint_every: self.checkpoint_every,
            stop_files: vec![folder.stop(), self.runs.join("stop")],
            folder,
            at_once: slot.at_once,
        })
    }

    /// The model a run starts from.
    ///
    /// # Errors
    /// When the model is missing or broken, the method does not fit it, or it starts from data that is missing.
    pub fn untrained_model(&mut self, run: &Run) -> Result<Model> {
        let model = self.new_model(run, Slot::ALONE)?;
        if let (Some(first), Some(start)) = (self.first_model(run, Slot::ALONE)?, &run.starts_from) {
            model.start_from(&first, start.has_labels_of(run.task))?;
        }
        Ok(model)
    }

    /// The model of a run, without what it starts from besides the pretrained model, on the device of a slot.
    fn new_model(&mut self, run: &Run, slot: Slot) -> Result<Model> {
        let options = self.options(run, slot)?;
        if !run.method.starts_from_data() {
            return Ok(Model::new(&*self.base(run)?, &options)?);
        }
        let data = self.data(run)?;
        build_model(run, &*self.base(run)?, &options, training_batches(run, &data)?)
    }

    /// What a run starts from besides the pretrained model, if there is such: on the device of the run's own slot, since another slot's
    /// stream is at work, and has written it when that comes to it.
    fn first_model(&mut self, run: &Run, slot: Slot) -> Result<Option<Model>> {
        match &run.starts_from {
            None => Ok(None),
            Some(StartsFrom::Run(first)) => self.trained_model_in(first, slot).map(Some),
            Some(StartsFrom::Adapter(adapter)) => {
                adapter.check()?;
                Ok(Some(Model::from_adapter(&*self.base(run)?, &adapter.folder)?.0))
            }
        }
    }

    /// The pretrained model of a run; its output layer in the order of the task's labels, and without it where it was trained on others.
    fn base(&mut self, run: &Run) -> Result<Arc<Pretrained>> {
        let pretrained = self.pretrained(&run.model)?;
        let made_by = provenance::read(pretrained.folder())?;
        if made_by.as_ref().is_some_and(|made_by| made_by.task.labels() != run.task.labels()) {
            return Ok(Arc::new(pretrained.without_output()));
        }
        let (pretrained, remark) = pretrained.for_labels(run.task.labels())?;
        // A checkpoint that tells its run has that task's labels, named or not.
        let is_known = |remark: &Remark| made_by.is_some() && matches!(remark, Remark::LabelsByNumber { .. });
        self.tell(remark.filter(|remark| !is_known(remark)).as_slice());
        Ok(Arc::new(pretrained))
    }

    /// Logs what should be known of a model, each once.
    fn tell(&mut self, remarks: &[Remark]) {
        for remark in remarks {
            if !self.told.contains(remark) {
                self.logger.job(None).log(&Event::Remark { remark });
                self.told.push(remark.clone());
            }
        }
    }

    /// The device that runs are computed on; of several the first.
    ///
    /// # Errors
    /// As [`DeviceName::open`].
    pub fn opened_device(&mut self) -> Result<Device> {
        Ok(self.devices()?.swap_remove(0))
    }

    /// All devices that runs are computed on.
    pub(crate) fn devices(&mut self) -> Result<Vec<Device>> {
        match &self.opened {
            Some(devices) => Ok(devices.clone()),
            None => Ok(self.opened.insert(self.device.open()?).clone()),
        }
    }

    pub(crate) fn options(&mut self, run: &Run, slot: Slot) -> Result<ModelOptions> {
        let device = device::stream(&self.opened_device()?, slot.number)?;
        let method = match run.method.needs_total_steps() {
            true => run.method.clone().over(run.settings.steps(self.data(run)?.train.len())?),
            false => run.method.clone(),
        };
        Ok(ModelOptions {
            pooling: run.settings.pooling,
            train_pooler: run.settings.train_pooler,
            dropout: run.settings.dropout,
            precision: run.settings.precision,
            seed: run.seed,
            device,
            ..ModelOptions::new(method, run.task.num_labels())
        })
    }

    /// The model as it was at the best evaluation of a run whose weights were kept.
    ///
    /// # Errors
    /// When no weights were kept, or their file is not whole or another run's.
    pub fn trained_model(&mut self, run: &Run) -> Result<Model> {
        self.trained_model_in(run, Slot::ALONE)
    }

    fn trained_model_in(&mut self, run: &Run, slot: Slot) -> Result<Model> {
        let model = self.new_model(run, slot)?;
        let RunPlace { folder, inputs, .. } = self.place(run);
        if checkpoint::load_weights(&folder.weights(), &Origin::new(run, &inputs), model.parameters())? {
            return Ok(model);
        }
        Err(match self.own_record(run)? {
            Some(record) if record.stop == Stop::Diverged => {
                Error::DivergedRun { run: run.name(), when: record.divergence() }
            }
            _ => Error::NoWeights { key: run.key() },
        })
    }

    /// The model of a run with the adapter in `folder`, and what of the adapter was passed over.
    ///
    /// # Errors
    /// When the adapter is broken, or one for another task, method or base model.
    pub fn adapter_model(&mut self, run: &Run, folder: &Path) -> Result<(Model, Vec<Warning>)> {
        let adapter = Adapter::read(folder)?;
        let base = if adapter.has_head() { self.pretrained(&run.model)? } else { self.base(run)? };
        let options = ModelOptions {
            passes_over_names: true,
            new_numbers: Some(adapter.new_numbers(&base)),
            ..self.options(run, Slot::ALONE)?
        };
        let model = Model::new(&base, &options)?;
        self.tell(model.remarks());
        let warnings = model.load(&adapter)?;
        Ok((model, warnings))
    }

    /// Writes what a run has trained to `folder`, as it was at the best evaluation: an adapter, and beside it the run.
    ///
    /// # Errors
    /// When no weights were kept, or a file cannot be written.
    pub fn save_adapter(&mut self, run: &Run, folder: &Path) -> Result<()> {
        let mut adapter = self.trained_model(run)?.adapter()?;
        adapter.conditions.max_length = Some(run.settings.max_length);
        let (name, bytes) = provenance::file(run)?;
        Ok(adapter.save_with(folder, &[(name, &bytes)])?)
    }

    /// The predictions of a run's best model for a split: of its own task, or of AX by a model for MNLI.
    ///
    /// # Errors
    /// When no weights were kept, or the split is missing.
    pub fn predict(&mut self, run: &Run, task: Task, split: Split) -> Result<Targets> {
        let (model, tokenizer) = (self.trained_model(run)?, self.tokenizer(run)?);
        predict(&model, task, &tokenizer.encode(&self.glue.load(task, split)?.examples()?)?)
    }

    /// Writes the predictions of a run's best model for each test split of its task as GLUE's submission files; returns their paths.
    ///
    /// # Errors
    /// When no weights were kept, a split is missing or a file cannot be written.
    pub fn write_predictions(&mut self, run: &Run, folder: &Path) -> Result<Vec<PathBuf>> {
        let model = self.trained_model(run)?;
        self.write_predictions_of(&model, run, folder)
    }

    /// The same of a model that came to be in another way, such as [`Trainer::adapter_model`].
    ///
    /// # Errors
    /// When a split is missing or a file cannot be written.
    pub fn write_predictions_of(&mut self, model: &Model, run: &Run, folder: &Path) -> Result<Vec<PathBuf>> {
        let tokenizer = self.tokenizer(run)?;
        // All are predicted before the first is written: MNLI's two files are of one model.
        let mut predicted = Vec::new();
        for &split in run.task.test_splits() {
            let dataset = self.glue.load(run.task, split)?;
            let predictions = predict(model, run.task, &tokenizer.encode(&dataset.examples()?)?)?;
            predicted.push((split, dataset, predictions));
        }
        let mut paths = Vec::new();
        for (split, dataset, predictions) in predicted {
            let path = glue::submission::write(folder, run.task, split, &predictions, dataset.index()?)?;
            let completeness = dataset.completeness;
            self.logger.job(None).log(&Event::Predicted { path: &path, completeness });
            paths.push(path);
        }
        Ok(paths)
    }

    /// The tokenizer of a run. A model of fewer positions than the default length takes sequences of as many as it has.
    ///
    /// # Errors
    /// When the model or its tokenizer is missing or broken, or the positions that the method's virtual tokens leave are fewer than a
    /// `max_length` other than the default.
    pub fn tokenizer(&mut self, run: &Run) -> Result<Tokenizer> {
        let pretrained = self.pretrained(&run.model)?;
        let taken = max_length(&pretrained, run)?;
        if taken < run.settings.max_length {
            let folder = pretrained.folder().to_path_buf();
            self.tell(&[Remark::Shortened { folder, taken, default: run.settings.max_length }]);
        }
        let tokenizer = Tokenizer::load(&pretrained, taken)?;
        self.tell(tokenizer.remarks());
        Ok(tokenizer)
    }

    /// A run's tokenized data. It is kept for the runs that follow.
    ///
    /// # Errors
    /// When a file is missing or broken.
    pub fn data(&mut self, run: &Run) -> Result<Arc<TaskData>> {
        let settings = &run.settings;
        let Settings { train_limit, train_extra, held_out, .. } = *settings;
        let pretrained = self.pretrained(&run.model)?;
        let max_length = max_length(&pretrained, run)?;
        let inputs = lock(&self.digests).of_run(&self.glue, run);
        let cache = TokenCache::new(&self.runs, &inputs, max_length, train_extra);
        let (task, model) = (run.task, run.model.clone());
        let key = DataKey { task, model, max_length, train_limit, train_extra, held_out, inputs };
        if let Some(data) = self.data.get(&key) {
            return Ok(data.clone());
        }
        let tokenizer = self.tokenizer(run)?;
        let data = Arc::new(TaskData::load(&self.glue, run.task, &tokenizer, settings, cache.as_ref(), &self.limits)?);
        self.data.insert(key, data.clone());
        Ok(data)
    }

    /// A pretrained model. It is kept for the runs that follow.
    ///
    /// # Errors
    /// When it is missing or broken.
    pub fn pretrained(&mut self, name: &str) -> Result<Arc<Pretrained>> {
        let key = (name.to_string(), lock(&self.digests).of_model(name));
        if let Some(pretrained) = self.pretrained.get(&key) {
            return Ok(pretrained.clone());
        }
        let pretrained = Arc::new(Pretrained::load(name)?);
        self.tell(pretrained.remarks());
        self.pretrained.insert(key, pretrained.clone());
        Ok(pretrained)
    }
}

/// The tokens of a run's longest sequences: as many as its settings say, or, where those say nothing else than the default, as many as the
/// model has positions for beside the method's virtual tokens.
fn max_length(pretrained: &Pretrained, run: &Run) -> Result<usize> {
    let (found, virtual_tokens) = (run.settings.max_length, run.method.virtual_tokens());
    let left = pretrained.max_length().saturating_sub(virtual_tokens);
    if found <= left || found == Settings::default().max_length {
        return Ok(found.min(left));
    }
    let expected = match virtual_tokens {
        0 => format!("at most {left}, the positions of the model"),
        taken => format!("at most {left}, the positions that {taken} virtual tokens leave"),
    };
    Err(Error::Setting { name: "max_length", found: found.to_string(), expected })
}

/// The inputs that a run's folder tells, or else its record.
fn told_inputs(folder: &RunFolder) -> Option<Inputs> {
    #[derive(Deserialize)]
    struct Told {
        inputs: Inputs,
    }
    let told = |path: PathBuf| std::fs::read(path).ok();
    let of_folder = told(folder.inputs()).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let of_record = || serde_json::from_slice(&told(folder.record())?).ok().map(|Told { inputs }| inputs);
    of_folder.or_else(of_record)
}

/// A job that panicked left the trainer whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
