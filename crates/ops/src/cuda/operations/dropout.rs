//! Dropout, alone and before a residual.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::dropout::{AddDropout, Dropout, Mask};

impl Gpu {
    /// `mask * x`.
    pub(crate) fn masked(&self, x: Array, dropout: Dropout) -> Result<Buffer> {
        let n = x.count();
        let y = self.empty(x.element, n)?;
        let kernel = Kernel::of("dropout", x.element).write(&y, n).read(x, n).count(n).dropout(Some(dropout));
        // SAFETY: pointwise.cu, dropout: n numbers of each.
        unsafe { kernel.launch(self, Grid::eights(n)) }?;
        Ok(y)
    }

    /// `mask * x + others`, in the type of x.
    pub(crate) fn add_masked(&self, x: Array, others: Array, dropout: Dropout) -> Result<Buffer> {
        let (n, others) = (x.count(), self.convert(others, x.element)?);
        let y = self.empty(x.element, n)?;
        let kernel = Kernel::of("add_dropout", x.element).write(&y, n).read(x, n).read(others.array()?, n);
        // SAFETY: pointwise.cu, add_dropout: n numbers of each.
        unsafe { kernel.count(n).dropout(Some(dropout)).launch(self, Grid::eights(n)) }?;
        Ok(y)
    }
}

impl GpuOperation for Mask {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        Ok(Output::new(gpu.masked(inputs[0], self.0)?, inputs[0].shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        Ok(vec![GpuGradient::Values(gpu.masked(pass.gradient, self.0)?)])
    }
}

impl GpuOperation for AddDropout {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        Ok(Output::new(gpu.add_masked(inputs[0], inputs[1], self.0)?, inputs[0].shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let x = if needed[0] { GpuGradient::Values(gpu.masked(gradient, self.0)?) } else { GpuGradient::None };
        Ok(vec![x, if needed[1] { gpu.upstream(gradient, inputs[1])? } else { GpuGradient::None }])
    }
}
