//! Activation functions.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::activation::Activation;

/// Its number in `pointwise.cu`.
fn number(activation: Activation) -> usize {
    match activation {
        Activation::Gelu => 0,
        Activation::GeluApproximate => 1,
        Activation::Relu => 2,
        Activation::Tanh => 3,
        Activation::Swish => 4,
    }
}

impl GpuOperation for Activation {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let (x, n) = (inputs[0], inputs[0].count());
        let y = gpu.empty(x.element, n)?;
        let kernel = Kernel::of("activation", x.element).write(&y, n).read(x, n).count(n).count(number(*self));
        // SAFETY: pointwise.cu, activation: n numbers of each.
        unsafe { kernel.launch(gpu, Grid::eights(n)) }?;
        Ok(Output::new(y, x.shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let (x, n) = (pass.inputs[0], pass.inputs[0].count());
        let dx = gpu.empty(x.element, n)?;
        let kernel = Kernel::of("activation_backward", x.element).write(&dx, n).read(x, n).read(pass.gradient, n);
        // SAFETY: pointwise.cu, activation_backward: n numbers of each.
        unsafe { kernel.count(n).count(number(*self)).launch(gpu, Grid::eights(n)) }?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}
