//! Multi-head self-attention over packed sequences.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::dropout::Dropout;
use crate::float::Float;
use crate::matrix::Matrix;
use crate::operation::{Gradient, Operation, View, apply};
use crate::product::write_product;
use crate::segments::Segments;
use crate::tiles::LANES;

/// `softmax(q kᵀ / sqrt(head_dim)) v` for each head and each sequence (Vaswani et al. 2017, equation 1).
///
/// key and value are `(tokens, heads * head_dim)`, query and the result likewise, or of one row per sequence: for what is wanted
/// of one token of each only. A query attends to its own sequence only. key and value may have rows more, as many for each
/// sequence, before its own ([`prepend`](crate::prepend())): a prefix, which the sequence's queries attend to as well (Li and
/// Liang 2021, section 4.2). Dropout falls on the attention probabilities. No probability is kept for the backward pass: they
/// are computed again.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    segments: &Segments,
    heads: usize,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let Rows { queries, keys, .. } = check([query, key, value], segments, heads, Attention::NAME)?;
    let operation = Attention {
        queries,
        segments: keys,
        heads,
        dropout,
        #[cfg(feature = "cuda")]
        logarithms: Default::default(),
    };
    apply(operation, &[query, key, value])
}

/// Where the sequences lie in attention's inputs.
pub(crate) struct Rows {
    /// Of the query's rows: a sequence's tokens, or its first alone.
    pub queries: Segments,
    /// Of the key's and the value's rows.
    pub keys: Segments,
    /// How many rows of each sequence's keys stand before its own.
    pub prefix: usize,
}

/// The rows that query, key and value of those sequences have.
///
/// # Errors
/// When query, key, value, segments and heads do not fit.
pub(crate) fn check(
    [query, key, value]: [&Tensor; 3],
    segments: &Segments,
    heads: usize,
    operation: &str,
) -> Result<Rows> {
    let ((rows, hidden), tokens) = (key.dims2()?, segments.tokens());
    segments.check(tokens, operation)?;
    let prefix = rows.saturating_sub(tokens) / segments.len().max(1);
    if rows != tokens + prefix * segments.len() {
        bail!("{operation}: {rows} keys for {tokens} tokens of {} sequences", segments.len())
    }
    let queries = match query.dims2()? {
        (rows, _) if rows == tokens => segments.clone(),
        (rows, _) if rows == segments.len() => Segments::from_lengths(&vec![1; rows]),
        (rows, _) => bail!("{operation}: {rows} queries for {tokens} tokens of {} sequences", segments.len()),
    };
    if query.dim(1)? != hidden || value.dims() != key.dims() {
        bail!("{operation}: query {:?}, key {:?}, value {:?} differ", query.dims(), key.dims(), value.dims())
    }
    if heads == 0 || hidden % heads != 0 {
        bail!("{operation}: {heads} heads do not divide a hidden size of {hidden}")
    }
    Ok(Rows { queries, keys: segments.lengthened(prefix), prefix })
}

pub(crate) struct Attention {
    /// Of the query's rows.
    pub(crate) queries: Segments,
    /// Of the key's and the value's rows.
    pub(crate) segments: Segments,
    pub(crate) heads: usize,
    pub(crate) dropout: Option<Dropout>,
    /// On a GPU, of each query's sum of exponentials, `(heads, queries)`, for the backward pass.
    #[cfg(feature = "cuda")]
    pub(crate) logarithms: std::sync::OnceLock<crate::cuda::Buffer>,
}

// Scores are kept as `(keys, queries)`: a softmax then runs down a column, and what is added up for a query stays in its lane. Rows
// are whole vectors; what fills one up is of no query.

/// `softmax(scores)` of each query, in place, for scores `(keys, stride)`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn softmax<T: Float>(scores: &mut [T], stride: usize) {
    let mut highest = vec![T::neg_infinity(); stride];
    for row in scores.chunks_exact(stride) {
        highest.iter_mut().zip(row).for_each(|(highest, &x)| *highest = if x > *highest { x } else { *highest });
    }
    let mut sums = vec![T::zero(); stride];
    for row in scores.chunks_exact_mut(stride) {
        for ((x, &highest), sum) in row.iter_mut().zip(&highest).zip(&mut sums) {
            *x = (*x - highest).exponential();
            *sum += *x;
        }
    }
    sums.iter_mut().for_each(|sum| *sum = T::one() / *sum);
    for row in scores.chunks_exact_mut(stride) {
        row.iter_mut().zip(&sums).for_each(|(x, &inverse)| *x *= inverse);
    }
}

/// Which of a head's probabilities are dropped.
#[derive(Clone, Copy)]
struct Mask {
    dropout: Dropout,
    /// The position of the head's first probability among all of the batch: what dropout counts by, query by query.
    first: u32,
    keys: u32,
}

impl Mask {
    /// What the probability of a key for a query is multiplied by.
    #[inline(always)]
    fn factor<T: Float>(&self, key: usize, query: usize) -> T {
        self.dropout.factor(self.first.wrapping_add(key as u32).wrapping_add((query as u32).wrapping_mul(self.keys)))
    }
}

/// `mask * probabilities`, in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn drop_out<T: Float>(probabilities: &mut [T], stride: usize, mask: Mask) {
    for (key, row) in probabilities.chunks_exact_mut(stride).enumerate() {
        row.iter_mut().enumerate().for_each(|(query, p)| *p *= mask.factor(key, query));
    }
}

/// `mask * probabilities`, in place, after `mask * gradient` has become the gradient of the scores: of a softmax it is
/// `p * (d - sum(d * p))`, query by query.
///
/// A mask is worked out once: a probability is never negative, so that its sign can tell that it was dropped.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn backward<T: Float>(gradient: &mut [T], probabilities: &mut [T], stride: usize, mask: Option<Mask>) {
    let mut dots = vec![T::zero(); stride];
    let rows = gradient.chunks_exact_mut(stride).zip(probabilities.chunks_exact_mut(stride));
    for (key, (gradient, probabilities)) in rows.enumerate() {
        let of_query = dots.iter_mut().zip(gradient).zip(probabilities);
        match mask {
            Some(mask) => of_query.enumerate().for_each(|(query, ((dot, d), p))| {
                let factor: T = mask.factor(key, query);
                *d *= factor;
                *dot += *d * *p;
                *p = if factor > T::zero() { *p } else { -*p };
            }),
            None => of_query.for_each(|((dot, d), p)| *dot += *d * *p),
        }
    }
    let kept = mask.map_or(T::one(), |mask| mask.dropout.scale());
    let rows = gradient.chunks_exact_mut(stride).zip(probabilities.chunks_exact_mut(stride));
    for (gradient, probabilities) in rows {
        for ((&dot, d), p) in dots.iter().zip(gradient).zip(probabilities) {
            *d = p.abs() * (*d - dot);
            *p = if p.is_sign_positive() { *p * kept } else { T::zero() };
        }
    }
}

/// One head of one sequence.
struct Head {
    /// Rows of the queries' and the keys' tensors.
    queries: Range<usize>,
    keys: Range<usize>,
    first_column: usize,
    width: usize,
    hidden: usize,
    /// See [`Mask`].
    first_probability: u32,
}

impl Head {
    /// This head's columns of some rows, `(rows, head_dim)`.
    fn of<'a, T>(&self, data: &'a [T], rows: &Range<usize>) -> Matrix<'a, T> {
        Matrix::strided(&data[rows.start * self.hidden + self.first_column..], rows.len(), self.width, self.hidden)
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// The distance between rows of scores.
    fn stride(&self) -> usize {
        self.queries.len().next_multiple_of(LANES)
    }

    /// `scale * a bᵀ` as scores, `(keys, queries)`.
    fn scores<'a, T: Float>(&self, scores: &'a mut Vec<T>, scale: f64, a: Matrix<T>, b: Matrix<T>) -> &'a mut [T] {
        let size = self.keys.len() * self.stride();
        scores.resize(scores.len().max(size), T::zero());
        let scores = &mut scores[..size];
        // SAFETY: the scores have these rows and columns.
        unsafe { write_product(scores.as_mut_ptr(), self.stride(), scale, a, b.t()) };
        scores
    }

    /// Scores as a matrix, `(keys, queries)`.
    fn matrix<'a, T>(&self, scores: &'a [T]) -> Matrix<'a, T> {
        Matrix::strided(scores, self.keys.len(), self.queries.len(), self.stride())
    }

    fn mask(&self, dropout: Option<Dropout>) -> Option<Mask> {
        let (first, keys) = (self.first_probability, self.keys.len() as u32);
        dropout.map(|dropout| Mask { dropout, first, keys })
    }
}

/// A new `(tokens, hidden)` matrix, of which each head writes its own columns.
struct Columns<T> {
    values: Vec<T>,
    length: usize,
    begin: *mut T,
}

// SAFETY: the heads write to elements that no other head reads or writes.
unsafe impl<T: Send> Sync for Columns<T> {}

impl<T: Float> Columns<T> {
    fn new(length: usize) -> Self {
        let mut values = Vec::with_capacity(length);
        Self { begin: values.as_mut_ptr(), length, values }
    }

    /// `scale * a b` in the head's columns of some rows.
    ///
    /// # Safety
    /// They must be there, as many as `a` and `b` have, and the head's own.
    unsafe fn write(&self, head: &Head, rows: &Range<usize>, scale: f64, a: Matrix<T>, b: Matrix<T>) {
        let output = self.begin.wrapping_add(rows.start * head.hidden + head.first_column);
        // SAFETY: as the caller promises.
        unsafe { write_product(output, head.hidden, scale, a, b) };
    }

    /// # Safety
    /// Every head of every sequence must have written its columns.
    unsafe fn written(mut self) -> Vec<T> {
        // SAFETY: as the caller promises; the capacity is there.
        unsafe { self.values.set_len(self.length) };
        self.values
    }
}

impl Attention {
    /// The heads of all sequences.
    fn heads(&self, hidden: usize) -> Vec<Head> {
        let width = hidden / self.heads;
        let mut first_probability = 0u32;
        let mut heads = Vec::with_capacity(self.heads * self.segments.len());
        for (queries, keys) in self.queries.ranges().zip(self.segments.ranges()) {
            for first_column in (0..hidden).step_by(width) {
                let probabilities = (queries.len() * keys.len()) as u32;
                let (queries, keys) = (queries.clone(), keys.clone());
                heads.push(Head { queries, keys, first_column, width, hidden, first_probability });
                first_probability = first_probability.wrapping_add(probabilities);
            }
        }
        heads
    }
}

/// Heads that a thread takes at a time.
const TASK_HEADS: usize = 8;

impl Operation for Attention {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let (_, hidden) = inputs[0].matrix();
        let [query, key, value] = [0, 1, 2].map(|i| inputs[i].data);
        let output = Columns::new(query.len());
        self.heads(hidden).par_chunks(TASK_HEADS).for_each_init(Vec::new, |buffer, heads| {
            for head in heads {
                let Head { queries, keys, .. } = head;
                let probabilities = head.scores(buffer, head.scale(), head.of(key, keys), head.of(query, queries));
                softmax(probabilities, head.stride());
                if let Some(mask) = head.mask(self.dropout) {
                    drop_out(probabilities, head.stride(), mask);
                }
                // SAFETY: the output has the queries' rows, and these columns are the head's.
                unsafe { output.write(head, queries, 1.0, head.matrix(probabilities).t(), head.of(value, keys)) };
            }
        });
        // SAFETY: the heads' columns are all there are.
        Ok((unsafe { output.written() }, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        needed: &[bool],
        _output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>> {
        let (_, hidden) = inputs[0].matrix();
        let [query, key, value] = [0, 1, 2].map(|i| inputs[i].data);
        let gradients = [0, 1, 2].map(|i| needed[i].then(|| Columns::new(inputs[i].data.len())));
        let [dq, dk, dv] = &gradients;
        self.heads(hidden).par_chunks(TASK_HEADS).for_each_init(
            Default::default,
            |(buffer, other): &mut (_, _), heads| {
                for head in heads {
                    let Head { queries, keys, .. } = head;
                    let (q, k, upstream) =
                        (head.of(query, queries), head.of(key, keys), head.of(gradient.data, queries));
                    let probabilities = head.scores(buffer, head.scale(), k, q);
                    softmax(probabilities, head.stride());
                    let scores = head.scores(other, 1.0, head.of(value, keys), upstream); // their gradient
                    backward(scores, probabilities, head.stride(), head.mask(self.dropout));
                    let (scores, probabilities) = (head.matrix(scores), head.matrix(probabilities));
                    // SAFETY: the gradients have the rows of what they are gradients of, and these columns are the head's.
                    unsafe {
                        if let Some(dq) = dq {
                            dq.write(head, queries, head.scale(), scores.t(), k);
                        }
                        if let Some(dk) = dk {
                            dk.write(head, keys, head.scale(), scores, q);
                        }
                        if let Some(dv) = dv {
                            dv.write(head, keys, 1.0, probabilities, upstream);
                        }
                    }
                }
            },
        );
        // SAFETY: the heads' columns are all there are.
        let written = |gradient: Option<Columns<T>>| gradient.map(|gradient| unsafe { gradient.written() });
        Ok(gradients.into_iter().map(|gradient| written(gradient).map_or(Gradient::None, Gradient::Values)).collect())
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Option<&dyn crate::cuda::GpuOperation> {
        Some(self)
    }
}
