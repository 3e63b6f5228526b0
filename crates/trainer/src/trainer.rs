//! Runs and their records.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use candle_core::Device;
use glue::{Glue, Split, Targets, Task};
use peft::{AdaLora, Batch, Method, Model, ModelOptions, Pretrained, Warning};

use crate::batches::epoch_batches;
use crate::checkpoint;
use crate::data::TaskData;
use crate::device::{self, DeviceName};
use crate::error::{Error, Result};
use crate::evaluation::predict;
use crate::files;
use crate::progress::{Verbosity, clock};
use crate::record::{Environment, ParameterCounts, Record};
use crate::run::{Run, Settings};
use crate::tokenizer::Tokenizer;
use crate::training::{Conditions, best, steps, train};

/// Turns runs into records. A run that has a finished record is not run again; one that was interrupted goes on.
///
/// Each run has a folder of its own below the runs folder: `record.json`, the checkpoint while it runs, and the trained
/// weights of the best evaluation, if they are few or asked for. A file named `stop` in that folder, or in the runs folder,
/// ends a run after its present step.
pub struct Trainer {
    glue: Glue,
    runs: PathBuf,
    keep_weights: bool,
    time_budget: Option<Duration>,
    verbosity: Verbosity,
    device: DeviceName,
    opened: Option<Device>,
    pretrained: HashMap<String, Arc<Pretrained>>,
    data: HashMap<String, Arc<TaskData>>,
}

/// Weights are kept without being asked for where a run trains at most one in this many parameters.
const SMALL_PART: usize = 10;

impl Trainer {
    /// A trainer on this data, its records below `runs`.
    pub fn new(glue: Glue, runs: impl Into<PathBuf>) -> Self {
        ops::keep_freed_memory();
        Self {
            glue,
            runs: runs.into(),
            keep_weights: false,
            time_budget: None,
            verbosity: Verbosity::default(),
            device: DeviceName::default(),
            opened: None,
            pretrained: HashMap::new(),
            data: HashMap::new(),
        }
    }

    /// Keep the trained weights of every run's best evaluation, not only of those runs that train a small part of the model.
    pub fn keep_weights(mut self, keep: bool) -> Self {
        self.keep_weights = keep;
        self
    }

    /// Stop a run after this much time; asked for again, it goes on.
    pub fn time_budget(mut self, budget: Option<Duration>) -> Self {
        self.time_budget = budget;
        self
    }

    /// How much runs say.
    pub fn verbosity(mut self, verbosity: Verbosity) -> Self {
        self.verbosity = verbosity;
        self
    }

    /// Where runs are computed; by default [`DeviceName::Auto`]. It is opened when the first model is built.
    pub fn device(mut self, name: DeviceName) -> Self {
        (self.device, self.opened) = (name, None);
        self
    }

    /// The data.
    pub fn glue(&self) -> &Glue {
        &self.glue
    }

    /// The folder of a run.
    pub fn folder(&self, run: &Run) -> PathBuf {
        self.runs.join(run.key())
    }

    /// The finished record of a run, if it has one.
    ///
    /// # Errors
    /// When there is a record that does not parse.
    pub fn record(&self, run: &Run) -> Result<Option<Record>> {
        let path = self.folder(run).join("record.json");
        let Some(bytes) = files::read(&path)? else { return Ok(None) };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| Error::Content {
            path,
            expected: "the record of a run",
            found: error.to_string(),
        })?;
        Ok((record.run == *run && record.stop.is_final()).then_some(record))
    }

    /// The record of a run: the one it has, or that of running it now.
    ///
    /// # Errors
    /// When data or model are missing or broken, a setting makes no sense, or a file cannot be written.
    pub fn run(&mut self, run: &Run) -> Result<Record> {
        let mut conditions = self.conditions(run);
        let weights_missing = self.keep_weights && !conditions.weights().exists();
        if let Some(record) = self.record(run)?.filter(|_| !weights_missing) {
            self.say(&format!("{}: found its record", describe(run)));
            return Ok(record);
        }
        let (data, model) = (self.data(run)?, self.untrained_model(run)?);
        self.say(&describe(run));
        let report = model.trainable_report();
        conditions.keep_weights |= report.trainable() * SMALL_PART <= report.total;
        let (progress, stop) = train(run, &data, &model, &conditions)?;
        let record = Record {
            run: run.clone(),
            parameters: ParameterCounts {
                trainable: report.trainable(),
                without_head: report.trainable_without_head(),
                total: report.total,
            },
            data: data.summary.clone(),
            best: best(&progress.evaluations).cloned(),
            losses: progress.losses,
            evaluations: progress.evaluations,
            stop,
            train_seconds: progress.train_seconds,
            tokens: progress.tokens,
            peak_memory: device::peak_memory(model.device()).unwrap_or_else(peak_memory),
            environment: Environment { gpu: device::card(model.device()), ..environment() },
        };
        let path = conditions.folder.join("record.json");
        let json = serde_json::to_vec_pretty(&record).map_err(|error| Error::Content {
            path: path.clone(),
            expected: "a record that serialises",
            found: error.to_string(),
        })?;
        files::write_atomically(&path, &json)?;
        if stop.is_final() {
            // The record is written first: killed in between, the run is finished all the same.
            let _ = std::fs::remove_file(conditions.checkpoint());
        }
        self.say(&format!("  {stop}; {} of training", clock(record.train_seconds)));
        Ok(record)
    }

    /// The records of several runs, in their order.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn run_all(&mut self, runs: &[Run]) -> Result<Vec<Record>> {
        runs.iter()
            .enumerate()
            .map(|(index, run)| {
                self.say(&format!("[{}/{}]", index + 1, runs.len()));
                self.run(run)
            })
            .collect()
    }

    /// The model a run starts from.
    ///
    /// # Errors
    /// When the model is missing or broken, the method does not fit it, or it starts from data that is missing.
    pub fn untrained_model(&mut self, run: &Run) -> Result<Model> {
        if !run.method.starts_from_data() {
            return self.blank_model(run);
        }
        let (data, Settings { batch_size, group_by_length, epochs, .. }) = (self.data(run)?, run.settings.clone());
        let lengths = data.train.lengths();
        // In the order of the steps, from memory that the device need not hold at once.
        let order =
            (0..epochs).flat_map(|epoch| epoch_batches(&lengths, batch_size.max(1), group_by_length, run.seed, epoch));
        self.model_from(run, order.map(|indices| Ok(data.train.batch(&indices)?.0)))
    }

    /// The model a run starts from, if it starts from these batches.
    pub(crate) fn model_from(&mut self, run: &Run, batches: impl Iterator<Item = Result<Batch>>) -> Result<Model> {
        if !run.method.starts_from_data() {
            return self.blank_model(run);
        }
        let options = self.options(run)?;
        Model::with_eva_start(&*self.pretrained(&run.model)?, &options, batches)
    }

    /// The model of a run that an adapter is to be loaded into.
    pub(crate) fn blank_model(&mut self, run: &Run) -> Result<Model> {
        let options = self.options(run)?;
        Ok(Model::new(&*self.pretrained(&run.model)?, &options)?)
    }

    /// The device that runs are computed on.
    ///
    /// # Errors
    /// As [`DeviceName::open`].
    pub fn opened_device(&mut self) -> Result<Device> {
        match &self.opened {
            Some(device) => Ok(device.clone()),
            None => Ok(self.opened.insert(self.device.open()?).clone()),
        }
    }

    fn options(&mut self, run: &Run) -> Result<ModelOptions> {
        let device = self.opened_device()?;
        let method = match &run.method {
            Method::AdaLora(AdaLora { total_step: None, .. }) => {
                run.method.clone().over(steps(&run.settings, self.data(run)?.train.len()))
            }
            method => method.clone(),
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
    /// When no weights were kept.
    pub fn trained_model(&mut self, run: &Run) -> Result<Model> {
        let model = self.untrained_model(run)?;
        let found = checkpoint::load_weights(&self.conditions(run).weights(), model.parameters())?;
        if found { Ok(model) } else { Err(Error::NoWeights { key: run.key() }) }
    }

    /// The model of a run with the adapter in `folder`, and what of the adapter was passed over.
    ///
    /// # Errors
    /// When the adapter is broken, or one for another task, method or base model.
    pub fn adapter_model(&mut self, run: &Run, folder: &Path) -> Result<(Model, Vec<Warning>)> {
        let model = self.blank_model(run)?;
        let warnings = model.load_adapter(folder)?;
        Ok((model, warnings))
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
        let mut paths = Vec::new();
        for &split in run.task.test_splits() {
            let dataset = self.glue.load(run.task, split)?;
            let predictions = predict(model, run.task, &tokenizer.encode(&dataset.examples()?)?)?;
            paths.push(glue::submission::write(folder, run.task, split, &predictions, dataset.len())?);
        }
        Ok(paths)
    }

    /// The tokenizer of a run.
    ///
    /// # Errors
    /// When the model or its tokenizer is missing or broken, or the positions that the method's virtual tokens leave are fewer than
    /// `max_length`.
    pub fn tokenizer(&mut self, run: &Run) -> Result<Tokenizer> {
        let pretrained = self.pretrained(&run.model)?;
        let (found, virtual_tokens) = (run.settings.max_length, run.method.virtual_tokens());
        let left = pretrained.max_length().saturating_sub(virtual_tokens);
        if virtual_tokens > 0 && found > left {
            let expected = format!("at most {left}, the positions that {virtual_tokens} virtual tokens leave");
            return Err(Error::Setting { name: "max_length", found: found.to_string(), expected });
        }
        Tokenizer::load(&pretrained, found)
    }

    /// A run's tokenised data. It is kept for the runs that follow.
    ///
    /// # Errors
    /// When a file is missing or broken.
    pub fn data(&mut self, run: &Run) -> Result<Arc<TaskData>> {
        let settings = &run.settings;
        let key = format!("{} {} {} {:?}", run.task, run.model, settings.max_length, settings.train_limit);
        if let Some(data) = self.data.get(&key) {
            return Ok(data.clone());
        }
        let tokenizer = self.tokenizer(run)?;
        let data = Arc::new(TaskData::load(&self.glue, run.task, &tokenizer, settings.train_limit)?);
        self.data.insert(key, data.clone());
        Ok(data)
    }

    fn pretrained(&mut self, name: &str) -> Result<Arc<Pretrained>> {
        if let Some(pretrained) = self.pretrained.get(name) {
            return Ok(pretrained.clone());
        }
        let pretrained = Arc::new(Pretrained::load(name)?);
        self.pretrained.insert(name.into(), pretrained.clone());
        Ok(pretrained)
    }

    fn conditions(&self, run: &Run) -> Conditions {
        let folder = self.folder(run);
        Conditions {
            stop_files: vec![folder.join("stop"), self.runs.join("stop")],
            folder,
            time_budget: self.time_budget,
            keep_weights: self.keep_weights,
            verbosity: self.verbosity,
        }
    }

    fn say(&self, line: &str) {
        if self.verbosity == Verbosity::Lines {
            println!("{line}");
        }
    }
}

/// A run in one line.
fn describe(run: &Run) -> String {
    let Run { task, method, settings, seed, .. } = run;
    format!(
        "{task}, {method}, learning rate {}, batch size {}, warm-up {} %, {} epochs, seed {seed}",
        settings.learning_rate,
        settings.batch_size,
        settings.warmup_ratio * 100.0,
        settings.epochs,
    )
}

/// The first value of a line `key ...: value` in one of Linux' process files.
fn system_value(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The most memory this process has held, in bytes; 0 where the system does not tell.
pub(crate) fn peak_memory() -> u64 {
    let kibibytes = system_value("/proc/self/status", "VmHWM");
    kibibytes.and_then(|value| value.split(' ').next()?.parse::<u64>().ok()).map_or(0, |value| value * 1024)
}

/// The conditions of this process, on the CPU.
pub fn environment() -> Environment {
    Environment {
        version: env!("CARGO_PKG_VERSION").into(),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        processor: system_value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
        gpu: None,
        threads: ops::threads(),
        finished_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    }
}
