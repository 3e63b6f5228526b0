//! The one bridge between candle's custom operations and kernels over plain slices.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::float::Float;
use crate::tape::{self, Backward};

/// A contiguous tensor as a kernel sees it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub data: &'a [T],
    pub shape: &'a [usize],
}

impl<T> View<'_, T> {
    /// `(rows, columns)`, all dimensions but the last folded into the rows.
    pub fn matrix(&self) -> (usize, usize) {
        let columns = self.shape.last().copied().unwrap_or(1);
        (self.data.len() / columns.max(1), columns)
    }
}

/// What the backward pass says of one argument, its values in memory of kind `V`.
pub(crate) enum Found<V> {
    /// The argument is frozen: nothing was computed.
    None,
    /// The same values as the gradient of the result.
    Upstream,
    /// The same values as the gradient of an argument before, of its type.
    Same(usize),
    Values(V),
}

/// What the backward pass on the CPU says of one argument.
pub(crate) type Gradient<T> = Found<Vec<T>>;

impl<V> Found<V> {
    /// The same in memory of another kind.
    #[cfg(feature = "cuda")]
    pub fn map<W>(self, values: impl FnOnce(V) -> Result<W>) -> Result<Found<W>> {
        Ok(match self {
            Self::None => Found::None,
            Self::Upstream => Found::Upstream,
            Self::Same(index) => Found::Same(index),
            Self::Values(found) => Found::Values(values(found)?),
        })
    }
}

/// The gradients of inputs as tensors: `tensor` makes one of values, for an input.
pub(crate) fn tensors<V>(
    found: Vec<Found<V>>,
    inputs: &[&Tensor],
    upstream: &Tensor,
    tensor: impl Fn(V, &Tensor) -> Result<Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let mut tensors: Vec<Option<Tensor>> = Vec::with_capacity(inputs.len());
    for (found, input) in found.into_iter().zip(inputs) {
        tensors.push(match found {
            Found::None => None,
            Found::Upstream => Some(upstream.clone()),
            Found::Same(index) => tensors.get(index).cloned().flatten(),
            Found::Values(values) => Some(tensor(values, input)?),
        });
    }
    Ok(tensors)
}

/// A differentiable operation of some tensors, written over slices. candle's graph takes those of up to three.
pub(crate) trait Operation: Send + Sync + 'static {
    const NAME: &'static str;

    /// The values of the result and its shape.
    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)>;

    /// One gradient per input; `needed` says which of them a trainable parameter stands behind.
    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        needed: &[bool],
        output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>>;

    /// Its kernels, if it has such.
    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Option<&dyn crate::cuda::GpuOperation> {
        None
    }
}

/// Applies `operation`, and has it recorded for the backward pass. `inputs` holds tensors of one dtype.
pub(crate) fn apply<K: Operation>(operation: K, inputs: &[&Tensor]) -> Result<Tensor> {
    let inputs = inputs.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let operation = Bridge(operation);
    if tape::is_candles() {
        return match inputs.as_slice() {
            [a] => a.apply_op1(operation),
            [a, b] => a.apply_op2(b, operation),
            [a, b, c] => a.apply_op3(b, c, operation),
            _ => bail!("{}: {} inputs, candle's graph takes one to three; use ops::record", K::NAME, inputs.len()),
        };
    }
    let output = operation.compute(&inputs.iter().collect::<Vec<_>>())?;
    tape::note(operation, &inputs, &output, K::NAME)?;
    Ok(output)
}

struct Bridge<K>(K);

impl<K: Operation> Backward for Bridge<K> {
    fn backward(
        &self,
        inputs: &[&Tensor],
        needed: &[bool],
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        fn run<K: Operation, T: Float>(
            operation: &K,
            inputs: &[&Tensor],
            needed: &[bool],
            output: &Tensor,
            gradient: &Tensor,
        ) -> Result<Vec<Option<Tensor>>> {
            let gradient = gradient.contiguous()?;
            let gradients = with_views::<T, _>(inputs, K::NAME, |views| {
                with_views::<T, _>(&[output, &gradient], K::NAME, |ends| {
                    operation.backward(views, needed, ends[0], ends[1])
                })
            })?;
            tensors(gradients, inputs, &gradient, |values, input| {
                Tensor::from_vec(values, input.shape(), input.device())
            })
        }
        #[cfg(feature = "cuda")]
        if gradient.device().is_cuda() {
            return cuda::backward(&self.0, inputs, needed, output, gradient);
        }
        match gradient.dtype() {
            DType::F32 => run::<K, f32>(&self.0, inputs, needed, output, gradient),
            DType::F64 => run::<K, f64>(&self.0, inputs, needed, output, gradient),
            other => bail!("{}: expected an f32 or f64 gradient, found {other:?}", K::NAME),
        }
    }
}

impl<K: Operation> Bridge<K> {
    /// The result, of which candle's graph knows nothing.
    fn compute(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        fn run<K: Operation, T: Float>(operation: &K, inputs: &[&Tensor]) -> Result<Tensor> {
            let (values, shape) = with_views::<T, _>(inputs, K::NAME, |views| operation.forward(views))?;
            Tensor::from_vec(values, shape, inputs[0].device())
        }
        #[cfg(feature = "cuda")]
        if inputs[0].device().is_cuda() {
            return cuda::compute(&self.0, inputs);
        }
        match inputs[0].dtype() {
            DType::F32 => run::<K, f32>(&self.0, inputs),
            DType::F64 => run::<K, f64>(&self.0, inputs),
            other => bail!("{}: expected f32 or f64 tensors, found {other:?}", K::NAME),
        }
    }

    fn forward(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        fn run<K: Operation, T: Float>(
            operation: &K,
            inputs: &[(&CpuStorage, &Layout)],
        ) -> Result<(CpuStorage, Shape)> {
            let views = inputs.iter().map(|(s, l)| view::<T>(s, l, K::NAME)).collect::<Result<Vec<_>>>()?;
            let (values, shape) = operation.forward(&views)?;
            Ok((T::to_cpu_storage_owned(values), shape.into()))
        }
        match inputs[0].0 {
            CpuStorage::F32(_) => run::<K, f32>(&self.0, inputs),
            CpuStorage::F64(_) => run::<K, f64>(&self.0, inputs),
            _ => bail!("{}: expected f32 or f64 tensors", K::NAME),
        }
    }

    /// For candle's graph.
    fn gradients(&self, inputs: &[&Tensor], output: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let needed: Vec<bool> = inputs.iter().map(|tensor| tensor.track_op()).collect();
        self.backward(inputs, &needed, output, gradient)
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

impl<K: Operation> CustomOp1 for Bridge<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s, l)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(&self.0, &[(s, l)])
    }

    fn bwd(&self, a: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(&[a], result, gradient)?.pop().flatten())
    }
}

impl<K: Operation> CustomOp2 for Bridge<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(&self.0, &[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(&[a, b], result, gradient)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl<K: Operation> CustomOp3 for Bridge<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::forward(&self.0, &[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(&[a, b, c], result, gradient)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}
