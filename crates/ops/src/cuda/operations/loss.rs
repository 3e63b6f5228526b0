//! Losses: in f32, whatever the type of the scores.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::loss::{CrossEntropy, MeanSquaredError};

/// One block.
fn one_block() -> Grid {
    const THREADS: usize = 256;
    Grid::blocks(1, THREADS)
}

impl GpuOperation for CrossEntropy {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let ((rows, columns), logits) = (inputs[0].matrix(), gpu.convert(inputs[0], Element::F32)?);
        let (classes, loss) = (gpu.indices(&self.classes)?, gpu.empty(Element::F32, 1)?);
        let kernel = Kernel::f32("cross_entropy")
            .write(&loss, 1)
            .read(logits.array()?, rows * columns)
            .indices(&classes, rows)
            .counts([rows, columns]);
        // SAFETY: loss.cu, cross_entropy: `cross_entropy` has checked the classes.
        unsafe { kernel.launch(gpu, one_block()) }?;
        Ok(Output::new(loss, Vec::new()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let logits = pass.inputs[0];
        let ((rows, columns), exact) = (logits.matrix(), gpu.convert(logits, Element::F32)?);
        let (classes, of_logits) = (gpu.indices(&self.classes)?, gpu.empty(Element::F32, rows * columns)?);
        let kernel = Kernel::f32("cross_entropy_backward")
            .write(&of_logits, rows * columns)
            .read(exact.array()?, rows * columns)
            .indices(&classes, rows)
            .read(pass.gradient, 1)
            .counts([rows, columns]);
        // SAFETY: as above.
        unsafe { kernel.launch(gpu, one_block()) }?;
        Ok(vec![gpu.of_type(of_logits, logits)?])
    }
}

impl GpuOperation for MeanSquaredError {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let (scores, targets) = (gpu.convert(inputs[0], Element::F32)?, gpu.convert(inputs[1], Element::F32)?);
        let (n, loss) = (inputs[0].count(), gpu.empty(Element::F32, 1)?);
        let kernel =
            Kernel::f32("mean_squared_error").write(&loss, 1).read(scores.array()?, n).read(targets.array()?, n);
        // SAFETY: loss.cu, mean_squared_error: n numbers of each.
        unsafe { kernel.count(n).launch(gpu, one_block()) }?;
        Ok(Output::new(loss, Vec::new()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let [scores, targets] = [pass.inputs[0], pass.inputs[1]];
        let (exact, targets) = (gpu.convert(scores, Element::F32)?, gpu.convert(targets, Element::F32)?);
        let (n, of_scores) = (scores.count(), gpu.empty(Element::F32, scores.count())?);
        let kernel = Kernel::f32("mean_squared_error_backward")
            .write(&of_scores, n)
            .read(exact.array()?, n)
            .read(targets.array()?, n)
            .read(pass.gradient, 1)
            .count(n);
        // SAFETY: as above.
        unsafe { kernel.launch(gpu, one_block()) }?;
        Ok(vec![gpu.of_type(of_scores, scores)?, GpuGradient::None])
    }
}
