//! A job: one prepared run, from its start or its checkpoint to its record. It knows no trainer, so that several run concurrently.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use peft::{Batch, Model, ModelOptions, Pretrained};

use crate::batches::RunBatches;
use crate::checkpoint::{CheckpointFile, State};
use crate::data::TaskData;
use crate::device;
use crate::environment::{environment, now, peak_memory};
use crate::error::{Error, Result};
use crate::events::{Event, JobLogger};
use crate::files::{self, RunFolder};
use crate::inputs::Inputs;
use crate::integrity::Origin;
use crate::limits::{Limits, is_interruption};
use crate::losses;
use crate::movement::Movement;
use crate::provenance;
use crate::record::{Environment, Evaluation, ParameterCounts, Record, Stop, best_evaluation};
use crate::run::{Run, StartsFrom};
use crate::training::observers::{
    Budget, CheckpointEvery, Checkpoints, EarlyStopping, EvaluationSteps, Evaluations, Observer,
};
use crate::training::replicas::Replicas;
use crate::training::step::Learner;
use crate::training::{StepPlan, Training};

/// Weights are kept without being asked for where a run trains at most one in this many parameters.
const SMALL_PART: usize = 10;

/// A run with all that it needs.
pub(crate) struct Job {
    pub run: Run,
    pub inputs: Inputs,
    pub data: Arc<TaskData>,
    pub pretrained: Arc<Pretrained>,
    pub options: ModelOptions,
    /// What it starts from besides the pretrained model.
    pub first: Option<Model>,
    /// The cards that share its batches with the model's own.
    pub cards: Vec<Device>,
    pub folder: RunFolder,
    /// Measure how far training moves the model, on so many validation examples.
    pub movement_examples: Option<usize>,
    /// Keep the weights of the best evaluation, even where they are many.
    pub keep_weights: bool,
    /// Stop within these; the next job of the run goes on.
    pub limits: Limits,
    pub checkpoint_every: CheckpointEvery,
    /// Stop when one of these files exists; the next job of the run goes on.
    pub stop_files: Vec<PathBuf>,
    /// How many jobs run concurrently.
    pub at_once: usize,
}

impl Job {
    /// Trains the model, and writes the record.
    ///
    /// # Errors
    /// When model, settings or checkpoint are broken, memory does not suffice, or a file cannot be written.
    pub(crate) fn run(mut self, logger: &mut dyn JobLogger) -> Result<Record> {
        // The commit of a run is that of its beginning: files may change while it trains.
        let environment = environment();
        let model_made_by = provenance::read(self.pretrained.folder())?;
        let stop = self.limits.stop.clone();
        let begun = ops::interruptible(&stop, || self.begin(model_made_by.as_ref(), logger));
        let mut training = begun.map_err(|error| match is_interruption(&error) {
            true => Error::Interrupted { place: self.run.description() },
            false => error,
        })?;
        let report = training.learner.model.trainable_report();
        self.keep_weights |= report.trainable() * SMALL_PART <= report.total;
        self.folder.check_space(report.trainable(), self.keep_weights, training.plan.steps)?;
        let (stop, best) = self.train(&mut training)?;
        let movement = self.movement(&training.learner.model, stop)?;
        let environment = self.environment(environment);
        let Training { state, logger, .. } = training;
        let record = Record {
            model_made_by,
            parameters: ParameterCounts {
                trainable: report.trainable(),
                without_head: report.trainable_without_head(),
                total: report.total,
            },
            data: self.data.summary.clone(),
            best,
            movement,
            losses: losses::over_stretches(&state.losses, losses::RECORDED),
            evaluations: state.evaluations,
            stop,
            train_seconds: state.train_seconds,
            tokens: state.tokens,
            peak_memory: self.devices().filter_map(device::peak_memory).max().unwrap_or_else(peak_memory),
            environment,
            inputs: (self.inputs != Inputs::default()).then_some(self.inputs),
            run: self.run,
        };
        // The record is written last: with it the run is whole.
        losses::write(self.folder.path(), &state.origin, &state.losses)?;
        write(&self.folder, &record)?;
        logger.log(&Event::Ended { stop, train_seconds: record.train_seconds });
        Ok(record)
    }

    /// The model and its replicas, as they start or as the checkpoint has them.
    fn begin<'a>(&mut self, model_made_by: Option<&Run>, logger: &'a mut dyn JobLogger) -> Result<Training<'a>> {
        let Self { run, data, .. } = &*self;
        let model = self.build(&self.options.device)?;
        let others = self.cards.iter().map(|card| self.build(card)).collect::<Result<_>>()?;
        // Before anything else is written there: what lies in the folder is then known to be of these inputs.
        files::write_json(&self.folder.inputs(), &self.inputs)?;
        let start = self.start(&model)?;
        let mut learner = Learner::new(model, &run.settings)?;
        let examples = data.train.len();
        let (steps, per_epoch) = (run.settings.steps(examples)?, run.settings.steps_per_epoch(examples));
        let origin = Origin::new(run, &self.inputs);
        let checkpoint = CheckpointFile { path: self.folder.checkpoint(), origin, steps };
        let replicas = Replicas::start(&learner, others, &run.settings, Some(&checkpoint))?;
        // Made again for its weights, a run has no record until it ends: beside the weights of a half it would seem whole.
        let _ = std::fs::remove_file(self.folder.record());
        logger.log(&Event::Begun { run, start, model_made_by });
        learner.model.remarks().iter().for_each(|remark| logger.log(&Event::Remark { remark }));
        let state = checkpoint.load(&mut learner.optimizer)?;
        if let Some(State { step, .. }) = state {
            logger.log(&Event::Resumed { step, steps });
        }
        let plan = StepPlan::new(&run.settings, steps, per_epoch);
        if self.movement_examples.is_none() {
            self.first = None; // Its memory is not needed any more.
        }
        let state = state.unwrap_or_else(|| State::new(checkpoint.origin));
        Ok(Training::new(learner, replicas, plan, state, logger))
    }

    /// The model without what it starts from besides the pretrained one.
    fn build(&self, device: &Device) -> Result<Model> {
        let options = ModelOptions { device: device.clone(), ..self.options.clone() };
        build_model(&self.run, &self.pretrained, &options, training_batches(&self.run, &self.data)?)
    }

    /// Gives a model what the run starts from besides the pretrained one, if that is anything; which of its tensors stay new.
    fn start(&self, model: &Model) -> Result<Option<(&StartsFrom, Vec<String>)>> {
        let (Some(first), Some(start)) = (&self.first, &self.run.starts_from) else { return Ok(None) };
        Ok(Some((start, model.start_from(first, start.has_labels_of(self.run.task))?)))
    }

    /// How far the steps have moved the model, if that is to be measured and they came to their end.
    fn movement(&self, after: &Model, stop: Stop) -> Result<Option<Movement>> {
        let ended = matches!(stop, Stop::Finished | Stop::EarlyStopping);
        let Some(examples) = self.movement_examples.filter(|_| ended) else { return Ok(None) };
        let before = self.build(&self.options.device)?;
        self.start(&before)?;
        Movement::on_validation(&before, after, &self.data, examples).map(Some)
    }

    /// Takes the steps that are left, or as many as the budget allows. A run that does not come to its end has a checkpoint. Returns why it
    /// ended, and the evaluation whose weights are kept as the best: that of an interruption only where no other has a score.
    fn train(&self, training: &mut Training) -> Result<(Stop, Option<Evaluation>)> {
        let Self { run, data, folder, .. } = self;
        let evaluation_steps = EvaluationSteps::new(run.settings.evaluate, &training.plan);
        let weights = self.keep_weights.then(|| folder.weights());
        let mut evaluations =
            Evaluations::new(run.clone(), data.clone(), evaluation_steps, folder.predictions(), weights);
        let mut early_stopping = EarlyStopping::new(evaluation_steps, run.settings.patience);
        let mut checkpoints = Checkpoints::new(folder.checkpoint(), self.checkpoint_every);
        let mut budget = Budget::new(self.limits.clone(), self.stop_files.clone());
        let mut batches = RunBatches::new(run, &data.train);
        let (step, steps) = (training.state.step, training.plan.steps);
        let stop = ops::interruptible(&self.limits.stop, || -> Result<Stop> {
            // An evaluation that was interrupted is made before anything else.
            if evaluations.is_missing(&training.state, steps) {
                let observers: [&mut dyn Observer; 2] = [&mut evaluations, &mut early_stopping];
                for observer in observers {
                    if observer.is_due(step, steps)
                        && let ControlFlow::Break(stop) = observer.after_step(training)?
                    {
                        return Ok(stop);
                    }
                }
            }
            let observers: &mut [&mut dyn Observer] =
                &mut [&mut evaluations, &mut early_stopping, &mut checkpoints, &mut budget];
            training.run(|step| batches.get(step), observers)
        });
        let best = |training: &Training| best_evaluation(&training.state.evaluations).cloned();
        match stop {
            Err(error @ Error::OutOfMemory { .. }) => {
                if let ControlFlow::Break(stop) = training.read_losses()? {
                    return Ok((stop, best(training)));
                }
                checkpoints.save(training)?;
                Err(error)
            }
            // Of the step or the evaluation that was under way nothing is taken.
            Err(error) if is_interruption(&error) => {
                if let ControlFlow::Break(stop) = training.read_losses()? {
                    return Ok((stop, best(training)));
                }
                checkpoints.save(training)?;
                Ok((Stop::Interrupted, best(training)))
            }
            Ok(Stop::Interrupted) => {
                checkpoints.save(training)?;
                Ok((Stop::Interrupted, best(training)))
            }
            Ok(stop) if !stop.is_final() => {
                checkpoints.save(training)?;
                let before = best(training);
                // Who is asked to stop meanwhile does without.
                ops::interruptible(&self.limits.stop, || evaluations.measure_interrupted(training))
                    .or_else(|error| if is_interruption(&error) { Ok(()) } else { Err(error) })?;
                Ok((stop, before.or_else(|| best(training))))
            }
            Ok(stop) => Ok((stop, best(training))),
            Err(error) => Err(error),
        }
    }

    fn devices(&self) -> impl Iterator<Item = &Device> {
        [&self.options.device].into_iter().chain(&self.cards)
    }

    /// The environment with the devices and the end of this job.
    fn environment(&self, environment: Environment) -> Environment {
        Environment {
            gpu: device::card(&self.options.device),
            cards: (!self.cards.is_empty()).then_some(1 + self.cards.len()),
            at_once: (self.at_once > 1).then_some(self.at_once),
            finished_at: now(),
            ..environment
        }
    }
}

/// Writes the record of a run; the checkpoint of one that came to its end goes.
fn write(folder: &RunFolder, record: &Record) -> Result<()> {
    record.write(&folder.record())?;
    if record.stop.is_final() {
        // The record is written first: killed in between, the run is finished all the same.
        let _ = std::fs::remove_file(folder.checkpoint());
    }
    Ok(())
}

/// The model that a run starts from; these batches are for a method whose start depends on data.
pub(crate) fn build_model(
    run: &Run,
    pretrained: &Pretrained,
    options: &ModelOptions,
    batches: impl Iterator<Item = Result<Batch>>,
) -> Result<Model> {
    if run.method.starts_from_data() {
        return Model::with_data(pretrained, options, batches);
    }
    Ok(Model::new(pretrained, options)?)
}

/// A run's batches in the order of its steps, in memory that the device need not hold at once.
///
/// # Errors
/// When the run has too many steps.
pub(crate) fn training_batches<'a>(
    run: &'a Run,
    data: &'a TaskData,
) -> Result<impl Iterator<Item = Result<Batch>> + 'a> {
    let (mut batches, steps) = (RunBatches::new(run, &data.train), run.settings.steps(data.train.len())?);
    Ok((0..steps).map(move |step| Ok(batches.get(step)?.batch)))
}
