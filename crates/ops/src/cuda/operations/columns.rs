//! Vectors over the columns of hidden states, and sums over rows.

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel, with_arrays};
use crate::operations::columns::{AddBias, ScaleColumns};

/// Rows that one block sums. What a sum comes to depends on it, never on the card.
const SLICE: usize = 256;

impl Gpu {
    /// The sum of each column of a `(rows, columns)` matrix, in f32: `(columns)`.
    pub(crate) fn column_sums(&self, x: Array) -> Result<Buffer> {
        self.sums(x, None)
    }

    /// The same of `a * b`.
    pub(crate) fn column_products(&self, a: Array, b: Array) -> Result<Buffer> {
        self.sums(a, Some(b))
    }

    fn sums(&self, a: Array, b: Option<Array>) -> Result<Buffer> {
        let (rows, columns) = a.matrix();
        let slices = rows.div_ceil(SLICE).max(1);
        let sums = self.empty(Element::F32, slices * columns)?; // (slices, columns)
        let kernel = Kernel::of("column_sums", a.element)
            .write_f32(&sums, slices * columns)
            .read(a, rows * columns)
            .read_if(b, rows * columns)
            .counts([rows, columns, SLICE]);
        // SAFETY: columns.cu, column_sums.
        unsafe { kernel.launch(self, Grid::sums(columns, slices)) }?;
        match slices {
            1 => Ok(sums),
            _ => self.sums(sums.array(&[slices, columns])?, None),
        }
    }
}

impl GpuOperation for AddBias {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let [x, bias] = [inputs[0], inputs[1]];
        let (rows, columns) = x.matrix();
        let y = gpu.empty(x.element, x.count())?;
        let bias = gpu.convert(bias, Element::F32)?;
        let kernel = Kernel::of("add_bias", x.element).write(&y, x.count()).read(x, x.count());
        // SAFETY: columns.cu, add_bias.
        unsafe { kernel.read_f32(bias.array()?, columns).counts([rows, columns]).launch(gpu, Grid::rows(rows)) }?;
        Ok(Output::new(y, x.shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let x = if needed[0] { GpuGradient::Upstream } else { GpuGradient::None };
        let bias = match needed[1] {
            true => gpu.of_type(gpu.column_sums(gradient)?, inputs[1])?,
            false => GpuGradient::None,
        };
        Ok(vec![x, bias])
    }
}

impl ScaleColumns {
    /// `x * scale / over` in each row.
    fn scaled(&self, gpu: &Gpu, x: Array, scale: Option<Array>) -> Result<Buffer> {
        let (_, columns) = x.matrix();
        let rows = x.count() / columns;
        let y = gpu.empty(x.element, x.count())?;
        let scale = scale.map(|scale| gpu.convert(scale, Element::F32)).transpose()?;
        let kernel = Kernel::of("scale_columns", x.element).write(&y, x.count()).read(x, x.count());
        let kernel = match &scale {
            Some(scale) => kernel.read_f32(scale.array()?, columns),
            None => kernel.nothing(),
        };
        // SAFETY: columns.cu, scale_columns.
        let launch = |kernel: Kernel| unsafe { kernel.counts([rows, columns]).launch(gpu, Grid::rows(rows)) };
        match &self.over {
            None => launch(kernel.nothing())?,
            Some(over) => with_arrays(&[over], "scale_columns", |gpu, over| {
                launch(kernel.read_f32(gpu.convert(over[0], Element::F32)?.array()?, columns))
            })?,
        }
        Ok(y)
    }
}

impl GpuOperation for ScaleColumns {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        Ok(Output::new(self.scaled(gpu, inputs[0], Some(inputs[1]))?, inputs[0].shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let x = match needed[0] {
            true => GpuGradient::Values(self.scaled(gpu, gradient, Some(inputs[1]))?), // (tokens, hidden)
            false => GpuGradient::None,
        };
        let scale = match needed[1] {
            true => {
                let sums = gpu.column_products(gradient, inputs[0])?; // (hidden)
                gpu.of_type(self.scaled(gpu, sums.array(&[1, inputs[1].count()])?, None)?, inputs[1])?
            }
            false => GpuGradient::None,
        };
        Ok(vec![x, scale])
    }
}
