//! AdamW over all parameters at once.

use std::borrow::Cow;

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, Result, Tensor, bail};

use super::array::pointer;
use super::{Array, Buffer, Element, Gpu, Grid, Kernel, with_arrays};
use crate::adamw::{AdamWSettings, AdamWSlot, ClipFactor, DeviceMoments, Moments, ParameterMoments};

/// A parameter's moments on the GPU.
#[derive(Debug)]
struct GpuMoments {
    first: Buffer,
    second: Buffer,
}

impl DeviceMoments for GpuMoments {
    fn read(&self) -> Result<Cow<'_, Moments>> {
        Ok(Cow::Owned(Moments { first: self.first.read()?, second: self.second.read()? }))
    }
}

/// See [`crate::backend::moments`].
pub(crate) fn moments(parameter: &Tensor, moments: Option<&Moments>) -> Result<ParameterMoments> {
    let (gpu, count) = (Gpu::of(parameter.device().as_cuda_device()?)?, parameter.elem_count());
    Ok(ParameterMoments::on(match moments {
        Some(moments) => GpuMoments { first: gpu.copy(&moments.first)?, second: gpu.copy(&moments.second)? },
        None => GpuMoments { first: gpu.zeros(Element::F32, count)?, second: gpu.zeros(Element::F32, count)? },
    }))
}

/// Numbers that a block takes: `SLOT_CHUNK` in `adamw.cu`.
const CHUNK: usize = 4096;
const THREADS: usize = 256;

/// See [`crate::adamw()`].
pub(crate) fn adamw(slots: &mut [AdamWSlot], loss: &Tensor, settings: AdamWSettings) -> Result<ClipFactor> {
    let gradients = slots.iter().map(|slot| slot.gradient.contiguous()).collect::<Result<Vec<_>>>()?;
    let parameters = slots.iter().map(|slot| slot.parameter.as_tensor());
    let tensors: Vec<&Tensor> = parameters.chain(&gradients).chain([loss]).collect();
    with_arrays(&tensors, "adamw", |gpu, arrays| {
        let (parameters, others) = arrays.split_at(slots.len());
        let (gradients, loss) = others.split_at(slots.len());
        let (table, blocks) = table(slots, parameters, gradients, settings)?;
        let factor = launch(gpu, &table, (slots.len(), blocks), loss[0], settings)?;
        let storage = candle_core::Storage::Cuda(CudaStorage::wrap_cuda_slice(factor, gpu.device.clone()));
        Ok(ClipFactor::new(Tensor::from_storage(storage, (), BackpropOp::none(), false)))
    })
}

/// For each parameter a `Slot` of `adamw.cu`, in words of 64 bits, and how many blocks all take together.
fn table(
    slots: &mut [AdamWSlot],
    parameters: &[Array],
    gradients: &[Array],
    settings: AdamWSettings,
) -> Result<(Vec<u64>, usize)> {
    let correction = 1.0 - settings.beta1.powi(settings.step as i32);
    let (mut table, mut blocks) = (Vec::with_capacity(7 * slots.len()), 0);
    for ((slot, parameter), gradient) in slots.iter_mut().zip(parameters).zip(gradients) {
        let moments: &mut GpuMoments = slot.moments.of()?;
        if parameter.shape != gradient.shape
            || [parameter.element, gradient.element] != [Element::F32; 2]
            || [moments.first.count(), moments.second.count()] != [parameter.count(); 2]
        {
            bail!("adamw: parameter {:?}, gradient {:?}, f32 expected", parameter.shape, gradient.shape)
        }
        let keep = (1.0 - slot.learning_rate * slot.weight_decay) as f32;
        let rate = (slot.learning_rate / correction) as f32;
        table.extend([parameter.pointer, gradient.pointer, moments.first.pointer(), moments.second.pointer()]);
        table.extend([parameter.count() as u64, blocks as u64]);
        // Two floats in a word, the first in its lower half: GPUs are little-endian.
        table.push(u64::from(keep.to_bits()) | u64::from(rate.to_bits()) << 32);
        blocks += parameter.count().div_ceil(CHUNK);
    }
    Ok((table, blocks))
}

fn launch(
    gpu: &Gpu,
    table: &[u64],
    (slots, blocks): (usize, usize),
    loss: Array,
    settings: AdamWSettings,
) -> Result<CudaSlice<f64>> {
    let table = gpu.words(table)?;
    let factor = gpu.doubles(1)?;
    let sums = gpu.doubles(blocks.max(1))?;
    let grid = Grid::blocks(blocks, THREADS);
    // SAFETY: adamw.cu: a slot of the table for each parameter, whose arrays `table` has checked; a sum for each block.
    unsafe {
        if settings.max_norm.is_some() {
            let kernel = Kernel::f32("gradient_squares").address(pointer(&sums)).address(pointer(&table)).count(slots);
            kernel.launch(gpu, grid)?;
        }
        let (limit, summed) = settings.max_norm.map_or((1.0, 0), |limit| (limit, blocks));
        let kernel = Kernel::f32("clip_factor").address(pointer(&factor)).address(pointer(&sums)).count(summed);
        kernel.double(limit).launch(gpu, Grid::blocks(1, THREADS))?;
        let correction = 1.0 / (1.0 - settings.beta2.powi(settings.step as i32)).sqrt();
        let numbers = [settings.beta1, settings.beta2, correction, settings.epsilon];
        let kernel = Kernel::f32("adamw").address(pointer(&table)).count(slots).address(pointer(&factor)).read(loss, 1);
        numbers.into_iter().fold(kernel, |kernel, number| kernel.float(number as f32)).launch(gpu, grid)?;
    }
    Ok(factor)
}

impl Buffer {
    /// A copy on the CPU. Waits for the GPU.
    fn read(&self) -> Result<Vec<f32>> {
        match self.to_cpu()? {
            CpuStorage::F32(values) => Ok(values),
            _ => bail!("adamw: moments that are not f32"),
        }
    }
}
