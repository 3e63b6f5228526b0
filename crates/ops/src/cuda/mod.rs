//! Operations on an NVIDIA GPU.
//!
//! An operation that has kernels is found in [`operations`]. One that has none is run on the CPU, and its tensors cross over: slow, but
//! right. Hidden states may be bf16 here, parameters and their gradients are always f32.

mod adamw;
mod array;
mod cublaslt;
mod device;
mod gpu;
mod kernel;
mod launches;
mod memory;
mod nccl;
mod operations;
mod pool;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtoh_sync;
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use crate::autograd::operation::{
    Backward, BackwardPass, Found, Gradient, InputGradient, Operation, Output, View, tensors,
};
use crate::backend::Saved;

pub(crate) use adamw::{adamw, moments};
use array::{Array, Buffer, Element, Indices};
pub use device::{
    card, card_memory, card_peak_memory, cuda_device, cuda_devices, cuda_stream, forget_card_peak_memory,
};
use gpu::Gpu;
use kernel::{Grid, Kernel};
pub use launches::count_launches;
pub(crate) use memory::is_out_of_memory;
pub use nccl::Communicators;
pub(crate) use operations::linear::{GpuWeight, factor};
pub(crate) use operations::linear_layers::linear_layers;

/// The passes of an operation that has kernels.
pub(crate) trait GpuOperation {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>>;

    /// Whether the backward pass reads the result, which is kept until then.
    fn reads_output(&self) -> bool {
        false
    }

    /// One gradient per input, of its element type.
    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>>;
}

/// A backward pass on a GPU.
pub(crate) type GpuBackward<'a> = BackwardPass<'a, Array<'a>, Buffer>;

/// What a backward pass on a GPU says of one input.
pub(crate) type GpuGradient = Found<Buffer>;

/// See [`crate::backend::forward`].
pub(crate) fn forward<O: Operation>(operation: &O, inputs: &[&Tensor]) -> Result<(Tensor, Option<Saved>)> {
    let (output, saved) = with_arrays(inputs, O::NAME, |gpu, arrays| run(operation, gpu, arrays))?;
    Ok((output.values.into_tensor(&output.shape.into()), saved))
}

/// The same for candle's graph.
pub(crate) fn forward_of_storages<O: Operation>(
    operation: &O,
    inputs: &[(&CudaStorage, &Layout)],
) -> Result<(CudaStorage, Shape, Option<Saved>)> {
    let gpu = Gpu::of(&inputs[0].0.device)?;
    check_together(&gpu, inputs, O::NAME)?;
    let arrays = inputs.iter().map(|(s, l)| Array::new(s, l, O::NAME)).collect::<Result<Vec<_>>>()?;
    let (output, saved) = run(operation, &gpu, &arrays)?;
    Ok((output.values.into_storage(), output.shape.into(), saved))
}

fn run<O: Operation>(operation: &O, gpu: &Gpu, arrays: &[Array]) -> Result<(Output<Buffer>, Option<Saved>)> {
    if let Some(kernels) = operations::find(operation) {
        let mut output = kernels.forward(gpu, arrays)?;
        let saved = output.saved.take().map(|saved| Box::new(saved) as Saved);
        return Ok((output, saved));
    }
    let copies = arrays.iter().map(|array| gpu.download(array)).collect::<Result<Vec<_>>>()?;
    let Output { values, shape, saved } = operation.forward::<f32>(&views(&copies, arrays))?;
    let values = gpu.upload(&values, arrays[0].element)?;
    Ok((Output::new(values, shape), saved.map(|saved| Box::new(saved) as Saved)))
}

/// See [`crate::backend::reads_output`].
pub(crate) fn reads_output<O: Operation>(operation: &O) -> bool {
    operations::find(operation).is_none_or(GpuOperation::reads_output)
}

/// See [`crate::backend::backward`].
pub(crate) fn backward<O: Operation>(
    operation: &O,
    (inputs, needed): (&[&Tensor], &[bool]),
    earlier: &[Option<Tensor>],
    (output, gradient): (Option<&Tensor>, &Tensor),
    saved: Option<&Saved>,
) -> Result<Vec<Option<InputGradient>>> {
    let all = inputs.iter().copied().chain([gradient]).chain(output).chain(earlier.iter().flatten());
    let gradients = with_arrays(&all.collect::<Vec<_>>(), O::NAME, |gpu, arrays| {
        let (of, others) = arrays.split_at(inputs.len());
        let (ends, others) = others.split_at(if output.is_some() { 2 } else { 1 });
        if let Some(kernels) = operations::find(operation) {
            let saved = saved.and_then(|saved| saved.downcast_ref());
            let earlier = spread(earlier, others);
            let pass = GpuBackward::new::<O>((of, needed), (ends.get(1).copied(), ends[0]), saved);
            return kernels.backward(gpu, pass.after(&earlier));
        }
        let arrays = &arrays[..inputs.len() + ends.len()];
        let copies = arrays.iter().map(|array| gpu.download(array)).collect::<Result<Vec<_>>>()?;
        let views = views(&copies, arrays);
        let (views, ends) = views.split_at(inputs.len());
        let saved = saved.and_then(|saved| saved.downcast_ref());
        let found = operation.backward(Backward::new::<O>((views, needed), (ends.get(1).copied(), ends[0]), saved))?;
        let back = |(gradient, input): (Gradient<f32>, &Array)| {
            Ok(match gradient {
                Found::None => Found::None,
                Found::Upstream => Found::Upstream,
                Found::Same(index) => Found::Same(index),
                Found::Values(values) => Found::Values(gpu.upload(&values, input.element)?),
                Found::Sum(values) => Found::Sum(gpu.upload(&values, input.element)?),
            })
        };
        found.into_iter().zip(of).map(back).collect()
    })?;
    tensors(gradients, inputs, gradient, |values, input| Ok(values.into_tensor(input.shape())))
}

/// Arrays in the places of the tensors that are there.
fn spread<'a>(tensors: &[Option<Tensor>], arrays: &[Array<'a>]) -> Vec<Option<Array<'a>>> {
    let mut arrays = arrays.iter().copied();
    tensors.iter().map(|tensor| tensor.as_ref().and_then(|_| arrays.next())).collect()
}

/// Reads contiguous tensors of one GPU for the time of one call.
pub(crate) fn with_arrays<R>(
    tensors: &[&Tensor],
    name: &str,
    read: impl FnOnce(&Gpu, &[Array]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let storages = guards
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cuda(cuda) => Ok((cuda, *layout)),
            _ => bail!("{name}: expected tensors on one GPU, found one that is not; move it there by to_device"),
        })
        .collect::<Result<Vec<_>>>()?;
    let gpu = Gpu::of(&storages[0].0.device)?;
    check_together(&gpu, &storages, name)?;
    let arrays = storages.iter().map(|(s, l)| Array::new(s, l, name)).collect::<Result<Vec<_>>>()?;
    read(&gpu, &arrays)
}

/// Fails if some are on another GPU, whose memory a kernel cannot reach.
fn check_together(gpu: &Gpu, storages: &[(&CudaStorage, &Layout)], name: &str) -> Result<()> {
    if storages.iter().any(|(storage, _)| storage.device.id() != gpu.id()) {
        bail!("{name}: expected tensors on one GPU, found them on several; move them to one by to_device")
    }
    Ok(())
}

fn views<'a>(copies: &'a [Vec<f32>], arrays: &[Array<'a>]) -> Vec<View<'a, f32>> {
    copies.iter().zip(arrays).map(|(data, array)| View { data, shape: array.shape }).collect()
}

impl Gpu {
    /// A copy on the CPU, as f32. Waits for the GPU.
    fn download(&self, array: &Array) -> Result<Vec<f32>> {
        fn copy<T: Copy>(gpu: &Gpu, array: &Array, zero: T) -> Result<Vec<T>> {
            let mut values = vec![zero; array.count()];
            gpu.stream.synchronize().w()?;
            // SAFETY: the array's memory is alive as long as it is borrowed, and nothing that writes to it is under way.
            unsafe { memcpy_dtoh_sync(&mut values, array.pointer) }.w()?;
            Ok(values)
        }
        Ok(match array.element {
            Element::F32 => copy(self, array, 0f32)?,
            Element::Bf16 => copy(self, array, bf16::ZERO)?.into_iter().map(bf16::to_f32).collect(),
        })
    }

    /// A copy on the GPU.
    fn upload(&self, values: &[f32], element: Element) -> Result<Buffer> {
        match element {
            Element::F32 => self.copy(values),
            Element::Bf16 => self.copy(&values.iter().copied().map(bf16::from_f32).collect::<Vec<_>>()),
        }
    }
}
