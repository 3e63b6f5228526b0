//! Almost stochastic order (Dror, Shlomov & Reichart 2019, "Deep Dominance"): how far the scores of one method are from being always the
//! higher ones.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::statistics::estimate::CONFIDENCE;
use crate::statistics::mean_and_deviation;
use crate::statistics::student::normal_quantile;

/// How often the scores are resampled, as by default in `deepsig`.
const RESAMPLES: usize = 1000;

/// An upper bound, of confidence [`CONFIDENCE`], to the share in which the order "a is above b" is violated: `ε_min`, from 0 (a is always
/// above) to 1. Below 0.5 a is almost stochastically above b; `deepsig`'s authors advise to ask for 0.2 (Ulmer et al. 2022).
///
/// `ε_min = ε(a, b) - σ Φ⁻¹(1 - CONFIDENCE)` with the [`violation_ratio`] ε, and σ its deviation over resamples of both sides (equation 8;
/// the square roots of the counts there cancel). The same seed gives the same bits. `None` where a side is empty or a score is no number.
pub fn almost_stochastic_order(a: &[f64], b: &[f64], seed: u64) -> Option<f64> {
    let ratio = violation_ratio(a, b)?;
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut resampled =
        |scores: &[f64]| (0..scores.len()).map(|_| scores[generator.random_range(0..scores.len())]).collect::<Vec<_>>();
    let ratios: Vec<f64> = (0..RESAMPLES).filter_map(|_| violation_ratio(&resampled(a), &resampled(b))).collect();
    let (_, deviation) = mean_and_deviation(&ratios);
    Some((ratio - deviation * normal_quantile(1.0 - CONFIDENCE)).clamp(0.0, 1.0))
}

/// The share of the squared distance between the quantile functions of a and b that lies where b's is above: `∫ max(G⁻¹ - F⁻¹, 0)² dt / ∫
/// (G⁻¹ - F⁻¹)² dt` (equations 4 and 5); 0.5 where they are equal, as in `deepsig`. The integrals over the steps are exact, where `deepsig`
/// adds up points. `None` where a side is empty or a score is no number.
pub fn violation_ratio(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.is_empty() || b.is_empty() || !a.iter().chain(b).all(|score| score.is_finite()) {
        return None;
    }
    let [a, b] = [a, b].map(|scores| {
        let mut sorted = scores.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted
    });
    let (mut i, mut j) = (0, 0);
    let (mut violated, mut all) = (0.0, 0.0);
    // Where a step began, in units of 1 / (lengths' product), so that equal ends are equal.
    let mut begin = 0;
    while i < a.len() && j < b.len() {
        let (end_a, end_b) = ((i + 1) * b.len(), (j + 1) * a.len());
        let end = end_a.min(end_b);
        let (difference, width) = (b[j] - a[i], (end - begin) as f64);
        all += difference * difference * width;
        violated += difference.max(0.0).powi(2) * width;
        begin = end;
        i += usize::from(end == end_a);
        j += usize::from(end == end_b);
    }
    Some(if all == 0.0 { 0.5 } else { violated / all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_that_are_always_higher_violate_nothing_and_always_lower_everything() {
        let (high, low) = ([0.8, 0.9, 0.85], [0.1, 0.2]);
        assert_eq!((violation_ratio(&high, &low), violation_ratio(&low, &high)), (Some(0.0), Some(1.0)));
        assert_eq!(violation_ratio(&high, &high), Some(0.5));
        assert_eq!(violation_ratio(&high, &[]), None);
    }

    #[test]
    fn half_of_the_quantiles_a_little_lower_is_a_share_by_squares() {
        // Quantiles: 1 and 5 against 2 and 3, so 1² of 1² + 2².
        assert_eq!(violation_ratio(&[5.0, 1.0], &[2.0, 3.0]), Some(0.2));
    }

    #[test]
    fn the_same_seed_gives_the_same_bits() {
        let (a, b) = ([0.81, 0.84, 0.86, 0.80], [0.79, 0.82, 0.85, 0.83]);
        let bound = |seed| almost_stochastic_order(&a, &b, seed).map(f64::to_bits);
        assert_eq!(bound(1), bound(1));
        assert_ne!(bound(1), bound(2));
    }
}
