//! Operations on an NVIDIA GPU: what a kernel sees of a tensor, and how an operation finds its kernels.
//!
//! An operation that has kernels says so by [`Operation::on_gpu`]. One that has none is run on the CPU, and its tensors cross over:
//! slow, but right. Hidden states may be bf16 here, parameters and their gradients are always f32.

mod adamw;
mod array;
mod attention;
mod columns;
mod device;
mod gpu;
mod linear;
mod loss;
mod nccl;
mod normalization;
mod pointwise;
mod product;
mod relative_attention;
mod rotary;
mod rows;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtoh_sync;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use crate::operation::{Found, Gradient, Operation, View, tensors};

pub(crate) use adamw::adamw;
pub use adamw::{GpuFactor, GpuMoments};
pub(crate) use array::{Array, Buffer, Element, Indices, Uploaded};
pub(crate) use gpu::{Argument, Gpu};

pub(crate) use linear::GpuWeight;

pub use device::{card, card_memory, card_peak_memory, cuda_device, cuda_devices, cuda_stream};
pub use nccl::Communicators;

/// The passes of an operation that has kernels.
pub(crate) trait GpuOperation {
    /// The values of the result and its shape.
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)>;

    /// One gradient per input, of its element type; `needed` says which of them a trainable parameter stands behind.
    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>>;
}

/// What the backward pass on a GPU says of one argument.
pub(crate) type GpuGradient = Found<Buffer>;

/// The forward pass of an operation whose inputs lie on a GPU, for candle's graph.
pub(crate) fn forward<K: Operation>(operation: &K, inputs: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
    let gpu = Gpu::of(&inputs[0].0.device)?;
    check_together(&gpu, inputs, K::NAME)?;
    let arrays = inputs.iter().map(|(s, l)| Array::new(s, l, K::NAME)).collect::<Result<Vec<_>>>()?;
    let (values, shape) = run(operation, &gpu, &arrays)?;
    Ok((values.into_storage(), shape.into()))
}

/// The same for tensors.
pub(crate) fn compute<K: Operation>(operation: &K, inputs: &[&Tensor]) -> Result<Tensor> {
    let (values, shape) = with_arrays(inputs, K::NAME, |gpu, arrays| run(operation, gpu, arrays))?;
    Ok(values.into_tensor(&shape.into()))
}

fn run<K: Operation>(operation: &K, gpu: &Gpu, arrays: &[Array]) -> Result<(Buffer, Vec<usize>)> {
    if let Some(kernels) = operation.on_gpu() {
        return kernels.forward(gpu, arrays);
    }
    let copies = arrays.iter().map(|array| gpu.download(array)).collect::<Result<Vec<_>>>()?;
    let (values, shape) = operation.forward::<f32>(&views(&copies, arrays))?;
    Ok((gpu.upload(&values, arrays[0].element)?, shape))
}

/// The backward pass of an operation whose inputs lie on a GPU.
pub(crate) fn backward<K: Operation>(
    operation: &K,
    inputs: &[&Tensor],
    needed: &[bool],
    output: &Tensor,
    gradient: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let gradient = gradient.contiguous()?;
    let all: Vec<&Tensor> = inputs.iter().copied().chain([output, &gradient]).collect();
    let gradients = with_arrays(&all, K::NAME, |gpu, arrays| {
        let (inputs, ends) = arrays.split_at(inputs.len());
        if let Some(kernels) = operation.on_gpu() {
            return kernels.backward(gpu, inputs, needed, ends[0], ends[1]);
        }
        let copies = arrays.iter().map(|array| gpu.download(array)).collect::<Result<Vec<_>>>()?;
        let views = views(&copies, arrays);
        let (of, ends) = views.split_at(inputs.len());
        let found = operation.backward::<f32>(of, needed, ends[0], ends[1])?;
        let back =
            |(gradient, input): (Gradient<f32>, &Array)| gradient.map(|values| gpu.upload(&values, input.element));
        found.into_iter().zip(inputs).map(back).collect()
    })?;
    tensors(gradients, inputs, &gradient, |values, input| Ok(values.into_tensor(input.shape())))
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
    pub(crate) fn upload(&self, values: &[f32], element: Element) -> Result<Buffer> {
        match element {
            Element::F32 => self.copy(values),
            Element::Bf16 => self.copy(&values.iter().copied().map(bf16::from_f32).collect::<Vec<_>>()),
        }
    }
}

impl Buffer {
    fn into_tensor(self, shape: &Shape) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.into_storage()), shape.clone(), BackpropOp::none(), false)
    }
}
