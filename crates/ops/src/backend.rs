//! The device that computes: the CPU, or with the feature `cuda` the GPU where the tensors lie.
//!
//! Nothing else chooses between the two: an operation knows its passes on the CPU, and its GPU kernels are found here.

use std::any::Any;
use std::sync::Arc;

use candle_core::{Device, Error, Result, Tensor, bail};

use crate::adamw::{AdamWSettings, AdamWSlot, ClipFactor, Moments, ParameterMoments};
use crate::autograd::{InputGradient, Operation};
pub(crate) use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::operations::linear::{CpuWeight, LinearLayer, Precision, Weight};

/// What a forward pass has saved, in the memory of its device.
pub(crate) type Saved = Box<dyn Any + Send + Sync>;

/// The result of an operation, of which candle's graph knows nothing, and what its backward pass needs.
pub(crate) fn forward<O: Operation>(operation: &O, inputs: &[&Tensor]) -> Result<(Tensor, Option<Saved>)> {
    #[cfg(feature = "cuda")]
    if inputs[0].device().is_cuda() {
        return cuda::forward(operation, inputs);
    }
    cpu::forward(operation, inputs)
}

/// Whether an operation's backward pass reads its result.
pub(crate) fn reads_output<O: Operation>(operation: &O, output: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    if output.device().is_cuda() {
        return cuda::reads_output(operation);
    }
    let _ = (operation, output);
    true
}

/// The gradients of an operation's inputs, given its result, if its backward pass reads it, and the contiguous gradient of that.
pub(crate) fn backward<O: Operation>(
    operation: &O,
    inputs: (&[&Tensor], &[bool]),
    earlier: &[Option<Tensor>],
    ends: (Option<&Tensor>, &Tensor),
    saved: Option<&Saved>,
) -> Result<Vec<Option<InputGradient>>> {
    #[cfg(feature = "cuda")]
    if ends.1.device().is_cuda() {
        return cuda::backward(operation, inputs, earlier, ends, saved);
    }
    let _ = earlier; // The CPU adds up what operations find.
    cpu::backward(operation, inputs, ends, saved)
}

/// Several linear layers of one input, where their device computes them together.
pub(crate) fn linear_layers(x: &Tensor, layers: &[LinearLayer]) -> Result<Option<Vec<Tensor>>> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::linear_layers(x, layers);
    }
    let _ = (x, layers);
    Ok(None)
}

/// A weight as the operations of its device are given it.
pub(crate) fn factor(weight: &Weight) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if weight.device().is_cuda() {
        return cuda::factor(weight);
    }
    Ok(weight.tensor().clone())
}

/// A weight as its device multiplies by it: ordered or rounded once if it is frozen. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Prepared(Arc<dyn Any + Send + Sync>);

impl Prepared {
    /// # Errors
    /// When the tensor is no matrix, or its numbers cannot be multiplied at that precision.
    pub(crate) fn new(weight: &Tensor, device: &Device, precision: Precision) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return Ok(Self(Arc::new(cuda::GpuWeight::new(precision, !weight.track_op()))));
        }
        let _ = device;
        Ok(Self(Arc::new(CpuWeight::new(weight, precision)?)))
    }

    /// As the device of `W` has it, for an operation of that name.
    pub(crate) fn of<W: 'static>(&self, operation: &str) -> Result<&W> {
        match self.0.downcast_ref() {
            Some(weight) => Ok(weight),
            None => bail!("{operation}: the weight lies on another device; move all tensors to one by to_device"),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.0
    }
}

impl From<Arc<dyn Any + Send + Sync>> for Prepared {
    fn from(weight: Arc<dyn Any + Send + Sync>) -> Self {
        Self(weight)
    }
}

/// Moments on the device of their parameter.
pub(crate) fn moments(parameter: &Tensor, moments: Option<Moments>) -> Result<ParameterMoments> {
    #[cfg(feature = "cuda")]
    if parameter.device().is_cuda() {
        return cuda::moments(parameter, moments.as_ref());
    }
    Ok(ParameterMoments::on(moments.unwrap_or_else(|| Moments::zeros(parameter.elem_count()))))
}

/// A step of AdamW on the device of the loss.
pub(crate) fn adamw(slots: &mut [AdamWSlot], loss: &Tensor, settings: AdamWSettings) -> Result<ClipFactor> {
    #[cfg(feature = "cuda")]
    if loss.device().is_cuda() {
        return cuda::adamw(slots, loss, settings);
    }
    crate::adamw::on_cpu(slots, loss, settings)
}

/// Whether an error says that a device's memory did not suffice: that of a GPU, since on the CPU the system ends the process.
pub fn is_out_of_memory(error: &Error) -> bool {
    #[cfg(feature = "cuda")]
    return cuda::is_out_of_memory(error);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = error;
        false
    }
}
