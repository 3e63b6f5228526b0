//! Checkpoint files: parameters, optimizer state and progress of a run between two steps, in one safetensors file, so that it is whole
//! or not there; and files of trained weights. Each shows that it is its run's and whole (see [`integrity`]).

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use ops::{Moments, ParameterMoments};
use peft::Parameters;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::integrity::{self, Fault, Numbers, Opened, Origin, Tensors};
use crate::losses;
use crate::record::{Evaluation, StepLoss};
use crate::training::Optimizer;

/// What is looked for in a checkpoint, for messages.
const EXPECTED: &str = "a checkpoint of this run";
/// What is looked for in a file of weights.
const WEIGHTS: &str = "the trained parameters of this run";

/// What a run has logged and counted so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Which run it is. In a file it stands beside the state.
    #[serde(skip)]
    pub origin: Origin,
    /// Steps taken.
    pub step: usize,
    /// Of each step. In a file they are tensors; in a header of JSON, where files of before have them, millions find no place.
    #[serde(default, skip_serializing)]
    pub losses: Vec<StepLoss>,
    pub evaluations: Vec<Evaluation>,
    pub tokens: usize,
    #[serde(with = "glue::number")]
    pub train_seconds: f64,
    /// How many tokens go through the model at once, where memory did not suffice for a batch.
    #[serde(default)]
    pub part_tokens: Option<usize>,
}

impl State {
    /// That of a run which has not begun.
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, ..Self::default() }
    }

    /// Fails if no run of so many steps could be in it; says what was found.
    fn check(&self, steps: usize) -> std::result::Result<(), String> {
        let Self { step, losses, evaluations, train_seconds, part_tokens, .. } = self;
        if *step > steps {
            return Err(format!("step {step} of a run of {steps}"));
        }
        if losses.len() != *step {
            return Err(format!("{} losses after step {step}", losses.len()));
        }
        let is_whole = |(index, loss): (usize, &StepLoss)| {
            let numbers = [loss.loss, loss.epoch, loss.learning_rate];
            loss.step == index + 1 && numbers.iter().all(|number| number.is_finite())
        };
        if let Some(index) = losses.iter().enumerate().position(|loss| !is_whole(loss)) {
            return Err(format!("{:?} as the loss of step {}", losses[index], index + 1));
        }
        let evaluated: Vec<usize> = evaluations.iter().map(|evaluation| evaluation.step).collect();
        if evaluated.iter().any(|evaluated| evaluated > step) || !evaluated.is_sorted_by(|a, b| a < b) {
            return Err(format!("evaluations after the steps {evaluated:?} by step {step}"));
        }
        if !(train_seconds.is_finite() && *train_seconds >= 0.0) {
            return Err(format!("{train_seconds} seconds of training"));
        }
        if *part_tokens == Some(0) {
            return Err("parts of no token".into());
        }
        Ok(())
    }
}

fn values(variable: &Var) -> Result<Vec<f32>> {
    Ok(variable.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

fn numbers(variable: &Var) -> Result<Numbers> {
    Ok(Numbers::f32(variable.dims(), &values(variable)?))
}

fn content(path: &Path, expected: &'static str, found: impl ToString) -> Error {
    Error::Content { path: path.into(), expected, found: found.to_string() }
}

/// Writes parameters, optimizer state and what was logged.
pub(crate) fn save(path: &Path, optimizer: &mut Optimizer, state: &State) -> Result<()> {
    let mut tensors = losses::tensors(&state.losses);
    for slot in &optimizer.slots {
        let mut put = |kind: &str, numbers| tensors.insert(format!("{kind}/{}", slot.name), numbers);
        put("parameter", numbers(&slot.variable)?);
        let moments = slot.moments.read()?;
        put("first_moment", Numbers::f32(slot.variable.dims(), &moments.first));
        put("second_moment", Numbers::f32(slot.variable.dims(), &moments.second));
    }
    for (name, values) in optimizer.after_step.iter_mut().flat_map(|after_step| after_step.state()) {
        tensors.insert(name, Numbers::f32(&[values.len()], values));
    }
    integrity::write(path, &state.origin, state, tensors)
}

/// Where the checkpoint of a run lies, and of what it must be.
pub(crate) struct CheckpointFile {
    pub path: PathBuf,
    pub origin: Origin,
    /// The steps of the whole run.
    pub steps: usize,
}

impl CheckpointFile {
    /// Restores what [`save`] wrote into parameters and optimizer; `None` if there is no checkpoint.
    ///
    /// # Errors
    /// When it is not whole, another run's, or none that this run could have written.
    pub(crate) fn load(&self, optimizer: &mut Optimizer) -> Result<Option<State>> {
        let Some(bytes) = files::read(&self.path)? else { return Ok(None) };
        let fault = |fault: Fault| fault.at(&self.path, EXPECTED);
        let broken = |found: String| content(&self.path, EXPECTED, found);
        let file = Opened::new(&bytes).map_err(fault)?;
        let state = state(&file, &self.origin).map_err(fault)?;
        state.check(self.steps).map_err(broken)?;
        for slot in &mut optimizer.slots {
            let get = |kind: &str| file.f32(&format!("{kind}/{}", slot.name), slot.variable.dims()).map_err(broken);
            let (parameter, first, second) = (get("parameter")?, get("first_moment")?, get("second_moment")?);
            set(&slot.variable, parameter)?;
            slot.moments = ParameterMoments::new(&slot.variable, Moments { first, second })?;
        }
        for (name, values) in optimizer.after_step.iter_mut().flat_map(|after_step| after_step.state()) {
            *values = file.f32(&name, &[values.len()]).map_err(broken)?;
        }
        Ok(Some(state))
    }
}

/// What was logged by the time of a checkpoint, whichever run it is of; nothing where it is missing or not whole.
pub(crate) fn logged(path: &Path) -> Option<State> {
    let bytes = files::read(path).ok().flatten()?;
    let file = Opened::new(&bytes).ok()?;
    let origin = file.origin()?;
    state(&file, &origin).ok()
}

/// What was logged by the time of a checkpoint of that origin.
fn state(file: &Opened, origin: &Origin) -> std::result::Result<State, Fault> {
    if let Some(state) = file.content::<State>(origin)? {
        return Ok(State {
            origin: origin.clone(),
            losses: losses::of_tensors(file).map_err(Fault::Damaged)?,
            ..state
        });
    }
    // A file of before there were versions has all of it in its metadata, and does not say of which run it is.
    let progress = file.metadata.get("progress").ok_or_else(|| Fault::Damaged("no progress".into()))?;
    let state: State = serde_json::from_str(progress).map_err(|error| Fault::Damaged(error.to_string()))?;
    Ok(State { origin: origin.clone(), ..state })
}

fn set(variable: &Var, values: Vec<f32>) -> Result<()> {
    let value = Tensor::from_vec(values, variable.shape(), &Device::Cpu)?;
    Ok(variable.set(&value.to_dtype(variable.dtype())?.to_device(variable.device())?)?)
}

/// Gives the trained parameters of one model the values of another's.
pub(crate) fn copy_parameters(from: &Parameters, to: &Parameters) -> Result<()> {
    for (name, variable) in to.trainable() {
        if let Some(original) = from.get(name) {
            set(variable, values(original)?)?;
        }
    }
    Ok(())
}

/// Writes the trained parameters under their own names, as those of a run.
pub(crate) fn save_weights(path: &Path, origin: &Origin, parameters: &Parameters) -> Result<()> {
    let mut tensors = Tensors::new();
    for (name, variable) in parameters.trainable() {
        tensors.insert(name.to_string(), numbers(variable)?);
    }
    integrity::write(path, origin, &(), tensors)
}

/// Sets the trained parameters to what [`save_weights`] wrote of that run; `false` if there is no file.
///
/// # Errors
/// When it is not whole, or another run's. One of before there were versions does not say of which run it is.
pub(crate) fn load_weights(path: &Path, origin: &Origin, parameters: &Parameters) -> Result<bool> {
    let Some(bytes) = files::read(path)? else { return Ok(false) };
    let fault = |fault: Fault| fault.at(path, WEIGHTS);
    let file = Opened::new(&bytes).map_err(fault)?;
    file.content::<()>(origin).map_err(fault)?;
    for (name, variable) in parameters.trainable() {
        set(variable, file.f32(name, variable.dims()).map_err(|found| content(path, WEIGHTS, found))?)?;
    }
    Ok(true)
}

/// Sets the parameters that no checkpoint holds to the values in a file, which must hold each of them and nothing else.
pub(crate) fn load_initial_values(path: &Path, parameters: &Parameters) -> Result<()> {
    let expected = "a value for each new parameter";
    let bytes = files::read(path)?.ok_or_else(|| content(path, expected, "no such file"))?;
    let file = Opened::new(&bytes).map_err(|fault| fault.at(path, expected))?;
    let names = file.tensors.names();
    if let Some(name) = names.into_iter().find(|name| !parameters.new_names().iter().any(|new| new == name)) {
        return Err(content(path, expected, format!("{name}, which is no new parameter of this model")));
    }
    for name in parameters.new_names() {
        let Some(variable) = parameters.get(name) else { continue };
        set(variable, file.f32(name, variable.dims()).map_err(|found| content(path, expected, found))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use std::time::{Duration, Instant};

    use peft::{Method, Model, ModelOptions, Pretrained};
    use proptest::prelude::*;

    use super::*;
    use crate::integrity::sealed;
    use crate::record::tests::{evaluation, number, text};
    use crate::run::Settings;

    fn losses(numbers: Vec<[f64; 3]>) -> Vec<StepLoss> {
        let loss = |(index, [epoch, loss, learning_rate]): (usize, [f64; 3])| StepLoss {
            step: index + 1,
            epoch,
            loss,
            learning_rate,
        };
        numbers.into_iter().enumerate().map(loss).collect()
    }

    fn read(bytes: &[u8], origin: &Origin) -> std::result::Result<State, Fault> {
        state(&Opened::new(bytes)?, origin)
    }

    fn bytes(state: &State) -> Vec<u8> {
        let mut tensors = losses::tensors(&state.losses);
        tensors.insert("parameter/classifier.weight".into(), Numbers::f32(&[1, 2], &[0.5, f32::NAN]));
        sealed(&state.origin, state, tensors).unwrap()
    }

    fn states() -> impl Strategy<Value = State> {
        let counts = (any::<usize>(), any::<usize>(), any::<Option<usize>>());
        let numbers = proptest::collection::vec([number(), number(), number()], 0..4);
        (
            counts,
            numbers,
            proptest::collection::vec(evaluation(), 0..3),
            number(),
            (text(), proptest::option::of(text())),
        )
            .prop_map(|((step, tokens, part_tokens), numbers, evaluations, train_seconds, (run, data))| {
                State {
                    origin: Origin { run, inputs: crate::Inputs { data, ..crate::Inputs::default() } },
                    step,
                    losses: losses(numbers),
                    evaluations,
                    tokens,
                    train_seconds,
                    part_tokens,
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_state_reads_back_from_its_file_whatever_numbers_and_texts_it_holds(state in states()) {
            let read = read(&bytes(&state), &state.origin).unwrap();
            // Written out, numbers are equal where their bits are, and what is not a number equals itself.
            prop_assert_eq!(format!("{read:?}"), format!("{state:?}"));
        }
    }

    #[test]
    fn a_checkpoint_with_any_one_bit_flipped_is_refused() {
        let origin = Origin { run: "rte-lora-é".into(), ..Origin::default() };
        let state = State { losses: losses(vec![[0.5, 0.7, 1e-3]]), step: 1, tokens: 9, ..State::new(origin.clone()) };
        let whole = bytes(&state);
        assert_eq!(read(&whole, &origin).unwrap(), state);
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped, &origin).is_err(), "bit {bit} of {}", 8 * whole.len());
        }
    }

    #[test]
    fn a_run_of_two_million_steps_is_saved_and_gone_on_with_in_seconds() {
        let folder = tempfile::tempdir().unwrap();
        let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft/tests/oracle/tiny-bert");
        let pretrained = Pretrained::load(oracle.to_str().unwrap()).unwrap();
        let model = Model::new(&pretrained, &ModelOptions::new(Method::lora(2), 2)).unwrap();
        let mut optimizer = Optimizer::new(&model, &Settings::default()).unwrap();
        let steps = 2_000_000;
        let file = CheckpointFile { path: folder.path().join("c"), origin: Origin::default(), steps: steps + 1 };
        let numbers = |step: usize| [step as f64 / 3.0, 1.0 / (step + 1) as f64, 1e-3];
        let state = State { step: steps, losses: losses((0..steps).map(numbers).collect()), ..State::default() };

        let began = Instant::now();
        save(&file.path, &mut optimizer, &state).unwrap();
        assert!(file.load(&mut optimizer).unwrap() == Some(state));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
