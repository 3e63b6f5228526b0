//! Sums of embeddings, and the gradient of a table whose rows are looked up.

use candle_core::{Result, bail};

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::embedding::EmbeddingSum;

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
    pub(crate) fn table_gradient(&self, table: Array, looked_up: &[u32], gradient: Array) -> Result<GpuGradient> {
        let (count, columns) = table.matrix();
        if looked_up.iter().any(|&row| row as usize >= count) {
            bail!("embedding: a row beyond the table's {count}")
        }
        let sums = self.zeros(Element::F32, table.count())?;
        let lists = Lists::new(looked_up);
        let [rows, starts, tokens] = [&lists.rows, &lists.starts, &lists.tokens].map(|list| self.indices(list));
        let (rows, starts, tokens) = (rows?, starts?, tokens?);
        let kernel = Kernel::of("row_sums", gradient.element)
            .write_f32(&sums, table.count())
            .read(gradient, looked_up.len() * columns)
            .indices(&rows, lists.rows.len())
            .indices(&starts, lists.starts.len())
            .indices(&tokens, looked_up.len())
            .count(columns);
        // SAFETY: rows.cu, row_sums: the rows lie within the table (checked above), the tokens within the gradient.
        unsafe { kernel.launch(self, Grid::sums(columns, lists.rows.len())) }?;
        self.of_type(sums, table)
    }
}

impl GpuOperation for EmbeddingSum {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let (tokens, (_, hidden)) = (self.rows[0].len(), inputs[0].matrix());
        let indices = gpu.indices(&self.rows.concat())?; // (3, tokens)
        let y = gpu.empty(Element::F32, tokens * hidden)?;
        let tables = inputs.iter().map(|&table| gpu.convert(table, Element::F32)).collect::<Result<Vec<_>>>()?;
        let mut kernel = Kernel::f32("embedding_sum").write(&y, tokens * hidden);
        for table in &tables {
            kernel = kernel.read(table.array()?, table.array()?.count());
        }
        let kernel = kernel.indices(&indices, inputs.len() * tokens).counts([tokens, hidden]);
        // SAFETY: rows.cu, embedding_sum: three tables, whose rows `embedding_sum` has checked.
        unsafe { kernel.launch(gpu, Grid::rows(tokens)) }?;
        Ok(Output::new(y, vec![tokens, hidden]))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let GpuBackward { inputs, needed, gradient, .. } = pass;
        let of = |index: usize| match needed[index] {
            true => gpu.table_gradient(inputs[index], &self.rows[index], gradient),
            false => Ok(GpuGradient::None),
        };
        (0..inputs.len()).map(of).collect()
    }
}
