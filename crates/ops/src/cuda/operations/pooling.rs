//! One vector for each sequence.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::pooling::{FirstTokens, SegmentMean};

impl GpuOperation for FirstTokens {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let (x, offsets, shape) =
            (inputs[0], gpu.shared_indices(&self.0.offsets)?, [self.0.len(), inputs[0].matrix().1]);
        let y = gpu.empty(x.element, shape[0] * shape[1])?;
        let kernel = Kernel::of("gather_rows", x.element).write(&y, shape[0] * shape[1]).read(x, x.count());
        // SAFETY: rows.cu, gather_rows: the offsets lie within x (`Segments::check`).
        unsafe { kernel.indices(&offsets, shape[0]).counts(shape).launch(gpu, Grid::rows(shape[0])) }?;
        Ok(Output::new(y, shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let (x, gradient, offsets) = (pass.inputs[0], pass.gradient, gpu.shared_indices(&self.0.offsets)?);
        let (rows, columns) = gradient.matrix();
        let dx = gpu.zeros(x.element, x.count())?;
        let kernel = Kernel::of("scatter_rows", x.element).write(&dx, x.count()).read(gradient, rows * columns);
        // SAFETY: rows.cu, scatter_rows: the offsets lie within x (`Segments::check`).
        unsafe { kernel.indices(&offsets, rows).counts([rows, columns]).launch(gpu, Grid::rows(rows)) }?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}

impl GpuOperation for SegmentMean {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let (x, (tokens, hidden), sequences) = (inputs[0], inputs[0].matrix(), self.0.len());
        self.0.check(tokens, "segment_mean")?;
        let offsets = gpu.shared_indices(&self.0.offsets)?;
        let y = gpu.empty(x.element, sequences * hidden)?;
        let kernel = Kernel::of("segment_mean", x.element).write(&y, sequences * hidden).read(x, x.count());
        // SAFETY: rows.cu, segment_mean: the offsets lie within x (checked above).
        unsafe { kernel.indices(&offsets, sequences + 1).count(hidden).launch(gpu, Grid::sums(hidden, sequences)) }?;
        Ok(Output::new(y, vec![sequences, hidden]))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let (x, gradient, sequences) = (pass.inputs[0], pass.gradient, self.0.len());
        let ((rows, columns), offsets) = (x.matrix(), gpu.shared_indices(&self.0.offsets)?);
        let dx = gpu.empty(x.element, x.count())?;
        let kernel = Kernel::of("segment_mean_backward", x.element)
            .write(&dx, x.count())
            .read(gradient, sequences * columns)
            .indices(&offsets, sequences + 1)
            .counts([sequences, rows, columns]);
        // SAFETY: rows.cu, segment_mean_backward: a row of the gradient for each sequence.
        unsafe { kernel.launch(gpu, Grid::rows(rows)) }?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}
