//! What training makes small, on a GPU: in f32, whatever the type of the scores.

use candle_core::Result;

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation};
use crate::loss::{CrossEntropy, MeanSquaredError};

/// The one block.
const THREADS: usize = 256;

impl Gpu {
    /// A kernel of one block that writes so many numbers.
    fn by_one_block(&self, kernel: &str, count: usize, arguments: &[Argument]) -> Result<Buffer> {
        let y = self.empty(Element::F32, count)?;
        let mut all = vec![Argument::Pointer(y.pointer()?)];
        all.extend(arguments);
        self.launch(kernel, Grid::blocks(1, THREADS), &all)?;
        Ok(y)
    }
}

impl GpuOperation for CrossEntropy {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let ((rows, columns), logits) = (inputs[0].matrix(), gpu.convert(inputs[0], Element::F32)?);
        let classes = gpu.indices(&self.classes)?;
        let arguments = [logits.array()?.into(), (&classes).into(), rows.into(), columns.into()];
        Ok((gpu.by_one_block("cross_entropy", 1, &arguments)?, Vec::new()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let ((rows, columns), logits) = (inputs[0].matrix(), gpu.convert(inputs[0], Element::F32)?);
        let classes = gpu.indices(&self.classes)?;
        let arguments = [logits.array()?.into(), (&classes).into(), gradient.into(), rows.into(), columns.into()];
        let values = gpu.by_one_block("cross_entropy_backward", rows * columns, &arguments)?;
        Ok(vec![gpu.of_type(values, inputs[0])?])
    }
}

impl GpuOperation for MeanSquaredError {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let (scores, targets) = (gpu.convert(inputs[0], Element::F32)?, gpu.convert(inputs[1], Element::F32)?);
        let arguments = [scores.array()?.into(), targets.array()?.into(), inputs[0].count().into()];
        Ok((gpu.by_one_block("mean_squared_error", 1, &arguments)?, Vec::new()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let (scores, targets) = (gpu.convert(inputs[0], Element::F32)?, gpu.convert(inputs[1], Element::F32)?);
        let count = inputs[0].count();
        let arguments = [scores.array()?.into(), targets.array()?.into(), gradient.into(), count.into()];
        let values = gpu.by_one_block("mean_squared_error_backward", count, &arguments)?;
        Ok(vec![gpu.of_type(values, inputs[0])?, GpuGradient::None])
    }
}
