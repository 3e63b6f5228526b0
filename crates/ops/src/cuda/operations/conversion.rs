//! The two types of numbers that a GPU knows, f32 and bf16, turned into each other.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::conversion::Conversion;

/// An array in another type of numbers: itself, or a copy.
pub(crate) enum Converted<'a> {
    Same(Array<'a>),
    Copy(Buffer, &'a [usize]),
}

impl Converted<'_> {
    pub(crate) fn array(&self) -> Result<Array<'_>> {
        match self {
            Self::Same(array) => Ok(*array),
            Self::Copy(buffer, shape) => buffer.array(shape),
        }
    }
}

impl Gpu {
    /// The same numbers as another type.
    pub(crate) fn convert<'a>(&self, x: Array<'a>, element: Element) -> Result<Converted<'a>> {
        if x.element == element {
            return Ok(Converted::Same(x));
        }
        let y = self.empty(element, x.count())?;
        self.convert_into(x, &y)?;
        Ok(Converted::Copy(y, x.shape))
    }

    /// The same numbers in memory for as many of the other type.
    pub(crate) fn convert_into(&self, x: Array, y: &Buffer) -> Result<()> {
        let n = x.count();
        let kernel = match x.element {
            Element::F32 => Kernel::bf16("to_bf16").write(y, n).read_f32(x, n),
            Element::Bf16 => Kernel::bf16("to_f32").write_f32(y, n).read(x, n),
        };
        // SAFETY: pointwise.cu: n numbers of each.
        unsafe { kernel.count(n).launch(self, Grid::eights(n)) }
    }

    /// The gradient of an input that is the result's, in that input's type.
    pub(crate) fn upstream(&self, gradient: Array, input: Array) -> Result<GpuGradient> {
        Ok(match self.convert(gradient, input.element)? {
            Converted::Copy(converted, _) => GpuGradient::Values(converted),
            Converted::Same(_) => GpuGradient::Upstream,
        })
    }

    /// The gradient of an input, in that one's type.
    pub(crate) fn of_type(&self, values: Buffer, input: Array) -> Result<GpuGradient> {
        Ok(GpuGradient::Values(match self.convert(values.array(input.shape)?, input.element)? {
            Converted::Copy(converted, _) => converted,
            Converted::Same(_) => values,
        }))
    }
}

impl GpuOperation for Conversion {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let element = match inputs[0].element {
            Element::F32 => Element::Bf16,
            Element::Bf16 => Element::F32,
        };
        let y = gpu.empty(element, inputs[0].count())?;
        gpu.convert_into(inputs[0], &y)?;
        Ok(Output::new(y, inputs[0].shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let dx = gpu.empty(pass.inputs[0].element, pass.inputs[0].count())?;
        gpu.convert_into(pass.gradient, &dx)?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}
