//! The two types of numbers that a GPU knows, f32 and bf16, turned into each other.

use candle_core::{Result, bail};

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

/// The first multiple of eight numbers that is no less: where 16 bytes begin, in bf16.
pub(crate) fn aligned(count: usize) -> usize {
    count.next_multiple_of(8)
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

    /// Up to eight arrays of f32, rounded to bf16, and room for so many numbers behind them. Each begins at the [`aligned`] end of the
    /// one before.
    pub(crate) fn rounded(&self, arrays: &[Array], room: usize) -> Result<Buffer> {
        const MOST: usize = 8;
        if arrays.len() > MOST {
            bail!("{} arrays to be rounded at once; the kernel takes {MOST}", arrays.len())
        }
        let counts: Vec<usize> = arrays.iter().map(Array::count).collect();
        let (all, most) =
            (counts.iter().map(|&count| aligned(count)).sum::<usize>(), counts.iter().copied().max().unwrap_or(0));
        let y = self.empty(Element::Bf16, all + room)?;
        let kernel =
            (0..MOST).fold(Kernel::bf16("round_arrays").write(&y, all), |kernel, index| match arrays.get(index) {
                Some(array) => kernel.read_f32(*array, array.count()),
                None => kernel.nothing(),
            });
        let kernel = (0..MOST).fold(kernel, |kernel, index| kernel.count(counts.get(index).copied().unwrap_or(0)));
        let grid = Grid { blocks: (Grid::eights(most).blocks.0, arrays.len()), ..Grid::eights(most) };
        // SAFETY: pointwise.cu, round_arrays: all numbers of the arrays, and their counts.
        unsafe { kernel.launch(self, grid) }?;
        Ok(y)
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
