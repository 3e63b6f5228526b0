//! Rows looked up, moved and summed on a GPU.

use candle_core::Result;

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Element, Gpu, GpuGradient, GpuOperation};
use crate::embedding::EmbeddingSum;
use crate::prefix::Prepend;
use crate::segments::{FirstTokens, SegmentMean};

/// The positions of equal rows together, so that each row of a table is summed by one block, in the order of the tokens.
struct Lists {
    /// The rows that come at all, in order.
    rows: Vec<u32>,
    /// Where in `tokens` the tokens of each of them begin, and the end.
    starts: Vec<u32>,
    tokens: Vec<u32>,
}

impl Lists {
    fn new(looked_up: &[u32]) -> Self {
        let mut tokens: Vec<u32> = (0..looked_up.len() as u32).collect();
        tokens.sort_by_key(|&token| looked_up[token as usize]); // Keeps the order of equal ones.
        let (mut rows, mut starts) = (Vec::new(), Vec::new());
        for (position, &token) in tokens.iter().enumerate() {
            let row = looked_up[token as usize];
            if rows.last() != Some(&row) {
                rows.push(row);
                starts.push(position as u32);
            }
        }
        starts.push(tokens.len() as u32);
        Self { rows, starts, tokens }
    }
}

impl Gpu {
    /// The gradient of a table whose rows were looked up, each for one row of what they became.
    pub fn table_gradient(&self, table: Array, looked_up: &[u32], gradient: Array) -> Result<GpuGradient> {
        let (_, columns) = table.matrix();
        let sums = self.zeros(Element::F32, table.count())?;
        let lists = Lists::new(looked_up);
        let [rows, starts, tokens] = [&lists.rows, &lists.starts, &lists.tokens].map(|list| self.indices(list));
        let (rows, starts, tokens) = (rows?, starts?, tokens?);
        let arguments = [
            Argument::Pointer(sums.pointer()?),
            gradient.into(),
            (&rows).into(),
            (&starts).into(),
            (&tokens).into(),
            columns.into(),
        ];
        self.launch(&gradient.element.kernel("row_sums"), Grid::sums(columns, lists.rows.len()), &arguments)?;
        self.of_type(sums, table)
    }
}

impl GpuOperation for EmbeddingSum {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let (tokens, (_, hidden)) = (self.rows[0].len(), inputs[0].matrix());
        let indices = gpu.indices(&self.rows.concat())?; // (3, tokens)
        let y = gpu.empty(Element::F32, tokens * hidden)?;
        let tables = inputs.iter().map(|&table| gpu.convert(table, Element::F32)).collect::<Result<Vec<_>>>()?;
        let mut arguments = vec![Argument::Pointer(y.pointer()?)];
        for table in &tables {
            arguments.push(table.array()?.into());
        }
        arguments.push((&indices).into());
        arguments.extend([tokens, hidden].map(Argument::from));
        gpu.launch("embedding_sum", Grid::rows(tokens), &arguments)?;
        Ok((y, vec![tokens, hidden]))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let of = |index: usize| match needed[index] {
            true => gpu.table_gradient(inputs[index], &self.rows[index], gradient),
            false => Ok(GpuGradient::None),
        };
        (0..inputs.len()).map(of).collect()
    }
}

impl GpuOperation for FirstTokens {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let (x, offsets, shape) = (inputs[0], self.0.on_gpu(gpu)?, vec![self.0.len(), inputs[0].matrix().1]);
        let y = gpu.empty(x.element, shape[0] * shape[1])?;
        let arguments = [y.array(&shape)?.into(), x.into(), (&*offsets).into(), shape[0].into(), shape[1].into()];
        gpu.launch(&x.element.kernel("gather_rows"), Grid::rows(shape[0]), &arguments)?;
        Ok((y, shape))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let (x, offsets, (rows, columns)) = (inputs[0], self.0.on_gpu(gpu)?, gradient.matrix());
        let dx = gpu.zeros(x.element, x.count())?;
        let arguments = [dx.array(x.shape)?.into(), gradient.into(), (&*offsets).into(), rows.into(), columns.into()];
        gpu.launch(&x.element.kernel("scatter_rows"), Grid::rows(rows), &arguments)?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}

impl GpuOperation for SegmentMean {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let (x, (tokens, hidden)) = (inputs[0], inputs[0].matrix());
        self.0.check(tokens, "segment_mean")?;
        let (offsets, shape) = (self.0.on_gpu(gpu)?, vec![self.0.len(), hidden]);
        let y = gpu.empty(x.element, shape[0] * hidden)?;
        let arguments = [y.array(&shape)?.into(), x.into(), (&*offsets).into(), hidden.into()];
        gpu.launch(&x.element.kernel("segment_mean"), Grid::sums(hidden, shape[0]), &arguments)?;
        Ok((y, shape))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let (x, offsets, (rows, columns)) = (inputs[0], self.0.on_gpu(gpu)?, inputs[0].matrix());
        let dx = gpu.empty(x.element, x.count())?;
        let mut arguments = vec![dx.array(x.shape)?.into(), gradient.into(), (&*offsets).into()];
        arguments.extend([self.0.len(), rows, columns].map(Argument::from));
        gpu.launch(&x.element.kernel("segment_mean_backward"), Grid::rows(rows), &arguments)?;
        Ok(vec![GpuGradient::Values(dx)])
    }
}

impl GpuOperation for Prepend {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let (x, prefix) = (inputs[1], gpu.convert(inputs[0], inputs[1].element)?);
        let ((shared, hidden), (tokens, _), offsets) = (inputs[0].matrix(), x.matrix(), self.0.on_gpu(gpu)?);
        let shape = vec![tokens + self.0.len() * shared, hidden];
        let y = gpu.empty(x.element, shape[0] * hidden)?;
        let mut arguments = vec![y.array(&shape)?.into(), prefix.array()?.into(), x.into(), (&*offsets).into()];
        arguments.extend([self.0.len(), shared, shape[0], hidden].map(Argument::from));
        gpu.launch(&x.element.kernel("prepend"), Grid::rows(shape[0]), &arguments)?;
        Ok((y, shape))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let ((shared, hidden), (tokens, _), offsets) = (inputs[0].matrix(), inputs[1].matrix(), self.0.on_gpu(gpu)?);
        let sequences = self.0.len();
        let mut gradients = vec![GpuGradient::None, GpuGradient::None];
        if needed[0] {
            let sums = gpu.empty(Element::F32, shared * hidden)?;
            let mut arguments = vec![Argument::Pointer(sums.pointer()?), gradient.into(), (&*offsets).into()];
            arguments.extend([sequences, shared, hidden].map(Argument::from));
            gpu.launch(&gradient.element.kernel("prefix_sums"), Grid::sums(hidden, shared), &arguments)?;
            gradients[0] = gpu.of_type(sums, inputs[0])?;
        }
        if needed[1] {
            let dx = gpu.empty(gradient.element, tokens * hidden)?;
            let mut arguments = vec![dx.array(inputs[1].shape)?.into(), gradient.into(), (&*offsets).into()];
            arguments.extend([sequences, shared, tokens, hidden].map(Argument::from));
            gpu.launch(&gradient.element.kernel("behind_prefix"), Grid::rows(tokens), &arguments)?;
            gradients[1] = GpuGradient::Values(dx);
        }
        Ok(gradients)
    }
}
