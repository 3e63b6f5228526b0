//! Tensors from one device to another.

use candle_core::{Device, Result, Tensor};

/// The same tensor on another device, as [`Tensor::to_device`], also where both are GPUs, or streams of one.
///
/// candle copies between GPUs in the order of the receiving stream alone: it does not wait until the other one has written what is read,
/// and that one may give the memory to others before it has been. Here such a copy goes by way of the CPU, which waits for both.
///
/// # Errors
/// When the device's memory does not suffice.
pub fn to_device(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    let are_two_gpus = tensor.device().is_cuda() && device.is_cuda() && !tensor.device().same_device(device);
    if are_two_gpus { tensor.to_device(&Device::Cpu)?.to_device(device) } else { tensor.to_device(device) }
}
