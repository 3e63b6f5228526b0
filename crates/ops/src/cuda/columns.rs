//! Sums over the rows of a matrix.

use candle_core::Result;

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Element, Gpu};

/// Of `columns.cu`.
const COLUMNS: usize = 32;
const ROWS: usize = 8;

/// Rows that one block sums. What a sum comes to depends on it, never on the card.
const SLICE: usize = 256;

impl Gpu {
    /// The sum of each column of a `(rows, columns)` matrix, in f32: `(columns)`.
    pub fn column_sums(&self, x: Array) -> Result<Buffer> {
        self.sums("column_sums", &[x])
    }

    /// The same of `a * b`.
    pub fn column_products(&self, a: Array, b: Array) -> Result<Buffer> {
        self.sums("column_products", &[a, b])
    }

    fn sums(&self, kernel: &str, inputs: &[Array]) -> Result<Buffer> {
        let (rows, columns) = inputs[0].matrix();
        let slices = rows.div_ceil(SLICE).max(1);
        let sums = self.empty(Element::F32, slices * columns)?; // (slices, columns)
        let shape = [slices, columns];
        let mut arguments = vec![sums.array(&shape)?.into()];
        arguments.extend(inputs.iter().map(|&input| Argument::from(input)));
        arguments.extend([rows, columns, SLICE].map(Argument::from));
        let grid = Grid { blocks: (columns.div_ceil(COLUMNS), slices), threads: (COLUMNS, ROWS), shared: 0 };
        self.launch(&inputs[0].element.kernel(kernel), grid, &arguments)?;
        match slices {
            1 => Ok(sums),
            _ => self.sums("column_sums", &[sums.array(&shape)?]),
        }
    }
}
