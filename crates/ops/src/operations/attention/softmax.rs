//! The softmax of a head's scores, and dropout on it.
//!
//! Scores are kept as `(keys, queries)`: a softmax then runs down a column, and what is added up for a query stays in its lane. Rows
//! are whole vectors, `stride` numbers apart; what fills one up is of no query.

use std::ops::Range;

use multiversion::multiversion;

use crate::cpu::float::Float;
use crate::operations::dropout::Dropout;

/// Which keys a query sees: those at most so many tokens away from its own.
#[derive(Clone, Copy)]
pub(super) struct Window {
    /// Where the first query's token stands among the keys.
    pub first: usize,
    pub width: usize,
}

impl Window {
    /// The queries that see a key, among so many.
    #[inline(always)]
    fn seeing(self, key: usize, queries: usize) -> Range<usize> {
        let end = (key + self.width + 1).saturating_sub(self.first).min(queries);
        key.saturating_sub(self.width + self.first).min(end)..end
    }
}

/// `softmax(scores)` of each query over the keys it sees, in place; zero for the others.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
pub(super) fn softmax<T: Float>(scores: &mut [T], stride: usize, window: Option<Window>) {
    let seeing = |key| window.map_or(0..stride, |window| window.seeing(key, stride));
    let mut highest = vec![T::neg_infinity(); stride];
    for (key, row) in scores.chunks_exact(stride).enumerate() {
        let seeing = seeing(key);
        let seen = highest[seeing.clone()].iter_mut().zip(&row[seeing]);
        seen.for_each(|(highest, &x)| *highest = if x > *highest { x } else { *highest });
    }
    let mut sums = vec![T::zero(); stride];
    for (key, row) in scores.chunks_exact_mut(stride).enumerate() {
        let seeing = seeing(key);
        row[..seeing.start].fill(T::zero());
        row[seeing.end..].fill(T::zero());
        let seen = row[seeing.clone()].iter_mut().zip(&highest[seeing.clone()]).zip(&mut sums[seeing]);
        for ((x, &highest), sum) in seen {
            *x = (*x - highest).exponential();
            *sum += *x;
        }
    }
    sums.iter_mut().for_each(|sum| *sum = T::one() / *sum);
    for (key, row) in scores.chunks_exact_mut(stride).enumerate() {
        let seeing = seeing(key);
        row[seeing.clone()].iter_mut().zip(&sums[seeing]).for_each(|(x, &inverse)| *x *= inverse);
    }
}

/// Which of a head's probabilities are dropped.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    pub dropout: Dropout,
    /// The position of the head's first probability among all of the batch: what dropout counts by, query by query.
    pub first: u32,
    pub keys: u32,
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
pub(super) fn drop_out<T: Float>(probabilities: &mut [T], stride: usize, mask: Mask) {
    for (key, row) in probabilities.chunks_exact_mut(stride).enumerate() {
        row.iter_mut().enumerate().for_each(|(query, p)| *p *= mask.factor(key, query));
    }
}

/// `mask * probabilities`, in place, after `mask * gradient` has become the gradient of the scores: of a softmax it is
/// `p * (d - sum(d * p))`, query by query.
///
/// A mask is worked out once: a probability is never negative, so that its sign can tell that it was dropped.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
pub(super) fn softmax_backward<T: Float>(
    gradient: &mut [T],
    probabilities: &mut [T],
    stride: usize,
    mask: Option<Mask>,
) {
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
