//! Sums, differences and multiples.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::add::{AddScaled, Scale};

impl Gpu {
    /// `factor * x`.
    fn scaled(&self, x: Array, factor: f64) -> Result<Buffer> {
        let n = x.count();
        let y = self.empty(x.element, n)?;
        let kernel = Kernel::of("scale", x.element).write(&y, n).read(x, n).count(n).float(factor as f32);
        // SAFETY: pointwise.cu, scale: n numbers of each.
        unsafe { kernel.launch(self, Grid::eights(n)) }?;
        Ok(y)
    }
}

impl GpuOperation for AddScaled {
    /// In the type of the first.
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let (a, b, n) = (inputs[0], gpu.convert(inputs[1], inputs[0].element)?, inputs[0].count());
        let y = gpu.empty(a.element, n)?;
        let kernel = Kernel::of("add_scaled", a.element).write(&y, n).read(a, n).read(b.array()?, n);
        // SAFETY: pointwise.cu, add_scaled: n numbers of each.
        unsafe { kernel.count(n).float(self.factor as f32).launch(gpu, Grid::eights(n)) }?;
        Ok(Output::new(y, a.shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let a = if pass.needed[0] { GpuGradient::Upstream } else { GpuGradient::None };
        let b = match pass.needed[1] {
            false => GpuGradient::None,
            true if self.factor == 1.0 => gpu.upstream(pass.gradient, pass.inputs[1])?,
            true => gpu.of_type(gpu.scaled(pass.gradient, self.factor)?, pass.inputs[1])?,
        };
        Ok(vec![a, b])
    }
}

impl GpuOperation for Scale {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        Ok(Output::new(gpu.scaled(inputs[0], self.factor)?, inputs[0].shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        Ok(vec![GpuGradient::Values(gpu.scaled(pass.gradient, self.factor)?)])
    }
}
