//! Layer normalisation on a GPU.

use candle_core::Result;

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation};
use crate::normalization::LayerNorm;

impl LayerNorm {
    /// A kernel from rows to as many rows.
    fn rows(&self, gpu: &Gpu, kernel: &str, x: Array, others: &[Array], element: Element) -> Result<Buffer> {
        let (rows, columns) = x.matrix();
        let y = gpu.empty(element, x.count())?;
        let mut arguments = vec![y.array(x.shape)?.into(), x.into()];
        arguments.extend(others.iter().map(|&other| Argument::from(other)));
        arguments.extend([rows, columns].map(Argument::from));
        arguments.push((self.epsilon as f32).into());
        gpu.launch(&x.element.kernel(kernel), Grid::rows(rows), &arguments)?;
        Ok(y)
    }
}

impl GpuOperation for LayerNorm {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let x = inputs[0];
        Ok((self.rows(gpu, "layer_norm", x, &inputs[1..], x.element)?, x.shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let [x, gamma] = [inputs[0], inputs[1]];
        let mut gradients = vec![GpuGradient::None, GpuGradient::None, GpuGradient::None];
        if needed[0] {
            let dx = self.rows(gpu, "layer_norm_backward", x, &[gamma, gradient], x.element)?;
            gradients[0] = GpuGradient::Values(dx);
        }
        if needed[1] {
            let normalized = self.rows(gpu, "normalize_rows", x, &[], Element::F32)?;
            let gradient = gpu.convert(gradient, Element::F32)?;
            let sums = gpu.column_products(gradient.array()?, normalized.array(x.shape)?)?;
            gradients[1] = GpuGradient::Values(sums); // (hidden)
        }
        if needed[2] {
            gradients[2] = GpuGradient::Values(gpu.column_sums(gradient)?); // (hidden)
        }
        Ok(gradients)
    }
}
