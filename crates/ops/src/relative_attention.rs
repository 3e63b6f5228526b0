//! Self-attention over packed sequences whose scores depend on how far a key stands from the query.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::attention::{Rows, check};
use crate::concatenation::concatenate_columns;
use crate::dropout::{Dropout, mask_piece};
use crate::float::{Float, highest, sum};
use crate::matrix::{Cores, Into, Matrix, multiply};
use crate::memory::zeros;
use crate::operation::{Gradient, Operation, View, apply};
use crate::product::write_product;
use crate::segments::Segments;

/// Which row of a table stands for which distance, the query's position less the key's.
#[derive(Clone, Debug)]
pub struct RelativeRows {
    pub(crate) rows: Arc<[usize]>, // of the distances -(longest - 1)..longest
    pub(crate) longest: usize,
    #[cfg(feature = "cuda")]
    uploaded: crate::cuda::Uploaded,
}

impl RelativeRows {
    /// The rows that `row` gives, for sequences of at most so many tokens.
    pub fn new(longest: usize, row: impl Fn(isize) -> usize) -> Self {
        let last = longest as isize - 1;
        Self {
            rows: (-last..=last).map(row).collect(),
            longest,
            #[cfg(feature = "cuda")]
            uploaded: Default::default(),
        }
    }

    /// The rows by distance on that GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self, gpu: &crate::cuda::Gpu) -> Result<Arc<crate::cuda::Indices>> {
        self.uploaded.or_upload(gpu, &self.rows)
    }

    /// Whether both are clones of one.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rows, &other.rows)
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

/// What attention knows of distances.
#[derive(Clone, Copy)]
pub enum Relative<'a> {
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

/// `softmax(scale * (q kᵀ + relative)) v` for each head and each sequence, as [`attention`](crate::attention()) but for what
/// `relative` says; the shapes of query, key and value are its. `scale` is `1 / sqrt(head_dim * terms)`, with one term for
/// `q kᵀ` and one for each part of [`Relative::Disentangled`]; a [`Relative::Bias`] is added unscaled.
///
/// Of one query per sequence, that is the query of the first token. The rows of a prefix stand before that token, as far as
/// distances go.
///
/// # Errors
/// When the shapes do not fit, or a sequence is longer than the rows are made for.
pub fn relative_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    relative: Relative,
    segments: &Segments,
    heads: usize,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let Rows { queries, keys, prefix } = check([query, key, value], segments, heads, RelativeAttention::NAME)?;
    let segments = &keys;
    let hidden = key.dim(1)?;
    let (terms, table) = match relative {
        Relative::Window(width) => (Terms::Window(width), None),
        Relative::Bias { table, rows } => {
            check_rows(table, heads, rows, segments)?;
            (Terms::Bias(rows.clone()), Some(table.clone()))
        }
        Relative::Disentangled { key, query, rows } => {
            for table in key.iter().chain(&query) {
                check_rows(table, hidden, rows, segments)?;
            }
            let table = match (key, query) {
                (Some(key), Some(query)) => Some(concatenate_columns(key, query)?), // (rows, 2 * hidden)
                (Some(table), None) | (None, Some(table)) => Some(table.clone()),
                (None, None) => None,
            };
            let rows = rows.clone();
            (Terms::Disentangled { rows, to_position: key.is_some(), to_content: query.is_some() }, table)
        }
    };
    let head_dim = (hidden / heads) as f64;
    let scale = 1.0 / (head_dim * terms.count() as f64).sqrt();
    let operation = RelativeAttention {
        queries,
        segments: keys,
        prefix,
        heads,
        scale,
        terms,
        dropout,
        #[cfg(feature = "cuda")]
        logarithms: Default::default(),
    };
    let keys_and_values = concatenate_columns(key, value)?; // (tokens, 2 * hidden)
    match &table {
        Some(table) => apply(operation, &[query, &keys_and_values, table]),
        None => apply(operation, &[query, &keys_and_values]),
    }
}

fn check_rows(table: &Tensor, columns: usize, rows: &RelativeRows, segments: &Segments) -> Result<()> {
    let longest = segments.ranges().map(|range| range.len()).max().unwrap_or(0);
    if longest > rows.longest {
        bail!("relative_attention: a sequence of {longest} tokens, the rows are made for {}", rows.longest)
    }
    match (table.dims2()?, rows.rows.iter().max()) {
        ((count, found), Some(&last)) if found != columns || last >= count => {
            bail!("relative_attention: a table of {count} rows and {found} columns, expected {columns} and row {last}")
        }
        _ => Ok(()),
    }
}

/// What a score is the sum of, besides `q kᵀ`.
pub(crate) enum Terms {
    Window(usize),
    Bias(RelativeRows),
    Disentangled { rows: RelativeRows, to_position: bool, to_content: bool },
}

impl Terms {
    /// How many terms are scaled, `q kᵀ` among them.
    fn count(&self) -> usize {
        match self {
            Self::Window(_) | Self::Bias(_) => 1,
            Self::Disentangled { to_position, to_content, .. } => {
                1 + usize::from(*to_position) + usize::from(*to_content)
            }
        }
    }
}

pub(crate) struct RelativeAttention {
    /// Of the query's rows.
    pub(crate) queries: Segments,
    /// Of the rows of keys and values.
    pub(crate) segments: Segments,
    /// How many keys of a sequence stand before that of its first token.
    pub(crate) prefix: usize,
    pub(crate) heads: usize,
    pub(crate) scale: f64,
    pub(crate) terms: Terms,
    pub(crate) dropout: Option<Dropout>,
    /// On a GPU, of each query's sum of exponentials, `(heads, queries)`, for the backward pass.
    #[cfg(feature = "cuda")]
    pub(crate) logarithms: std::sync::OnceLock<crate::cuda::Buffer>,
}

/// The rows of a table that a sequence's distances reach.
struct Reach {
    /// The row of the token at `i` and the key at `j`, counted from the first one reached, at `j - i + keys - 1`.
    rows: Vec<usize>,
    reached: Range<usize>,
    /// Where the first query's token stands among the keys.
    first: usize,
}

impl Reach {
    fn new(rows: &RelativeRows, keys: usize, first_query: usize) -> Self {
        let reached = rows.reached(keys);
        let rows = rows.of_sequence(keys).iter().rev().map(|row| row - reached.start).collect();
        Self { rows, reached, first: first_query }
    }

    /// The rows of query `i` and each of so many keys.
    fn of_query(&self, i: usize, keys: usize) -> &[usize] {
        &self.rows[keys - 1 - self.first - i..][..keys]
    }
}

/// One head of one sequence, and its part of the tables.
struct Head<'a, T> {
    query: Matrix<'a, T>, // (queries, head_dim)
    key: Matrix<'a, T>,   // (keys, head_dim)
    value: Matrix<'a, T>, // (keys, head_dim)
    term: Term<'a, T>,
    /// Where the first query's token stands among the keys.
    first: usize,
    scale: f64,
    /// The position of this head's first probability among all of the batch: what dropout counts by.
    first_probability: u32,
}

/// What a head's scores depend on besides query and key.
enum Term<'a, T> {
    Window(usize),
    Bias { reach: &'a Reach, table: Matrix<'a, T> }, // (rows reached, 1)
    Disentangled { reach: &'a Reach, key: Option<Matrix<'a, T>>, query: Option<Matrix<'a, T>> }, // (rows reached, head_dim)
}

impl<T: Float> Head<'_, T> {
    /// The attention probabilities before dropout, `(queries, keys)`.
    fn probabilities(&self) -> Vec<T> {
        let keys = self.key.rows;
        let mut scores = product(self.scale, self.query, self.key.t());
        match &self.term {
            Term::Window(_) => {}
            Term::Bias { reach, table } => {
                let by_distance: Vec<T> = reach.rows.iter().map(|&row| table.data[row * table.row_stride]).collect();
                add_by_distance(&mut scores, &by_distance, keys, self.first);
            }
            Term::Disentangled { reach, key, query } => {
                let rows = reach.reached.len();
                if let Some(position) = key {
                    let met = product(self.scale, self.query, position.t()); // (queries, rows)
                    for (i, (scores, met)) in scores.chunks_exact_mut(keys).zip(met.chunks_exact(rows)).enumerate() {
                        for (score, &row) in scores.iter_mut().zip(reach.of_query(i, keys)) {
                            *score += met[row];
                        }
                    }
                }
                if let Some(position) = query {
                    let met = product(self.scale, self.key, position.t()); // (keys, rows)
                    for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
                        let met = met.chunks_exact(rows).zip(reach.of_query(i, keys));
                        for (score, (met, &row)) in scores.iter_mut().zip(met) {
                            *score += met[row];
                        }
                    }
                }
            }
        }
        match self.term {
            Term::Window(width) => softmax_within(&mut scores, keys, self.first, width),
            _ => softmax_within(&mut scores, keys, self.first, keys),
        }
        scores
    }
}

/// `scale * a b` as a new row-major matrix, on the calling thread.
fn product<T: Float>(scale: f64, a: Matrix<T>, b: Matrix<T>) -> Vec<T> {
    let mut output = vec![T::zero(); a.rows * b.columns];
    write(&mut output, b.columns, scale, a, b);
    output
}

/// `scale * a b`, written to rows of `output` that begin `stride` elements apart, on the calling thread.
fn write<T: Float>(output: &mut [T], stride: usize, scale: f64, a: Matrix<T>, b: Matrix<T>) {
    let reach = a.rows.saturating_sub(1) * stride + b.columns;
    assert!(a.rows == 0 || reach <= output.len(), "product reaches beyond its slice");
    // SAFETY: the rows and columns lie within the slice, which is borrowed mutably.
    unsafe { write_product(output.as_mut_ptr(), stride, scale, a, b) };
}

/// `output += scale * a b`, in rows of `output` that begin `stride` elements apart.
fn add<T: Float>(output: &mut [T], stride: usize, scale: f64, a: Matrix<T>, b: Matrix<T>) {
    multiply(output, stride, Into::Add, scale, a, b, Cores::One);
}

/// Cuts a `(tokens, columns)` matrix into one slice per sequence.
fn split<'a, T>(segments: &Segments, mut data: &'a mut [T], columns: usize) -> Vec<&'a mut [T]> {
    let cut = |range: Range<usize>| data.split_off_mut(..range.len() * columns).unwrap_or_default();
    segments.ranges().map(cut).collect()
}

/// `scores[i][j] += by_distance[j - (first + i) + keys - 1]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn add_by_distance<T: Float>(scores: &mut [T], by_distance: &[T], keys: usize, first: usize) {
    for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
        scores.iter_mut().zip(&by_distance[keys - 1 - first - i..]).for_each(|(score, &bias)| *score += bias);
    }
}

/// `softmax(scores)` of each query's row, in place, over the keys at most `width` away from its token, where that of the first
/// query stands at `first`; zero for the others.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn softmax_within<T: Float>(scores: &mut [T], keys: usize, first: usize, width: usize) {
    for (i, row) in (first..).zip(scores.chunks_exact_mut(keys)) {
        let seen = i.saturating_sub(width)..(i + width + 1).min(keys);
        row[..seen.start].fill(T::zero());
        row[seen.end..].fill(T::zero());
        let row = &mut row[seen];
        let highest = highest(row);
        for score in row.iter_mut() {
            *score = (*score - highest).exponential();
        }
        let inverse = T::one() / sum(row, |_, score| score);
        row.iter_mut().for_each(|score| *score *= inverse);
    }
}

/// The gradient of a softmax: `d -> p * (d - sum(d * p))`, row by row, in place. A probability of zero passes nothing.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn softmax_backward<T: Float>(gradient: &mut [T], probabilities: &[T], keys: usize) {
    for (row, p) in gradient.chunks_exact_mut(keys).zip(probabilities.chunks_exact(keys)) {
        let dot = sum(row, |index, d| d * p[index]);
        for (d, &p) in row.iter_mut().zip(p) {
            *d = p * (*d - dot);
        }
    }
}

/// One sequence: where its queries and its keys lie, and the rows its distances reach.
struct Sequence {
    queries: Range<usize>,
    keys: Range<usize>,
    reach: Option<Reach>,
    first_probability: u32,
}

impl RelativeAttention {
    fn sequences(&self) -> Vec<Sequence> {
        let mut next_probability = 0u32;
        self.queries
            .ranges()
            .zip(self.segments.ranges())
            .map(|(queries, keys)| {
                let first_probability = next_probability;
                let probabilities = (self.heads * queries.len() * keys.len()) as u32;
                next_probability = next_probability.wrapping_add(probabilities);
                let reach = match &self.terms {
                    Terms::Window(_) => None,
                    Terms::Bias(rows) | Terms::Disentangled { rows, .. } => {
                        Some(Reach::new(rows, keys.len(), self.prefix))
                    }
                };
                Sequence { queries, keys, reach, first_probability }
            })
            .collect()
    }

    /// The part of the table that a sequence reaches, and how many columns it has.
    fn reached<'a, T>(reach: &Reach, table: &View<'a, T>) -> (&'a [T], usize) {
        let (_, columns) = table.matrix();
        (&table.data[reach.reached.start * columns..reach.reached.end * columns], columns)
    }

    fn head<'a, T: Float>(&self, index: usize, sequence: &'a Sequence, inputs: &[View<'a, T>]) -> Head<'a, T> {
        let (_, hidden) = inputs[0].matrix();
        let width = hidden / self.heads;
        let (queries, keys) = (sequence.queries.len(), sequence.keys.len());
        let query = &inputs[0].data[sequence.queries.start * hidden + index * width..];
        let keys_and_values = &inputs[1].data[sequence.keys.start * 2 * hidden + index * width..];
        let term = match (&self.terms, &sequence.reach, inputs.get(2)) {
            (Terms::Window(window), ..) => Term::Window(*window),
            (Terms::Bias(_), Some(reach), Some(table)) => {
                let (table, heads) = Self::reached(reach, table);
                Term::Bias { reach, table: Matrix::strided(&table[index..], reach.reached.len(), 1, heads) }
            }
            (Terms::Disentangled { to_position, to_content, .. }, Some(reach), Some(table)) => {
                let (table, columns) = Self::reached(reach, table);
                let part = |part: usize| {
                    let first = part * hidden + index * width;
                    Matrix::strided(&table[first..], reach.reached.len(), width, columns)
                };
                let key = to_position.then(|| part(0));
                Term::Disentangled { reach, key, query: to_content.then(|| part(usize::from(*to_position))) }
            }
            _ => Term::Window(keys), // Disentangled attention without a term: every key is seen.
        };
        Head {
            query: Matrix::strided(query, queries, width, hidden),
            key: Matrix::strided(keys_and_values, keys, width, 2 * hidden),
            value: Matrix::strided(&keys_and_values[hidden..], keys, width, 2 * hidden),
            term,
            first: self.prefix,
            scale: self.scale,
            first_probability: sequence.first_probability.wrapping_add((index * queries * keys) as u32),
        }
    }

    /// The gradients of one sequence's queries, keys and values; the result is that of the table's rows it reaches, if one is
    /// needed.
    fn sequence_backward<T: Float>(
        &self,
        sequence: &Sequence,
        inputs: &[View<T>],
        needed: &[bool],
        upstream: &[T],
        (dq, dkv): (&mut [T], &mut [T]),
    ) -> Vec<T> {
        let (_, hidden) = inputs[0].matrix();
        let width = hidden / self.heads;
        let (queries, keys) = (sequence.queries.len(), sequence.keys.len());
        let table = inputs.get(2).zip(sequence.reach.as_ref()).map(|(table, reach)| Self::reached(reach, table));
        let mut dtable = match table {
            Some((table, _)) if needed[2] => vec![T::zero(); table.len()],
            _ => Vec::new(),
        };
        for index in 0..self.heads {
            let head = self.head(index, sequence, inputs);
            let first = index * width;
            let g = Matrix::strided(&upstream[first..], queries, width, hidden);
            let probabilities = head.probabilities();
            let mut ds = product(1.0, g, head.value.t()); // first of the probabilities, then of the scores
            let mut masked = probabilities.clone();
            if let Some(dropout) = self.dropout {
                mask_piece(&mut ds, dropout, head.first_probability);
                mask_piece(&mut masked, dropout, head.first_probability);
            }
            softmax_backward(&mut ds, &probabilities, keys);
            let scores = Matrix::new(&ds, queries, keys);
            if needed[0] {
                write(&mut dq[first..], hidden, self.scale, scores, head.key);
            }
            if needed[1] {
                write(&mut dkv[first..], 2 * hidden, self.scale, scores.t(), head.query);
                let masked = Matrix::new(&masked, queries, keys);
                write(&mut dkv[hidden + first..], 2 * hidden, 1.0, masked.t(), g);
            }
            match &head.term {
                Term::Window(_) => {}
                Term::Bias { reach, .. } => {
                    if !dtable.is_empty() {
                        for (i, ds) in ds.chunks_exact(keys).enumerate() {
                            for (&ds, &row) in ds.iter().zip(reach.of_query(i, keys)) {
                                dtable[row * self.heads + index] += ds;
                            }
                        }
                    }
                }
                Term::Disentangled { reach, key, query } => {
                    let rows = reach.reached.len();
                    let columns = table.map_or(0, |(_, columns)| columns);
                    if let Some(position) = key {
                        let mut met = vec![T::zero(); queries * rows]; // (queries, rows)
                        for (i, (ds, met)) in ds.chunks_exact(keys).zip(met.chunks_exact_mut(rows)).enumerate() {
                            for (&ds, &row) in ds.iter().zip(reach.of_query(i, keys)) {
                                met[row] += ds;
                            }
                        }
                        let met = Matrix::new(&met, queries, rows);
                        if needed[0] {
                            add(&mut dq[first..], hidden, self.scale, met, *position);
                        }
                        if !dtable.is_empty() {
                            add(&mut dtable[first..], columns, self.scale, met.t(), head.query);
                        }
                    }
                    if let Some(position) = query {
                        let mut met = vec![T::zero(); keys * rows]; // (keys, rows)
                        for (i, ds) in ds.chunks_exact(keys).enumerate() {
                            let met = met.chunks_exact_mut(rows).zip(reach.of_query(i, keys));
                            for (&ds, (met, &row)) in ds.iter().zip(met) {
                                met[row] += ds;
                            }
                        }
                        let met = Matrix::new(&met, keys, rows);
                        if needed[1] {
                            add(&mut dkv[first..], 2 * hidden, self.scale, met, *position);
                        }
                        if !dtable.is_empty() {
                            let first = first + if key.is_some() { hidden } else { 0 };
                            add(&mut dtable[first..], columns, self.scale, met.t(), head.key);
                        }
                    }
                }
            }
        }
        dtable
    }
}

impl Operation for RelativeAttention {
    const NAME: &'static str = "relative_attention";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let (_, hidden) = inputs[0].matrix();
        let mut output = zeros(inputs[0].data.len());
        let outputs = split(&self.queries, &mut output, hidden);
        self.sequences().par_iter().zip(outputs).for_each(|(sequence, output)| {
            for index in 0..self.heads {
                let head = self.head(index, sequence, inputs);
                let mut probabilities = head.probabilities();
                if let Some(dropout) = self.dropout {
                    mask_piece(&mut probabilities, dropout, head.first_probability);
                }
                let probabilities = Matrix::new(&probabilities, head.query.rows, head.key.rows);
                write(&mut output[index * head.value.columns..], hidden, 1.0, probabilities, head.value);
            }
        });
        Ok((output, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        needed: &[bool],
        _output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>> {
        let (_, hidden) = inputs[0].matrix();
        let (mut dq, mut dkv) = (zeros(inputs[0].data.len()), zeros(inputs[1].data.len()));
        let outputs =
            split(&self.queries, &mut dq, hidden).into_par_iter().zip(split(&self.segments, &mut dkv, 2 * hidden));
        let sequences = self.sequences();
        let tables: Vec<Vec<T>> = sequences
            .par_iter()
            .zip(outputs)
            .map(|(sequence, outputs)| {
                let upstream = &gradient.data[sequence.queries.start * hidden..sequence.queries.end * hidden];
                self.sequence_backward(sequence, inputs, needed, upstream, outputs)
            })
            .collect();
        let keep = |values, needed: bool| if needed { Gradient::Values(values) } else { Gradient::None };
        let mut gradients = vec![keep(dq, needed[0]), keep(dkv, needed[1])];
        if let Some(table) = inputs.get(2) {
            let (_, columns) = table.matrix();
            let mut dtable = vec![T::zero(); if needed[2] { table.data.len() } else { 0 }];
            // Sequence by sequence in order, on any number of threads.
            for (reach, part) in sequences.iter().filter_map(|sequence| sequence.reach.as_ref()).zip(&tables) {
                let first = reach.reached.start * columns;
                dtable.iter_mut().skip(first).zip(part).for_each(|(sum, &value)| *sum += value);
            }
            gradients.push(keep(dtable, needed[2]));
        }
        Ok(gradients)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Option<&dyn crate::cuda::GpuOperation> {
        Some(self)
    }
}
