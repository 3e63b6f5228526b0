//! AdamW over all parameters at once.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CpuStorage, Device, Result, Tensor, bail};

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Element, Gpu, with_arrays};
use crate::adamw::{AdamWSettings, AdamWSlot, Moments};

/// A parameter's moments on the GPU.
#[derive(Debug)]
pub struct GpuMoments {
    first: Buffer,
    second: Buffer,
}

impl GpuMoments {
    pub(crate) fn zeros(parameter: &Tensor) -> Result<Self> {
        let (gpu, count) = (Gpu::of(parameter.device().as_cuda_device()?)?, parameter.elem_count());
        Ok(Self { first: gpu.zeros(Element::F32, count)?, second: gpu.zeros(Element::F32, count)? })
    }

    pub(crate) fn new(device: &Device, moments: &Moments) -> Result<Self> {
        let gpu = Gpu::of(device.as_cuda_device()?)?;
        Ok(Self { first: gpu.copy(&moments.first)?, second: gpu.copy(&moments.second)? })
    }

    pub(crate) fn read(&self) -> Result<Moments> {
        Ok(Moments { first: self.first.read()?, second: self.second.read()? })
    }
}

/// What the gradients of a step are multiplied by, on the GPU: one number.
pub struct GpuFactor(CudaSlice<f64>);

impl GpuFactor {
    pub(crate) fn read(&self) -> Result<f64> {
        let values = self.0.stream().clone_dtoh(&self.0).w()?;
        values.first().copied().ok_or_else(|| candle_core::Error::Msg("adamw: no clip factor".into()).bt())
    }
}

/// Numbers that a block takes: `SLOT_CHUNK` in `adamw.cu`.
const CHUNK: usize = 4096;
const THREADS: usize = 256;

/// See [`crate::adamw()`].
pub(crate) fn adamw(slots: &[AdamWSlot], loss: &Tensor, settings: AdamWSettings) -> Result<GpuFactor> {
    let gradients = slots.iter().map(|slot| slot.gradient.contiguous()).collect::<Result<Vec<_>>>()?;
    let parameters = slots.iter().map(|slot| slot.parameter.as_tensor());
    let tensors: Vec<&Tensor> = parameters.chain(&gradients).chain([loss]).collect();
    with_arrays(&tensors, "adamw", |gpu, arrays| {
        let (parameters, others) = arrays.split_at(slots.len());
        let (gradients, loss) = others.split_at(slots.len());
        let (table, blocks) = table(slots, parameters, gradients, settings)?;
        launch(gpu, &table, (slots.len(), blocks), loss[0], settings).map(GpuFactor)
    })
}

/// For each parameter a `Slot` of `adamw.cu`, in words of 64 bits, and how many blocks all take together.
fn table(
    slots: &[AdamWSlot],
    parameters: &[Array],
    gradients: &[Array],
    settings: AdamWSettings,
) -> Result<(Vec<u64>, usize)> {
    let correction = 1.0 - settings.beta1.powi(settings.step as i32);
    let (mut table, mut blocks) = (Vec::with_capacity(7 * slots.len()), 0);
    for ((slot, parameter), gradient) in slots.iter().zip(parameters).zip(gradients) {
        let Some(moments) = slot.moments.on_gpu() else { bail!("adamw: a parameter's moments are not on its GPU") };
        if parameter.shape != gradient.shape
            || [parameter.element, gradient.element] != [Element::F32; 2]
            || [moments.first.count(), moments.second.count()] != [parameter.count(); 2]
        {
            bail!("adamw: parameter {:?}, gradient {:?}, f32 expected", parameter.shape, gradient.shape)
        }
        let keep = (1.0 - slot.learning_rate * slot.weight_decay) as f32;
        let rate = (slot.learning_rate / correction) as f32;
        table.extend([parameter.pointer, gradient.pointer, moments.first.pointer()?, moments.second.pointer()?]);
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
    let address = |slice: &CudaSlice<f64>| Argument::Pointer(super::array::pointer(slice));
    let slots = [Argument::Pointer(super::array::pointer(&table)), slots.into()];
    if settings.max_norm.is_some() {
        gpu.launch("gradient_squares", Grid::blocks(blocks, THREADS), &[&[address(&sums)], &slots[..]].concat())?;
    }
    let (limit, summed) = settings.max_norm.map_or((1.0, 0), |limit| (limit, blocks));
    let arguments = [address(&factor), address(&sums), summed.into(), Argument::Double(limit)];
    gpu.launch("clip_factor", Grid::blocks(1, THREADS), &arguments)?;
    let correction = 1.0 / (1.0 - settings.beta2.powi(settings.step as i32)).sqrt();
    let numbers = [settings.beta1, settings.beta2, correction, settings.epsilon].map(|x| Argument::Float(x as f32));
    let arguments = [&slots[..], &[address(&factor), loss.into()], &numbers].concat();
    gpu.launch("adamw", Grid::blocks(blocks, THREADS), &arguments)?;
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
