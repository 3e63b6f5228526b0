//! Operations as part of candle's graph, or of a tape.

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::operation::{InputGradient, Operation};
use super::tape;
use crate::backend::{self, Saved};
use crate::interruption;

/// Applies `operation`, and has it recorded for the backward pass. `inputs` holds tensors of one dtype.
pub(crate) fn apply<O: Operation>(operation: O, inputs: &[&Tensor]) -> Result<Tensor> {
    interruption::check()?;
    let inputs = inputs.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let mut node = Node { operation, saved: OnceLock::new() };
    if tape::is_candles() {
        return match inputs.as_slice() {
            [a] => a.apply_op1(node),
            [a, b] => a.apply_op2(b, node),
            [a, b, c] => a.apply_op3(b, c, node),
            _ => bail!("{}: {} inputs, candle's graph takes one to three; use ops::record", O::NAME, inputs.len()),
        };
    }
    let (output, saved) = backend::forward(&node.operation, &inputs.iter().collect::<Vec<_>>())?;
    node.saved = saved.map(OnceLock::from).unwrap_or_default();
    let kept = backend::reads_output(&node.operation, &output).then(|| output.clone());
    let noted = Noted { node, inputs: inputs.clone(), output: kept };
    tape::note(noted, &inputs, std::slice::from_ref(&output), O::NAME)?;
    Ok(output)
}

/// An operation that was applied.
struct Node<O> {
    operation: O,
    saved: OnceLock<Saved>,
}

/// An operation on a tape.
struct Noted<O> {
    node: Node<O>,
    inputs: Vec<Tensor>,
    /// If the backward pass reads it.
    output: Option<Tensor>,
}

impl<O: Operation> tape::Backward for Noted<O> {
    fn backward(&self, pass: tape::Pass) -> Result<Vec<Option<InputGradient>>> {
        let [Some(gradient)] = pass.gradients else {
            bail!("{}: the backward pass was called without a gradient", O::NAME)
        };
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        self.node.backward((&inputs, pass.needed), pass.earlier, self.output.as_ref(), gradient)
    }
}

impl<O: Operation> Node<O> {
    fn backward(
        &self,
        inputs: (&[&Tensor], &[bool]),
        earlier: &[Option<Tensor>],
        output: Option<&Tensor>,
        gradient: &Tensor,
    ) -> Result<Vec<Option<InputGradient>>> {
        backend::backward(&self.operation, inputs, earlier, (output, &gradient.contiguous()?), self.saved.get())
    }
}

// candle's graph.
impl<O: Operation> Node<O> {
    fn forward_on_cpu(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let (storage, shape, saved) = backend::cpu::forward_of_storages(&self.operation, inputs)?;
        Ok((storage, self.kept(shape, saved)))
    }

    #[cfg(feature = "cuda")]
    fn forward_on_gpu(&self, inputs: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let (storage, shape, saved) = crate::cuda::forward_of_storages(&self.operation, inputs)?;
        Ok((storage, self.kept(shape, saved)))
    }

    /// The shape, after what is saved has been kept.
    fn kept(&self, shape: Shape, saved: Option<Saved>) -> Shape {
        if let Some(saved) = saved {
            let _ = self.saved.set(saved); // candle applies an operation once.
        }
        shape
    }

    fn gradients(&self, inputs: &[&Tensor], output: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let needed: Vec<bool> = inputs.iter().map(|tensor| tensor.track_op()).collect();
        let found = self.backward((inputs, &needed), &[], Some(output), gradient)?;
        Ok(found.into_iter().map(|found| found.map(|found| found.tensor)).collect())
    }
}

impl<O: Operation> CustomOp1 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward_on_cpu(&[(s, l)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward_on_gpu(&[(s, l)])
    }

    fn bwd(&self, a: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(&[a], result, gradient)?.pop().flatten())
    }
}

impl<O: Operation> CustomOp2 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward_on_cpu(&[(s1, l1), (s2, l2)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward_on_gpu(&[(s1, l1), (s2, l2)])
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

impl<O: Operation> CustomOp3 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
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
        self.forward_on_cpu(&[(s1, l1), (s2, l2), (s3, l3)])
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
        self.forward_on_gpu(&[(s1, l1), (s2, l2), (s3, l3)])
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
