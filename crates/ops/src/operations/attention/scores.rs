//! What attention scores are made of besides the product of query and key: windows, and terms that depend on the distance between the
//! two tokens.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::heads::{Columns, Head, Inputs};
use crate::autograd::View;
use crate::cpu::float::Float;
use crate::cpu::products::gemm::{Cores, Into, Matrix, multiply};
use crate::operations::concatenation::concatenate_columns;
use crate::segments::Segments;

/// Which row of a table stands for which distance, the query's position less the key's.
#[derive(Clone, Debug)]
pub struct RelativeRows {
    pub(crate) rows: Arc<[usize]>, // of the distances -(longest - 1)..longest
    pub(crate) longest: usize,
}

impl RelativeRows {
    /// The rows that `row` gives, for sequences of at most so many tokens.
    pub fn new(longest: usize, row: impl Fn(isize) -> usize) -> Self {
        let last = longest as isize - 1;
        Self { rows: (-last..=last).map(row).collect(), longest }
    }

    /// The rows of a sequence's distances: that of query `i` and key `j` at `i - j + tokens - 1`.
    fn of_sequence(&self, tokens: usize) -> &[usize] {
        &self.rows[self.longest - tokens..self.longest + tokens - 1]
    }

    /// From the first to the last row that a sequence's distances reach.
    pub(crate) fn reached(&self, tokens: usize) -> Range<usize> {
        let rows = self.of_sequence(tokens);
        let (first, last) = rows.iter().fold((usize::MAX, 0), |(first, last), &row| (first.min(row), last.max(row)));
        first..last + 1
    }
}

/// What a score is made of besides `q kᵀ`.
#[derive(Clone, Copy, Default)]
pub enum Scores<'a> {
    /// Nothing: the scores of Vaswani et al. 2017.
    #[default]
    Content,
    /// A query attends to the keys at most so many tokens away, on either side (Beltagy et al. 2020, section 3.1).
    Window(usize),
    /// A number of each head's own is added to the scores, by distance (Raffel et al. 2020, section 2.1; Song et al. 2020).
    Bias {
        /// `(rows, heads)`.
        table: &'a Tensor,
        /// The table's row by distance.
        rows: &'a RelativeRows,
    },
    /// Disentangled attention (He et al. 2021, equation 4): a query also meets the position of a key, and a key that of the
    /// query.
    Disentangled {
        /// The positions as keys meet a query's content, `(rows, heads * head_dim)`: content to position.
        key: Option<&'a Tensor>,
        /// The positions as queries meet a key's content, of the same shape: position to content.
        query: Option<&'a Tensor>,
        /// The row of both by distance.
        rows: &'a RelativeRows,
    },
}

impl Scores<'_> {
    /// As the operation has them, and their table.
    pub(super) fn terms(self, heads: usize, hidden: usize, keys: &Segments) -> Result<(Terms, Option<Tensor>)> {
        Ok(match self {
            Self::Content => (Terms::Content, None),
            Self::Window(width) => (Terms::Window(width), None),
            Self::Bias { table, rows } => {
                check_rows(table, heads, rows, keys)?;
                (Terms::Bias(rows.clone()), Some(table.clone()))
            }
            Self::Disentangled { key, query, rows } => {
                for table in key.iter().chain(&query) {
                    check_rows(table, hidden, rows, keys)?;
                }
                let table = match (key, query) {
                    (Some(key), Some(query)) => concatenate_columns(key, query)?, // (rows, 2 * hidden)
                    (Some(table), None) | (None, Some(table)) => table.clone(),
                    (None, None) => return Ok((Terms::Content, None)),
                };
                let (to_position, to_content) = (key.is_some(), query.is_some());
                (Terms::Disentangled { rows: rows.clone(), to_position, to_content }, Some(table))
            }
        })
    }
}

fn check_rows(table: &Tensor, columns: usize, rows: &RelativeRows, segments: &Segments) -> Result<()> {
    let longest = segments.ranges().map(|range| range.len()).max().unwrap_or(0);
    if longest > rows.longest {
        bail!("attention: a sequence of {longest} tokens, the rows are made for {}", rows.longest)
    }
    match (table.dims2()?, rows.rows.iter().max()) {
        ((count, found), Some(&last)) if found != columns || last >= count => {
            bail!("attention: a table of {count} rows and {found} columns, expected {columns} and row {last}")
        }
        _ => Ok(()),
    }
}

/// [`Scores`] without their table, which is an input.
pub(crate) enum Terms {
    Content,
    Window(usize),
    Bias(RelativeRows),
    Disentangled { rows: RelativeRows, to_position: bool, to_content: bool },
}

impl Terms {
    /// How many terms are scaled, `q kᵀ` among them.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Content | Self::Window(_) | Self::Bias(_) => 1,
            Self::Disentangled { to_position, to_content, .. } => {
                1 + usize::from(*to_position) + usize::from(*to_content)
            }
        }
    }

    /// The rows of the table, if there is one.
    pub(crate) fn rows(&self) -> Option<&RelativeRows> {
        match self {
            Self::Content | Self::Window(_) => None,
            Self::Bias(rows) | Self::Disentangled { rows, .. } => Some(rows),
        }
    }

    /// Those of one head, whose sequence reaches these rows of the table.
    pub(super) fn of<'a, T: Float>(
        &self,
        head: &Head,
        reach: Option<&'a Reach>,
        inputs: &Inputs<'a, T>,
    ) -> Term<'a, T> {
        let (Some(reach), Some(table)) = (reach, &inputs.table) else { return Term::None };
        let (_, columns) = table.matrix();
        let part = |first: usize, width: usize| {
            let first = reach.reached.start * columns + first;
            Matrix::strided(&table.data[first..], reach.reached.len(), width, columns)
        };
        match self {
            Self::Content | Self::Window(_) => Term::None,
            Self::Bias(_) => Term::Bias { reach, table: part(head.index, 1) },
            Self::Disentangled { to_position, to_content, .. } => {
                let hidden = inputs.query.1;
                let key = to_position.then(|| part(head.first_column, head.width));
                let behind = if *to_position { hidden } else { 0 };
                let query = to_content.then(|| part(behind + head.first_column, head.width));
                Term::Disentangled { reach, key, query }
            }
        }
    }
}

impl Terms {
    /// The gradient of the table: the sum of the heads' parts, each with the rows that it reached, sequence by sequence in order, on any
    /// number of threads.
    pub(super) fn sum_of_parts<'a, T: Float>(
        &self,
        table: &View<T>,
        hidden: usize,
        parts: impl Iterator<Item = (&'a Head, Range<usize>, Vec<T>)>,
    ) -> Vec<T> {
        let (_, columns) = table.matrix();
        let mut sums = vec![T::zero(); table.data.len()];
        for (head, reached, part) in parts {
            let (first, width) = match self {
                Self::Bias(_) => (head.index, 1),
                _ => (head.first_column, head.width),
            };
            for (side, part) in part.chunks_exact((reached.len() * width).max(1)).enumerate() {
                for (row, values) in reached.clone().zip(part.chunks_exact(width)) {
                    let sums = &mut sums[row * columns + side * hidden + first..][..width];
                    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
                }
            }
        }
        sums
    }
}

/// The rows of a table that a sequence's distances reach.
pub(super) struct Reach {
    /// The row of the token at `i` and the key at `j`, counted from the first one reached, at `i - j + keys - 1`.
    rows: Vec<usize>,
    pub reached: Range<usize>,
    /// Where the first query's token stands among the keys.
    first: usize,
}

impl Reach {
    pub(super) fn new(rows: &RelativeRows, keys: usize, first: usize) -> Self {
        let reached = rows.reached(keys);
        let rows = rows.of_sequence(keys).iter().map(|row| row - reached.start).collect();
        Self { rows, reached, first }
    }

    /// Where in [`Reach::rows`] the distances of a key begin, query by query.
    fn begin(&self, key: usize) -> usize {
        self.first + self.rows.len() / 2 - key
    }

    /// The rows of a key and each of so many queries.
    fn of_key(&self, key: usize, queries: usize) -> &[usize] {
        &self.rows[self.begin(key)..][..queries]
    }
}

/// What distances add to one head's scores.
pub(super) enum Term<'a, T> {
    None,
    Bias { reach: &'a Reach, table: Matrix<'a, T> }, // (rows reached, 1)
    Disentangled { reach: &'a Reach, key: Option<Matrix<'a, T>>, query: Option<Matrix<'a, T>> }, // (rows reached, head_dim)
}

/// A head's gradients, and what they are gradients of.
pub(super) struct HeadGradients<'a, T> {
    pub query: Option<&'a Columns<T>>,
    pub key: Option<&'a Columns<T>>,
    /// Whether that of the table is asked for.
    pub table: bool,
    pub scale: f64,
}

impl<T: Float> Term<'_, T> {
    /// Adds the term to scores, `(keys, queries)`.
    pub(super) fn add(&self, scores: &mut [T], head: &Head, scale: f64, [query, key]: [Matrix<T>; 2]) {
        let (queries, stride) = (head.queries.len(), head.stride());
        match self {
            Self::None => {}
            Self::Bias { reach, table } => {
                let by_distance: Vec<T> = reach.rows.iter().map(|&row| table.data[row * table.row_stride]).collect();
                for (key, row) in scores.chunks_exact_mut(stride).enumerate() {
                    row.iter_mut().zip(&by_distance[reach.begin(key)..][..queries]).for_each(|(x, &bias)| *x += bias);
                }
            }
            Self::Disentangled { reach, key: positions, query: others } => {
                if let Some(positions) = positions {
                    let mut met = Vec::new();
                    let met = head.scores(&mut met, scale, *positions, query); // (rows, queries)
                    for (key, row) in scores.chunks_exact_mut(stride).enumerate() {
                        for (i, (x, &distance)) in row.iter_mut().zip(reach.of_key(key, queries)).enumerate() {
                            *x += met[distance * stride + i];
                        }
                    }
                }
                if let Some(positions) = others {
                    let met = product(scale, key, positions.t()); // (keys, rows)
                    let rows = scores.chunks_exact_mut(stride).zip(met.chunks_exact(positions.rows));
                    for (key, (row, met)) in rows.enumerate() {
                        row.iter_mut().zip(reach.of_key(key, queries)).for_each(|(x, &distance)| *x += met[distance]);
                    }
                }
            }
        }
    }

    /// Adds to the gradients of queries and keys what comes by way of the term, and gives that of the head's part of the table, in the rows
    /// reached: `(rows, 1)` of a bias; of the positions those that keys have, then those that queries have, `(rows, head_dim)` each.
    ///
    /// # Safety
    /// The head must have written its columns of the gradients.
    pub(super) unsafe fn backward(
        &self,
        of_scores: &[T],
        head: &Head,
        [query, key]: [Matrix<T>; 2],
        gradients: &HeadGradients<T>,
    ) -> Vec<T> {
        let (queries, stride, scale) = (head.queries.len(), head.stride(), gradients.scale);
        let mut of_table = Vec::new();
        match self {
            Self::None => {}
            Self::Bias { .. } if !gradients.table => {}
            Self::Bias { reach, .. } => {
                of_table.resize(reach.reached.len(), T::zero());
                for (key, row) in of_scores.chunks_exact(stride).enumerate() {
                    row.iter().zip(reach.of_key(key, queries)).for_each(|(&d, &distance)| of_table[distance] += d);
                }
            }
            Self::Disentangled { reach, key: positions, query: others } => {
                if let Some(positions) = positions {
                    let mut met = vec![T::zero(); positions.rows * stride]; // (rows, queries)
                    for (key, row) in of_scores.chunks_exact(stride).enumerate() {
                        for (i, (&d, &distance)) in row.iter().zip(reach.of_key(key, queries)).enumerate() {
                            met[distance * stride + i] += d;
                        }
                    }
                    let met = head.matrix(&met);
                    if let Some(columns) = gradients.query {
                        // SAFETY: as the caller promises.
                        unsafe { columns.add(&head.queries, head.first_column, scale, met.t(), *positions) };
                    }
                    if gradients.table {
                        of_table.append(&mut product(scale, met, query)); // (rows, head_dim)
                    }
                }
                if let Some(positions) = others {
                    let mut met = vec![T::zero(); head.keys.len() * positions.rows]; // (keys, rows)
                    let rows = of_scores.chunks_exact(stride).zip(met.chunks_exact_mut(positions.rows));
                    for (key, (row, met)) in rows.enumerate() {
                        row.iter().zip(reach.of_key(key, queries)).for_each(|(&d, &distance)| met[distance] += d);
                    }
                    let met = Matrix::new(&met, head.keys.len(), positions.rows);
                    if let Some(columns) = gradients.key {
                        // SAFETY: as the caller promises.
                        unsafe { columns.add(&head.keys, head.first_column, scale, met, *positions) };
                    }
                    if gradients.table {
                        of_table.append(&mut product(scale, met.t(), key)); // (rows, head_dim)
                    }
                }
            }
        }
        of_table
    }
}

/// `scale * a b` as a new row-major matrix, on the calling thread.
fn product<T: Float>(scale: f64, a: Matrix<T>, b: Matrix<T>) -> Vec<T> {
    let mut output = vec![T::zero(); a.rows * b.columns];
    multiply(&mut output, b.columns, Into::Overwrite, scale, a, b, Cores::One);
    output
}
