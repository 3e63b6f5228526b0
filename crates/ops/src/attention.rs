//! Multi-head self-attention over packed sequences.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::dropout::{Dropout, mask_piece};
use crate::float::{Float, highest, sum};
use crate::matrix::Matrix;
use crate::memory::zeros;
use crate::operation::{Gradient, Operation, View, apply};
use crate::product::{multiply_here, product_here};
use crate::segments::Segments;

/// `softmax(q kᵀ / sqrt(head_dim)) v` for each head and each sequence (Vaswani et al. 2017, equation 1).
///
/// key and value are `(tokens, heads * head_dim)`, query and the result likewise, or of one row per sequence: for what is wanted
/// of one token of each only. A query attends to its own sequence only. Dropout falls on the attention probabilities. No
/// probability is kept for the backward pass: they are computed again.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    segments: &Segments,
    heads: usize,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let (tokens, hidden) = key.dims2()?;
    let queries = match query.dims2()? {
        (rows, _) if rows == tokens => segments.clone(),
        (rows, _) if rows == segments.len() => Segments::from_lengths(&vec![1; rows]),
        (rows, _) => bail!("attention: {rows} queries for {tokens} tokens of {} sequences", segments.len()),
    };
    if query.dim(1)? != hidden || value.dims() != key.dims() {
        bail!("attention: query {:?}, key {:?}, value {:?} differ", query.dims(), key.dims(), value.dims())
    }
    if heads == 0 || hidden % heads != 0 {
        bail!("attention: {heads} heads do not divide a hidden size of {hidden}")
    }
    segments.check(tokens, Attention::NAME)?;
    apply(Attention { queries, segments: segments.clone(), heads, dropout }, &[query, key, value])
}

struct Attention {
    /// Of the query's rows.
    queries: Segments,
    /// Of the key's and the value's rows.
    segments: Segments,
    heads: usize,
    dropout: Option<Dropout>,
}

/// `softmax(scale * scores)` of each row, in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn softmax<T: Float>(scores: &mut [T], columns: usize) {
    for row in scores.chunks_exact_mut(columns) {
        let highest = highest(row);
        for score in row.iter_mut() {
            *score = (*score - highest).exponential();
        }
        let inverse = T::one() / sum(row, |_, score| score);
        row.iter_mut().for_each(|score| *score *= inverse);
    }
}

/// The gradient of a softmax: `d -> p * (d - sum(d * p))`, row by row, in place.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn softmax_backward<T: Float>(gradient: &mut [T], probabilities: &[T], columns: usize) {
    for (row, p) in gradient.chunks_exact_mut(columns).zip(probabilities.chunks_exact(columns)) {
        let dot = sum(row, |index, d| d * p[index]);
        for (d, &p) in row.iter_mut().zip(p) {
            *d = p * (*d - dot);
        }
    }
}

/// One head of one sequence.
struct Head {
    queries: usize,
    keys: usize,
    hidden: usize,
    width: usize,
    first_column: usize,
    /// The position of this head's first probability among all of the batch: what dropout counts by.
    first_probability: u32,
}

impl Head {
    /// This head's columns of a sequence's rows, `(rows, head_dim)`.
    fn of<'a, T>(&self, rows: &'a [T]) -> Matrix<'a, T> {
        Matrix::strided(&rows[self.first_column..], rows.len() / self.hidden, self.width, self.hidden)
    }

    /// `rows = scale * a b`, in this head's columns.
    fn store<T: Float>(&self, rows: &mut [T], scale: f64, a: Matrix<T>, b: Matrix<T>) {
        multiply_here(&mut rows[self.first_column..], self.hidden, scale, a, b);
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// The attention probabilities before dropout, `(queries, keys)`.
    fn probabilities<T: Float>(&self, query: &[T], key: &[T]) -> Vec<T> {
        let mut scores = product_here(self.scale(), self.of(query), self.of(key).t());
        softmax(&mut scores, self.keys);
        scores
    }
}

/// One sequence: where its queries and its keys lie, and its heads.
struct Sequence {
    queries: Range<usize>,
    keys: Range<usize>,
    heads: Vec<Head>,
}

impl Attention {
    fn sequences(&self, hidden: usize) -> Vec<Sequence> {
        let width = hidden / self.heads;
        let mut first_probability = 0u32;
        let head = |head: usize, queries: usize, keys: usize, first_probability: u32| Head {
            queries,
            keys,
            hidden,
            width,
            first_column: head * width,
            first_probability,
        };
        let values = |rows: Range<usize>| rows.start * hidden..rows.end * hidden;
        self.queries
            .ranges()
            .zip(self.segments.ranges())
            .map(|(queries, keys)| {
                let heads = (0..self.heads)
                    .map(|index| {
                        let first = first_probability;
                        first_probability = first_probability.wrapping_add((queries.len() * keys.len()) as u32);
                        head(index, queries.len(), keys.len(), first)
                    })
                    .collect();
                Sequence { queries: values(queries), keys: values(keys), heads }
            })
            .collect()
    }
}

impl Operation for Attention {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let (_, hidden) = inputs[0].matrix();
        let mut output = zeros(inputs[0].data.len());
        let outputs = self.queries.split(&mut output, hidden);
        self.sequences(hidden).into_par_iter().zip(outputs).for_each(|(Sequence { queries, keys, heads }, output)| {
            let query = &inputs[0].data[queries];
            let [key, value] = [1, 2].map(|i| &inputs[i].data[keys.clone()]);
            for head in heads {
                let mut probabilities = head.probabilities(query, key);
                if let Some(dropout) = self.dropout {
                    mask_piece(&mut probabilities, dropout, head.first_probability);
                }
                let probabilities = Matrix::new(&probabilities, head.queries, head.keys);
                head.store(output, 1.0, probabilities, head.of(value));
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
        let mut gradients = [0, 1, 2].map(|i| zeros(inputs[i].data.len()));
        let [dq, dk, dv] = &mut gradients;
        let (dq, dk) = (self.queries.split(dq, hidden), self.segments.split(dk, hidden));
        let dv = self.segments.split(dv, hidden);
        self.sequences(hidden).into_par_iter().zip(dq.into_par_iter().zip(dk).zip(dv)).for_each(
            |(Sequence { queries, keys, heads }, ((dq, dk), dv))| {
                let (query, upstream) = (&inputs[0].data[queries.clone()], &gradient.data[queries]);
                let [key, value] = [1, 2].map(|i| &inputs[i].data[keys.clone()]);
                for head in heads {
                    let probabilities = head.probabilities(query, key);
                    let g = head.of(upstream);
                    let mut ds = product_here(1.0, g, head.of(value).t()); // first of the probabilities, then of the scores
                    if let Some(dropout) = self.dropout {
                        mask_piece(&mut ds, dropout, head.first_probability);
                    }
                    if needed[2] {
                        let mut masked = Cow::from(&probabilities);
                        if let Some(dropout) = self.dropout {
                            mask_piece(masked.to_mut(), dropout, head.first_probability);
                        }
                        head.store(dv, 1.0, Matrix::new(&masked, head.queries, head.keys).t(), g);
                    }
                    softmax_backward(&mut ds, &probabilities, head.keys);
                    let ds = Matrix::new(&ds, head.queries, head.keys);
                    if needed[0] {
                        head.store(dq, head.scale(), ds, head.of(key));
                    }
                    if needed[1] {
                        head.store(dk, head.scale(), ds.t(), head.of(query));
                    }
                }
            },
        );
        let keep = |(values, &needed): (Vec<T>, &bool)| if needed { Gradient::Values(values) } else { Gradient::None };
        Ok(gradients.into_iter().zip(needed).map(keep).collect())
    }
}
