//! Rows that all sequences share, put before each sequence's own.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::prepend::Prepend;

impl GpuOperation for Prepend {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let (x, prefix) = (inputs[1], gpu.convert(inputs[0], inputs[1].element)?);
        let ((shared, hidden), (tokens, _), sequences) = (inputs[0].matrix(), x.matrix(), self.0.len());
        let (offsets, rows) = (gpu.shared_indices(&self.0.offsets)?, tokens + sequences * shared);
        let y = gpu.empty(x.element, rows * hidden)?;
        let kernel = Kernel::of("prepend", x.element)
            .write(&y, rows * hidden)
            .read(prefix.array()?, shared * hidden)
            .read(x, tokens * hidden)
            .indices(&offsets, sequences + 1)
            .counts([sequences, shared, rows, hidden]);
        // SAFETY: rows.cu, prepend: the offsets lie within x (`Segments::check`).
        unsafe { kernel.launch(gpu, Grid::rows(rows)) }?;
        Ok(Output::new(y, vec![rows, hidden]))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let ((shared, hidden), (tokens, _), sequences) = (inputs[0].matrix(), inputs[1].matrix(), self.0.len());
        let (offsets, numbers) = (gpu.shared_indices(&self.0.offsets)?, (tokens + sequences * shared) * hidden);
        let mut gradients = vec![GpuGradient::None, GpuGradient::None];
        if needed[0] {
            let sums = gpu.empty(Element::F32, shared * hidden)?;
            let kernel = Kernel::of("prefix_sums", gradient.element)
                .write_f32(&sums, shared * hidden)
                .read(gradient, numbers)
                .indices(&offsets, sequences + 1)
                .counts([sequences, shared, hidden]);
            // SAFETY: rows.cu, prefix_sums: the offsets lie within x (`Segments::check`), and the gradient is that much longer.
            unsafe { kernel.launch(gpu, Grid::sums(hidden, shared)) }?;
            gradients[0] = gpu.of_type(sums, inputs[0])?;
        }
        if needed[1] {
            let dx = gpu.empty(gradient.element, tokens * hidden)?;
            let kernel = Kernel::of("behind_prefix", gradient.element)
                .write(&dx, tokens * hidden)
                .read(gradient, numbers)
                .indices(&offsets, sequences + 1)
                .counts([sequences, shared, tokens, hidden]);
            // SAFETY: as above, for behind_prefix.
            unsafe { kernel.launch(gpu, Grid::rows(tokens)) }?;
            gradients[1] = GpuGradient::Values(dx);
        }
        Ok(gradients)
    }
}
