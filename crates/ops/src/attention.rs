//! Multi-head self-attention over packed sequences.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::dropout::{Dropout, mask_piece};
use crate::float::{Float, highest, sum};
use crate::matrix::Matrix;
use crate::operation::{Gradient, Operation, View, apply};
use crate::product::multiply_here;
use crate::segments::Segments;

/// `softmax(q kᵀ / sqrt(head_dim)) v` for each head and each sequence (Vaswani et al. 2017, equation 1).
///
/// query, key, value and the result are `(tokens, heads * head_dim)`; a token attends to its own sequence only. Dropout
/// falls on the attention probabilities. No probability is kept for the backward pass: they are computed again.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    segments: &Segments,
    heads: usize,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let (tokens, hidden) = query.dims2()?;
    if key.dims() != query.dims() || value.dims() != query.dims() {
        bail!("attention: query {:?}, key {:?}, value {:?} differ", query.dims(), key.dims(), value.dims())
    }
    if heads == 0 || hidden % heads != 0 {
        bail!("attention: {heads} heads do not divide a hidden size of {hidden}")
    }
    segments.check(tokens, Attention::NAME)?;
    apply(Attention { segments: segments.clone(), heads, dropout }, &[query, key, value])
}

struct Attention {
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

/// One sequence's rows of a `(tokens, hidden)` matrix, one head's columns of them.
struct Head {
    length: usize,
    hidden: usize,
    width: usize,
    first_column: usize,
    /// The position of this head's first probability among all of the batch: what dropout counts by.
    first_probability: u32,
}

impl Head {
    fn of<'a, T>(&self, rows: &'a [T]) -> Matrix<'a, T> {
        Matrix::strided(&rows[self.first_column..], self.length, self.width, self.hidden) // (length, head_dim)
    }

    /// `rows = scale * a b`, in this head's columns.
    fn store<T: Float>(&self, rows: &mut [T], scale: f64, a: Matrix<T>, b: Matrix<T>) {
        multiply_here(&mut rows[self.first_column..], self.hidden, scale, a, b);
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// The attention probabilities before dropout, `(length, length)`.
    fn probabilities<T: Float>(&self, query: &[T], key: &[T]) -> Vec<T> {
        let mut scores = vec![T::zero(); self.length * self.length];
        let (query, key) = (self.of(query), self.of(key).t());
        multiply_here(&mut scores, self.length, self.scale(), query, key);
        softmax(&mut scores, self.length);
        scores
    }
}

impl Attention {
    /// For each sequence its rows' range and its heads.
    fn sequences(&self, hidden: usize) -> Vec<(std::ops::Range<usize>, Vec<Head>)> {
        let width = hidden / self.heads;
        let mut first_probability = 0u32;
        self.segments
            .ranges()
            .map(|range| {
                let length = range.len();
                let heads = (0..self.heads)
                    .map(|head| {
                        let first = first_probability;
                        first_probability = first_probability.wrapping_add((length * length) as u32);
                        Head { length, hidden, width, first_column: head * width, first_probability: first }
                    })
                    .collect();
                (range.start * hidden..range.end * hidden, heads)
            })
            .collect()
    }
}

impl Operation for Attention {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let (_, hidden) = inputs[0].matrix();
        let mut output = vec![T::zero(); inputs[0].data.len()];
        let outputs = self.segments.split(&mut output, hidden);
        self.sequences(hidden).into_par_iter().zip(outputs).for_each(|((range, heads), output)| {
            let [query, key, value] = [0, 1, 2].map(|i| &inputs[i].data[range.clone()]);
            for head in heads {
                let mut probabilities = head.probabilities(query, key);
                if let Some(dropout) = self.dropout {
                    mask_piece(&mut probabilities, dropout, head.first_probability);
                }
                let probabilities = Matrix::new(&probabilities, head.length, head.length);
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
        let mut gradients = [(); 3].map(|()| vec![T::zero(); inputs[0].data.len()]);
        let [dq, dk, dv] = &mut gradients;
        let (dq, dk) = (self.segments.split(dq, hidden), self.segments.split(dk, hidden));
        let dv = self.segments.split(dv, hidden);
        self.sequences(hidden).into_par_iter().zip(dq.into_par_iter().zip(dk).zip(dv)).for_each(
            |((range, heads), ((dq, dk), dv))| {
                let [query, key, value] = [0, 1, 2].map(|i| &inputs[i].data[range.clone()]);
                let upstream = &gradient.data[range];
                for head in heads {
                    let length = head.length;
                    let probabilities = head.probabilities(query, key);
                    let mut ds = vec![T::zero(); probabilities.len()]; // first of the probabilities, then of the scores
                    let (g, v) = (head.of(upstream), head.of(value));
                    multiply_here(&mut ds, head.length, 1.0, g, v.t());
                    match self.dropout {
                        Some(dropout) => {
                            let mut masked = probabilities.clone();
                            mask_piece(&mut masked, dropout, head.first_probability);
                            mask_piece(&mut ds, dropout, head.first_probability);
                            head.store(dv, 1.0, Matrix::new(&masked, length, length).t(), g);
                        }
                        None => head.store(dv, 1.0, Matrix::new(&probabilities, length, length).t(), g),
                    }
                    softmax_backward(&mut ds, &probabilities, head.length);
                    let ds = Matrix::new(&ds, length, length);
                    head.store(dq, head.scale(), ds, head.of(key));
                    head.store(dk, head.scale(), ds.t(), head.of(query));
                }
            },
        );
        let keep = |(values, &needed): (Vec<T>, &bool)| if needed { Gradient::Values(values) } else { Gradient::None };
        Ok(gradients.into_iter().zip(needed).map(keep).collect())
    }
}
