//! Columns of one matrix beside those of another, and a range of them alone.

use std::ops::Range;

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::concatenation::{ConcatenateColumns, NarrowColumns};

impl Gpu {
    /// Copies columns of x to as many of y, whose rows have `width` numbers, from its column `first` on.
    fn copy_columns(&self, (y, width, first): (&Buffer, usize, usize), x: Array, columns: Range<usize>) -> Result<()> {
        let (rows, x_width) = x.matrix();
        let kernel = Kernel::of("copy_columns", x.element).write(y, rows * width).read(x, x.count()).counts([
            rows,
            columns.len(),
            width,
            first,
            x_width,
            columns.start,
        ]);
        // SAFETY: columns.cu, copy_columns: the operations have checked the ranges.
        unsafe { kernel.launch(self, Grid::rows(rows)) }
    }

    /// A copy of those columns alone.
    fn narrow(&self, x: Array, columns: Range<usize>) -> Result<Buffer> {
        let width = columns.len();
        let y = self.empty(x.element, x.matrix().0 * width)?;
        self.copy_columns((&y, width, 0), x, columns)?;
        Ok(y)
    }
}

impl GpuOperation for ConcatenateColumns {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let ((rows, m), (_, n)) = (inputs[0].matrix(), inputs[1].matrix());
        let y = gpu.empty(inputs[0].element, rows * (m + n))?;
        gpu.copy_columns((&y, m + n, 0), inputs[0], 0..m)?;
        let b = gpu.convert(inputs[1], inputs[0].element)?;
        gpu.copy_columns((&y, m + n, m), b.array()?, 0..n)?;
        Ok(Output::new(y, vec![rows, m + n]))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let (m, n) = (inputs[0].matrix().1, inputs[1].matrix().1);
        let part = |index: usize, columns: Range<usize>| match needed[index] {
            true => gpu.of_type(gpu.narrow(gradient, columns)?, inputs[index]),
            false => Ok(GpuGradient::None),
        };
        Ok(vec![part(0, 0..m)?, part(1, m..m + n)?])
    }
}

impl GpuOperation for NarrowColumns {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        Ok(Output::new(gpu.narrow(inputs[0], self.0.clone())?, vec![inputs[0].matrix().0, self.0.len()]))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, gradient, .. } = pass;
        let dx = gpu.zeros(inputs[0].element, inputs[0].count())?;
        gpu.copy_columns((&dx, inputs[0].matrix().1, self.0.start), gradient, 0..self.0.len())?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}
