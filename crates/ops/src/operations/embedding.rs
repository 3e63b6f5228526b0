//! Looking rows up in tables.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::{in_pieces, zeros};
use crate::cpu::reductions::add_rows;

/// The sum of one row of each table: tables `(rows, hidden)`, for each the rows that are looked up, `(tokens)` in u32; result
/// `(tokens, hidden)`. BERT's input is that of a token's word, its sentence and its position (Devlin et al. 2019, figure 2).
///
/// # Errors
/// When a row lies beyond its table.
pub fn embedding_sum(tables: [&Tensor; 3], rows: [&Tensor; 3]) -> Result<Tensor> {
    let hidden = tables[0].dim(1)?;
    let rows = [rows[0].to_vec1::<u32>()?, rows[1].to_vec1()?, rows[2].to_vec1()?];
    for (table, rows) in tables.iter().zip(&rows) {
        let (count, columns) = table.dims2()?;
        if columns != hidden {
            bail!("embedding: tables of {hidden} and of {columns} columns cannot be added")
        }
        if let Some(row) = rows.iter().find(|&&row| row as usize >= count) {
            bail!("embedding: row {row} of a table of {count} rows")
        }
    }
    if rows.iter().any(|found| found.len() != rows[0].len()) {
        bail!("embedding: {:?} rows of the three tables cannot be added", rows.map(|rows| rows.len()))
    }
    apply(EmbeddingSum { rows }, &tables)
}

pub(crate) struct EmbeddingSum {
    pub(crate) rows: [Vec<u32>; 3],
}

/// Tokens a thread takes at a time.
const TOKENS: usize = 32;

impl Operation for EmbeddingSum {
    const NAME: &'static str = "embedding_sum";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (tokens, (_, hidden)) = (self.rows[0].len(), inputs[0].matrix());
        let sums = in_pieces(tokens * hidden, TOKENS * hidden, |first, sums: &mut [T]| {
            for (offset, sum) in sums.chunks_exact_mut(hidden).enumerate() {
                for (table, rows) in inputs.iter().zip(&self.rows) {
                    let row = rows[first / hidden + offset] as usize;
                    add_rows(sum, &table.data[row * hidden..][..hidden]);
                }
            }
        });
        Ok(Output::new(sums, vec![tokens, hidden]))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let (_, hidden) = inputs[0].matrix();
        let table_gradient = |((table, rows), &needed): ((&View<T>, &Vec<u32>), &bool)| {
            if !needed {
                return Gradient::None;
            }
            let mut sums = zeros(table.data.len());
            // Row by row in order: two tokens may look up the same.
            for (&row, gradient) in rows.iter().zip(gradient.data.chunks_exact(hidden)) {
                add_rows(&mut sums[row as usize * hidden..][..hidden], gradient);
            }
            Gradient::Values(sums)
        };
        Ok(inputs.iter().zip(&self.rows).zip(needed).map(table_gradient).collect())
    }
}
