//! Checkpoint files: parameters, optimizer state and progress of a run between two steps, in one safetensors file, so that it is whole
//! or not there; and files of trained weights.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use ops::{Moments, ParameterMoments};
use peft::Parameters;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::record::{Evaluation, StepLoss};
use crate::training::Optimizer;

/// What a run has logged and counted so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Steps taken.
    pub step: usize,
    pub losses: Vec<StepLoss>,
    pub evaluations: Vec<Evaluation>,
    pub tokens: usize,
    pub train_seconds: f64,
    /// How many tokens go through the model at once, where memory did not suffice for a batch.
    #[serde(default)]
    pub part_tokens: Option<usize>,
}

/// f32 numbers as they stand in a file.
fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(view: &TensorView) -> Option<Vec<f32>> {
    let number = |b: &[u8]| b.try_into().ok().map(f32::from_le_bytes);
    if view.dtype() != Dtype::F32 { None } else { view.data().chunks_exact(4).map(number).collect() }
}

fn values(variable: &Var) -> Result<Vec<f32>> {
    Ok(variable.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

fn write(
    path: &Path,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let failed = |error: safetensors::SafeTensorError| content(path, "tensors that fit their shapes", error);
    let views = tensors
        .iter()
        .map(|(name, (shape, data))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(failed)?;
    files::write_atomically(path, &safetensors::serialize(views, Some(metadata)).map_err(failed)?)
}

fn content(path: &Path, expected: &'static str, found: impl ToString) -> Error {
    Error::Content { path: path.into(), expected, found: found.to_string() }
}

/// Writes parameters, optimizer state and what was logged.
pub(crate) fn save(path: &Path, optimizer: &mut Optimizer, state: &State) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for slot in &optimizer.slots {
        let shape = slot.variable.dims().to_vec();
        let mut put = |kind: &str, data| tensors.insert(format!("{kind}/{}", slot.name), (shape.clone(), data));
        put("parameter", bytes(&values(&slot.variable)?));
        let moments = slot.moments.read()?;
        put("first_moment", bytes(&moments.first));
        put("second_moment", bytes(&moments.second));
    }
    for (name, values) in optimizer.after_step.iter_mut().flat_map(|after_step| after_step.state()) {
        tensors.insert(name, (vec![values.len()], bytes(values)));
    }
    let progress = serde_json::to_string(state).map_err(|error| content(path, "a progress that serializes", error))?;
    write(path, tensors, HashMap::from([("progress".to_string(), progress)]))
}

/// Restores what [`save`] wrote into parameters and optimizer; `None` if there is no checkpoint.
pub(crate) fn load(path: &Path, optimizer: &mut Optimizer) -> Result<Option<State>> {
    let Some(bytes) = files::read(path)? else { return Ok(None) };
    let expected = "a checkpoint of this run";
    let file = SafeTensors::deserialize(&bytes).map_err(|error| content(path, expected, error))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| content(path, expected, error))?;
    let progress = header.metadata().as_ref().and_then(|metadata| metadata.get("progress"));
    let progress = progress.ok_or_else(|| content(path, expected, "no progress"))?;
    let progress = serde_json::from_str(progress).map_err(|error| content(path, expected, error))?;
    for slot in &mut optimizer.slots {
        let get = |kind: &str| {
            let name = format!("{kind}/{}", slot.name);
            tensor(&file, &name, slot.variable.dims()).map_err(|found| content(path, expected, found))
        };
        let (parameter, first, second) = (get("parameter")?, get("first_moment")?, get("second_moment")?);
        set(&slot.variable, parameter)?;
        slot.moments = ParameterMoments::new(&slot.variable, Moments { first, second })?;
    }
    for (name, values) in optimizer.after_step.iter_mut().flat_map(|after_step| after_step.state()) {
        *values = tensor(&file, &name, &[values.len()]).map_err(|found| content(path, expected, found))?;
    }
    Ok(Some(progress))
}

/// The values of a tensor of that shape; else what was found instead.
fn tensor(file: &SafeTensors, name: &str, shape: &[usize]) -> std::result::Result<Vec<f32>, String> {
    let view = file.tensor(name).map_err(|error| format!("{name}: {error}"))?;
    floats(&view).filter(|_| view.shape() == shape).ok_or_else(|| format!("{name} of shape {:?}", view.shape()))
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

/// Writes the trained parameters under their own names.
pub(crate) fn save_weights(path: &Path, parameters: &Parameters) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, variable) in parameters.trainable() {
        tensors.insert(name.to_string(), (variable.dims().to_vec(), bytes(&values(variable)?)));
    }
    write(path, tensors, HashMap::from([("format".to_string(), "pt".to_string())]))
}

/// Sets the trained parameters to what [`save_weights`] wrote; `false` if there is no file.
pub(crate) fn load_weights(path: &Path, parameters: &Parameters) -> Result<bool> {
    let Some(bytes) = files::read(path)? else { return Ok(false) };
    let expected = "the trained parameters of this run";
    let file = SafeTensors::deserialize(&bytes).map_err(|error| content(path, expected, error))?;
    for (name, variable) in parameters.trainable() {
        set(variable, tensor(&file, name, variable.dims()).map_err(|found| content(path, expected, found))?)?;
    }
    Ok(true)
}

/// Sets the parameters that no checkpoint holds to the values in a file, which must hold each of them and nothing else.
pub(crate) fn load_initial_values(path: &Path, parameters: &Parameters) -> Result<()> {
    let expected = "a value for each new parameter";
    let bytes = files::read(path)?.ok_or_else(|| content(path, expected, "no such file"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| content(path, expected, error))?;
    if let Some(name) = file.names().into_iter().find(|name| !parameters.new_names().iter().any(|new| new == name)) {
        return Err(content(path, expected, format!("{name}, which is no new parameter of this model")));
    }
    for name in parameters.new_names() {
        let Some(variable) = parameters.get(name) else { continue };
        set(variable, tensor(&file, name, variable.dims()).map_err(|found| content(path, expected, found))?)?;
    }
    Ok(())
}
