//! The CPU: numbers, memory, threads, matrix products, and operations run over slices.

pub(crate) mod float;
pub(crate) mod memory;
pub(crate) mod products;
pub(crate) mod reductions;
pub(crate) mod threads;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

use crate::autograd::operation::{Backward, InputGradient, Operation, View, tensors};
use crate::backend::Saved;
use float::Float;

/// See [`crate::backend::forward`].
pub(crate) fn forward<O: Operation>(operation: &O, inputs: &[&Tensor]) -> Result<(Tensor, Option<Saved>)> {
    fn run<O: Operation, T: Float>(operation: &O, inputs: &[&Tensor]) -> Result<(Tensor, Option<Saved>)> {
        let output = with_views::<T, _>(inputs, O::NAME, |views| operation.forward(views))?;
        let tensor = Tensor::from_vec(output.values, output.shape, inputs[0].device())?;
        Ok((tensor, output.saved.map(boxed)))
    }
    match inputs[0].dtype() {
        DType::F32 => run::<O, f32>(operation, inputs),
        DType::F64 => run::<O, f64>(operation, inputs),
        other => bail!("{}: expected f32 or f64 tensors, found {other:?}", O::NAME),
    }
}

/// The same for candle's graph.
pub(crate) fn forward_of_storages<O: Operation>(
    operation: &O,
    inputs: &[(&CpuStorage, &Layout)],
) -> Result<(CpuStorage, Shape, Option<Saved>)> {
    fn run<O: Operation, T: Float>(
        operation: &O,
        inputs: &[(&CpuStorage, &Layout)],
    ) -> Result<(CpuStorage, Shape, Option<Saved>)> {
        let views = inputs.iter().map(|(s, l)| view::<T>(s, l, O::NAME)).collect::<Result<Vec<_>>>()?;
        let output = operation.forward(&views)?;
        Ok((T::to_cpu_storage_owned(output.values), output.shape.into(), output.saved.map(boxed)))
    }
    match inputs[0].0 {
        CpuStorage::F32(_) => run::<O, f32>(operation, inputs),
        CpuStorage::F64(_) => run::<O, f64>(operation, inputs),
        _ => bail!("{}: expected f32 or f64 tensors", O::NAME),
    }
}

fn boxed<T: Float>(saved: Vec<T>) -> Saved {
    Box::new(saved)
}

/// See [`crate::backend::backward`].
pub(crate) fn backward<O: Operation>(
    operation: &O,
    inputs: (&[&Tensor], &[bool]),
    ends: (Option<&Tensor>, &Tensor),
    saved: Option<&Saved>,
) -> Result<Vec<Option<InputGradient>>> {
    fn run<O: Operation, T: Float>(
        operation: &O,
        (inputs, needed): (&[&Tensor], &[bool]),
        (output, gradient): (Option<&Tensor>, &Tensor),
        saved: Option<&Saved>,
    ) -> Result<Vec<Option<InputGradient>>> {
        let saved = saved.and_then(|saved| saved.downcast_ref::<Vec<T>>());
        let gradients = with_views::<T, _>(inputs, O::NAME, |views| {
            let ends: Vec<&Tensor> = std::iter::once(gradient).chain(output).collect();
            with_views::<T, _>(&ends, O::NAME, |ends| {
                operation.backward(Backward::new::<O>((views, needed), (ends.get(1).copied(), ends[0]), saved))
            })
        })?;
        tensors(gradients, inputs, gradient, |values, input| Tensor::from_vec(values, input.shape(), input.device()))
    }
    match ends.1.dtype() {
        DType::F32 => run::<O, f32>(operation, inputs, ends, saved),
        DType::F64 => run::<O, f64>(operation, inputs, ends, saved),
        other => bail!("{}: expected an f32 or f64 gradient, found {other:?}", O::NAME),
    }
}

fn view<'a, T: WithDType>(storage: &'a CpuStorage, layout: &'a Layout, name: &str) -> Result<View<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("{name}: expected contiguous tensors") };
    Ok(View { data: &storage.as_slice::<T>()?[start..end], shape: layout.dims() })
}

/// Reads contiguous CPU tensors as slices for the time of one call.
pub(crate) fn with_views<T: WithDType, R>(
    tensors: &[&Tensor],
    name: &str,
    read: impl FnOnce(&[View<T>]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let views = guards
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cpu(cpu) => view(cpu, layout, name),
            _ => bail!("{name}: expected tensors on the CPU, found one on another device"),
        })
        .collect::<Result<Vec<_>>>()?;
    read(&views)
}
