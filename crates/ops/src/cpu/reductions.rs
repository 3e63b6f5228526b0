//! Sums over the rows of a matrix, in an order that no number of threads changes.

use multiversion::multiversion;
use rayon::prelude::*;

use super::float::Float;

/// The sum of each column of a `(rows, columns)` matrix: of blocks of rows in order, and in each row by row.
pub(crate) fn column_sums<T: Float>(data: &[T], columns: usize) -> Vec<T> {
    const ROWS: usize = 128;
    if data.len() <= ROWS * columns {
        let mut sums = vec![T::zero(); columns];
        add_rows(&mut sums, data);
        return sums;
    }
    let blocks: Vec<Vec<T>> = data.par_chunks(ROWS * columns).map(|rows| column_sums(rows, columns)).collect();
    column_sums(&blocks.concat(), columns)
}

/// Adds each row to the sums.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
pub(crate) fn add_rows<T: Float>(sums: &mut [T], rows: &[T]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}
