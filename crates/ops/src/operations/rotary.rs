//! Rotary position embeddings.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::memory::in_pieces;
use crate::segments::Segments;

/// Turns each pair of a head's columns by an angle that grows with the token's position within its sequence (Su et al. 2021,
/// equation 34): columns `i` and `i + head_dim / 2`, the halves of a head as transformers' `rotate_half` pairs them, by
/// `position * theta^(-2 i / head_dim)`, where a sequence's first row has the position `first`. x and the result are
/// `(tokens, heads * head_dim)`.
///
/// # Errors
/// When the heads do not divide the columns into an even number each.
pub fn rotary(x: &Tensor, segments: &Segments, heads: usize, theta: f64, first: usize) -> Result<Tensor> {
    let (tokens, hidden) = x.dims2()?;
    segments.check(tokens, Rotary::NAME)?;
    if heads == 0 || hidden % (2 * heads) != 0 {
        bail!("rotary: {heads} heads do not divide {hidden} columns into pairs")
    }
    apply(Rotary { segments: segments.clone(), head_dim: hidden / heads, theta, first }, &[x])
}

pub(crate) struct Rotary {
    pub(crate) segments: Segments,
    pub(crate) head_dim: usize,
    pub(crate) theta: f64,
    pub(crate) first: usize,
}

/// Rows a thread takes at a time.
const ROWS: usize = 32;

impl Rotary {
    /// How many tokens the longest sequence has.
    pub(crate) fn longest(&self) -> usize {
        self.segments.ranges().map(|range| range.len()).max().unwrap_or(0)
    }

    /// The cosine and sine of each pair's angle at so many positions: `(positions, head_dim / 2)`.
    pub(crate) fn turns<T: Float>(&self, positions: usize) -> Vec<(T, T)> {
        let angle = |position: usize, i: usize| {
            let frequency = self.theta.powf(-2.0 * i as f64 / self.head_dim as f64);
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            (T::of(cosine), T::of(sine))
        };
        let half = self.head_dim / 2;
        (self.first..self.first + positions).flat_map(|position| (0..half).map(move |i| angle(position, i))).collect()
    }

    /// Each row of `x` turned, against the angle if `back`.
    fn turn<T: Float>(&self, x: &View<T>, back: bool) -> Vec<T> {
        let ((_, hidden), half) = (x.matrix(), self.head_dim / 2);
        let sign = if back { -T::one() } else { T::one() };
        let turns = self.turns::<T>(self.longest());
        let positions: Vec<usize> = self.segments.ranges().flat_map(|range| 0..range.len()).collect();
        in_pieces(x.data.len(), ROWS * hidden, |first, values| {
            let rows = values.chunks_exact_mut(hidden).zip(x.data[first..].chunks_exact(hidden));
            for ((value, x), &position) in rows.zip(&positions[first / hidden..]) {
                let turns = &turns[position * half..][..half];
                for (value, x) in value.chunks_exact_mut(self.head_dim).zip(x.chunks_exact(self.head_dim)) {
                    for (i, &(cosine, sine)) in turns.iter().enumerate() {
                        let sine = sign * sine;
                        value[i] = x[i] * cosine - x[i + half] * sine;
                        value[i + half] = x[i + half] * cosine + x[i] * sine;
                    }
                }
            }
        })
    }
}

impl Operation for Rotary {
    const NAME: &'static str = "rotary";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        Ok(Output::new(self.turn(&inputs[0], false), inputs[0].shape.to_vec()))
    }

    /// A rotation's transpose is the rotation back.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { gradient, .. } = pass;
        Ok(vec![Gradient::Values(self.turn(&gradient, true))])
    }
}
