//! Layer normalisation on a GPU, alone and of a sum with a residual.

use candle_core::Result;

use super::gpu::Grid;
use super::pointwise::{Converted, dropout_arguments};
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation};
use crate::dropout::Dropout;
use crate::normalization::{AddNorm, LayerNorm};

/// What is normed: x, or `dropout(x) + residual`, `(tokens, hidden)`.
struct Rows<'a> {
    x: Array<'a>,
    residual: Option<Converted<'a>>,
    dropout: Option<Dropout>,
    epsilon: f64,
}

impl Rows<'_> {
    /// A kernel on these rows, with the arguments that come first.
    fn launch(&self, gpu: &Gpu, kernel: &str, first: &[Argument]) -> Result<()> {
        let (rows, columns) = self.x.matrix();
        let residual = self.residual.as_ref().map(Converted::array).transpose()?;
        let mut arguments = first.to_vec();
        arguments.extend([self.x.into(), residual.map_or(Argument::NULL, Argument::from)]);
        arguments.extend([rows, columns].map(Argument::from));
        arguments.push((self.epsilon as f32).into());
        arguments.extend(dropout_arguments(self.dropout));
        gpu.launch(&self.x.element.kernel(kernel), Grid::rows(rows), &arguments)
    }

    fn forward(&self, gpu: &Gpu, gamma: Array, beta: Array) -> Result<(Buffer, Vec<usize>)> {
        let y = gpu.empty(self.x.element, self.x.count())?;
        self.launch(gpu, "layer_norm", &[Argument::Pointer(y.pointer()?), gamma.into(), beta.into()])?;
        Ok((y, self.x.shape.to_vec()))
    }

    /// The gradient of the rows; `masked`: and what of it reaches x.
    fn gradients(&self, gpu: &Gpu, gamma: Array, gradient: Array, masked: bool) -> Result<(Buffer, Option<Buffer>)> {
        let empty = || gpu.empty(self.x.element, self.x.count());
        let (of_rows, masked) = (empty()?, masked.then(empty).transpose()?);
        let to = [of_rows.pointer()?, masked.as_ref().map_or(Ok(0), Buffer::pointer)?].map(Argument::Pointer);
        self.launch(gpu, "layer_norm_backward", &[to[0], to[1], gamma.into(), gradient.into()])?;
        Ok((of_rows, masked))
    }

    /// The gradients of gamma and beta, `(hidden)`.
    fn vector_gradients(&self, gpu: &Gpu, gradient: Array, needed: &[bool]) -> Result<Vec<GpuGradient>> {
        let mut gradients = vec![GpuGradient::None, GpuGradient::None];
        if needed[0] {
            let normalized = gpu.empty(Element::F32, self.x.count())?;
            self.launch(gpu, "normalize_rows", &[Argument::Pointer(normalized.pointer()?)])?;
            let gradient = gpu.convert(gradient, Element::F32)?;
            let sums = gpu.column_products(gradient.array()?, normalized.array(self.x.shape)?)?;
            gradients[0] = GpuGradient::Values(sums);
        }
        if needed[1] {
            gradients[1] = GpuGradient::Values(gpu.column_sums(gradient)?);
        }
        Ok(gradients)
    }
}

impl LayerNorm {
    fn rows<'a>(&self, x: Array<'a>) -> Rows<'a> {
        Rows { x, residual: None, dropout: None, epsilon: self.epsilon }
    }
}

impl GpuOperation for LayerNorm {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        self.rows(inputs[0]).forward(gpu, inputs[1], inputs[2])
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let rows = self.rows(inputs[0]);
        let mut gradients = vec![match needed[0] {
            true => GpuGradient::Values(rows.gradients(gpu, inputs[1], gradient, false)?.0),
            false => GpuGradient::None,
        }];
        gradients.extend(rows.vector_gradients(gpu, gradient, &needed[1..])?);
        Ok(gradients)
    }
}

impl AddNorm {
    fn rows<'a>(&self, gpu: &Gpu, residual: Array<'a>, x: Array<'a>) -> Result<Rows<'a>> {
        let residual = Some(gpu.convert(residual, x.element)?);
        Ok(Rows { x, residual, dropout: self.dropout, epsilon: self.epsilon })
    }
}

impl GpuOperation for AddNorm {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        self.rows(gpu, inputs[0], inputs[1])?.forward(gpu, inputs[2], inputs[3])
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let rows = self.rows(gpu, inputs[0], inputs[1])?;
        let mut gradients = vec![GpuGradient::None, GpuGradient::None];
        if needed[0] || needed[1] {
            // Without a mask both have the same, if they are of one type.
            let is_same = self.dropout.is_none() && needed[0] && inputs[0].element == inputs[1].element;
            let (of_sums, masked) = rows.gradients(gpu, inputs[2], gradient, needed[1] && !is_same)?;
            gradients[1] = match masked {
                Some(masked) => GpuGradient::Values(masked),
                None if needed[1] => GpuGradient::Same(0),
                None => GpuGradient::None,
            };
            if needed[0] {
                gradients[0] = gpu.of_type(of_sums, inputs[0])?;
            }
        }
        gradients.extend(rows.vector_gradients(gpu, gradient, &needed[2..])?);
        Ok(gradients)
    }
}
