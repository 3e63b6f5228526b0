//! The product within gated linear units.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::gate::Gate;

impl Gpu {
    /// `a * b`, in the type of a.
    fn times(&self, a: Array, b: Array) -> Result<Buffer> {
        let (n, b) = (a.count(), self.convert(b, a.element)?);
        let y = self.empty(a.element, n)?;
        let kernel = Kernel::of("gate", a.element).write(&y, n).read(a, n).read(b.array()?, n).count(n);
        // SAFETY: pointwise.cu, gate: n numbers of each.
        unsafe { kernel.launch(self, Grid::eights(n)) }?;
        Ok(y)
    }
}

impl GpuOperation for Gate {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        Ok(Output::new(gpu.times(inputs[0], inputs[1])?, inputs[0].shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let of = |index: usize, other: Array| match needed[index] {
            true => gpu.of_type(gpu.times(gradient, other)?, inputs[index]),
            false => Ok(GpuGradient::None),
        };
        Ok(vec![of(0, inputs[1])?, of(1, inputs[0])?])
    }
}
