//! A run on its way to its record, apart from the trainer, so that several can be under way at once.

use std::sync::Arc;

use candle_core::Device;
use peft::{Batch, Model, ModelOptions, Pretrained};

use crate::batches::epoch_batches;
use crate::data::TaskData;
use crate::device;
use crate::environment::{environment, now, peak_memory};
use crate::error::{Error, Result};
use crate::files;
use crate::progress::clock;
use crate::provenance;
use crate::record::{Environment, ParameterCounts, Record};
use crate::replicas::Replicas;
use crate::run::Run;
use crate::training::{Conditions, best, train};

/// Weights are kept without being asked for where a run trains at most one in this many parameters.
const SMALL_PART: usize = 10;

/// What takes a run from its start or its checkpoint to its end, or as far as its conditions let it.
pub(crate) struct Sitting {
    pub run: Run,
    pub data: Arc<TaskData>,
    pub pretrained: Arc<Pretrained>,
    pub options: ModelOptions,
    /// What it starts from besides the pretrained model.
    pub first: Option<Model>,
    /// The cards that share its batches with the model's own.
    pub cards: Vec<Device>,
    pub conditions: Conditions,
    /// How many runs are under way at once.
    pub at_once: usize,
}

impl Sitting {
    /// Trains the run, and writes its record.
    ///
    /// # Errors
    /// When model, settings or checkpoint are broken, memory does not suffice, or a file cannot be written.
    pub fn record(self) -> Result<Record> {
        let Self { run, data, pretrained, options, first, cards, mut conditions, at_once } = self;
        run.settings.check()?;
        // The commit of a run is that of its beginning: files may change while it trains.
        let environment = environment();
        let built = |device: &Device| {
            let options = ModelOptions { device: device.clone(), ..options.clone() };
            start(&run, &pretrained, &options, training_batches(&run, &data))
        };
        let model = built(&options.device)?;
        let others = cards.iter().map(built).collect::<Result<_>>()?;
        let model_made_by = provenance::read(pretrained.folder())?;
        let new = match (&first, &run.starts_from) {
            (Some(first), Some(start)) => model.start_from(first, start.has_labels_of(run.task))?,
            _ => Vec::new(),
        };
        drop(first);
        let replicas = Replicas::start(&model, others, &run.settings, Some(&conditions.checkpoint()))?;
        conditions.voice.say(&describe(&run));
        if let Some(start) = &run.starts_from {
            let new = if new.is_empty() { "nothing is new".into() } else { format!("new: {}", new.join(", ")) };
            conditions.voice.say(&format!("  starts from {start}; {new}"));
        }
        if let Some(made_by) = &model_made_by {
            let output = if made_by.task.labels() == run.task.labels() { "kept" } else { "new" };
            conditions.voice.say(&format!(
                "  the model {} was made by {}; its output layer is {output}",
                run.model,
                describe(made_by)
            ));
        }
        let report = model.trainable_report();
        conditions.keep_weights |= report.trainable() * SMALL_PART <= report.total;
        let path = conditions.folder.join("record.json");
        // Made again for its weights, a run has no record until it ends: beside the weights of a half it would seem whole.
        let _ = std::fs::remove_file(&path);
        let (progress, stop) = train(&run, &data, &model, &replicas, &conditions)?;
        let record = Record {
            run,
            model_made_by,
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
            peak_memory: [&options.device]
                .into_iter()
                .chain(&cards)
                .filter_map(device::peak_memory)
                .max()
                .unwrap_or_else(peak_memory),
            environment: Environment {
                gpu: device::card(model.device()),
                cards: (!cards.is_empty()).then_some(1 + cards.len()),
                at_once: (at_once > 1).then_some(at_once),
                finished_at: now(),
                ..environment
            },
        };
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
        conditions.voice.say(&format!("  {stop}; {} of training", clock(record.train_seconds)));
        Ok(record)
    }
}

/// The model that a run starts from, which may be one that starts from these batches.
pub(crate) fn start(
    run: &Run,
    pretrained: &Pretrained,
    options: &ModelOptions,
    batches: impl Iterator<Item = Result<Batch>>,
) -> Result<Model> {
    if run.method.starts_from_data() {
        return Model::with_eva_start(pretrained, options, batches);
    }
    Ok(Model::new(pretrained, options)?)
}

/// A run's batches in the order of its steps, in memory that the device need not hold at once.
pub(crate) fn training_batches<'a>(run: &'a Run, data: &'a TaskData) -> impl Iterator<Item = Result<Batch>> + 'a {
    let (settings, lengths) = (&run.settings, data.train.lengths());
    let order = (0..settings.epochs).flat_map(move |epoch| {
        epoch_batches(&lengths, settings.batch_size.max(1), settings.group_by_length, run.seed, epoch)
    });
    order.map(|indices| Ok(data.train.batch(&indices)?.0))
}

/// A run in one line.
pub(crate) fn describe(run: &Run) -> String {
    let Run { task, method, settings, seed, .. } = run;
    format!(
        "{task}, {method}, learning rate {}, batch size {}, warm-up {} %, {} epochs, seed {seed}",
        settings.learning_rate,
        settings.batch_size,
        settings.warmup_ratio * 100.0,
        settings.epochs,
    )
}
