//! Vectors over the columns of hidden states, ranges of columns, and sums over rows.

use std::ops::Range;

use candle_core::Result;

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation, with_arrays};
use crate::columns::{AddBias, ScaleColumns};
use crate::concatenation::{ConcatenateColumns, NarrowColumns};

/// Rows that one block sums. What a sum comes to depends on it, never on the card.
const SLICE: usize = 256;

impl Gpu {
    /// The sum of each column of a `(rows, columns)` matrix, in f32: `(columns)`.
    pub fn column_sums(&self, x: Array) -> Result<Buffer> {
        self.sums(x, None)
    }

    /// The same of `a * b`.
    pub fn column_products(&self, a: Array, b: Array) -> Result<Buffer> {
        self.sums(a, Some(b))
    }

    fn sums(&self, a: Array, b: Option<Array>) -> Result<Buffer> {
        let (rows, columns) = a.matrix();
        let slices = rows.div_ceil(SLICE).max(1);
        let sums = self.empty(Element::F32, slices * columns)?; // (slices, columns)
        let shape = [slices, columns];
        let mut arguments = vec![sums.array(&shape)?.into(), a.into(), b.map_or(Argument::NULL, Argument::from)];
        arguments.extend([rows, columns, SLICE].map(Argument::from));
        self.launch(&a.element.kernel("column_sums"), Grid::sums(columns, slices), &arguments)?;
        match slices {
            1 => Ok(sums),
            _ => self.sums(sums.array(&shape)?, None),
        }
    }
}

impl GpuOperation for AddBias {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let [x, bias] = [inputs[0], inputs[1]];
        let (rows, columns) = x.matrix();
        let y = gpu.empty(x.element, x.count())?;
        let bias = gpu.convert(bias, Element::F32)?;
        let arguments = [y.array(x.shape)?.into(), x.into(), bias.array()?.into(), rows.into(), columns.into()];
        gpu.launch(&x.element.kernel("add_bias"), Grid::rows(rows), &arguments)?;
        Ok((y, x.shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
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
        let factors = match &scale {
            Some(scale) => scale.array()?.into(),
            None => Argument::NULL,
        };
        let launch = |over: Argument| {
            let arguments = [y.array(x.shape)?.into(), x.into(), factors, over, rows.into(), columns.into()];
            gpu.launch(&x.element.kernel("scale_columns"), Grid::rows(rows), &arguments)
        };
        match &self.over {
            None => launch(Argument::NULL)?,
            Some(over) => with_arrays(&[over], "scale_columns", |gpu, over| {
                launch(gpu.convert(over[0], Element::F32)?.array()?.into())
            })?,
        }
        Ok(y)
    }
}

impl GpuOperation for ScaleColumns {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        Ok((self.scaled(gpu, inputs[0], Some(inputs[1]))?, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
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

impl Gpu {
    /// Copies columns of `x` to as many of `y`, from the columns named first on.
    fn copy_columns(&self, y: Array, y_first: usize, x: Array, x_columns: Range<usize>) -> Result<()> {
        let ((rows, x_width), (_, y_width)) = (x.matrix(), y.matrix());
        let mut arguments = vec![y.into(), x.into()];
        arguments.extend([rows, x_columns.len(), y_width, y_first, x_width, x_columns.start].map(Argument::from));
        self.launch(&x.element.kernel("copy_columns"), Grid::rows(rows), &arguments)
    }

    /// A copy of those columns alone.
    fn narrow(&self, x: Array, columns: Range<usize>) -> Result<Buffer> {
        let shape = [x.matrix().0, columns.len()];
        let y = self.empty(x.element, shape[0] * shape[1])?;
        self.copy_columns(y.array(&shape)?, 0, x, columns)?;
        Ok(y)
    }
}

impl GpuOperation for ConcatenateColumns {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let ((rows, m), (_, n)) = (inputs[0].matrix(), inputs[1].matrix());
        let shape = [rows, m + n];
        let y = gpu.empty(inputs[0].element, rows * (m + n))?;
        gpu.copy_columns(y.array(&shape)?, 0, inputs[0], 0..m)?;
        let b = gpu.convert(inputs[1], inputs[0].element)?;
        gpu.copy_columns(y.array(&shape)?, m, b.array()?, 0..n)?;
        Ok((y, shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let (m, n) = (inputs[0].matrix().1, inputs[1].matrix().1);
        let part = |index: usize, columns: Range<usize>| match needed[index] {
            true => gpu.of_type(gpu.narrow(gradient, columns)?, inputs[index]),
            false => Ok(GpuGradient::None),
        };
        Ok(vec![part(0, 0..m)?, part(1, m..m + n)?])
    }
}

impl GpuOperation for NarrowColumns {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        Ok((gpu.narrow(inputs[0], self.0.clone())?, vec![inputs[0].matrix().0, self.0.len()]))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let dx = gpu.zeros(inputs[0].element, inputs[0].count())?;
        gpu.copy_columns(dx.array(inputs[0].shape)?, self.0.start, gradient, 0..self.0.len())?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}
