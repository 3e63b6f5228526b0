//! The multi-bootstrap: how a difference between two methods would come out with other seeds and other examples.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::statistics::estimate::{Interval, LEVEL};
use crate::statistics::mean;

/// How often seeds and examples are resampled.
const RESAMPLES: usize = 5000;

/// What is resampled: the runs of both sides, and the examples they were measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// How many runs each side has.
    pub runs: [usize; 2],
    /// Whether the runs of both sides are pairs, of one seed each, and so are drawn together. Then there are equally many.
    pub paired: bool,
    /// How many examples there are; `None`: they stay as they are, and seeds alone are resampled.
    pub examples: Option<usize>,
}

/// The difference between two methods, mean score of the first less that of the second, over resamples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// As it was measured.
    pub difference: f64,
    /// The middle [`CONFIDENCE`](crate::statistics::CONFIDENCE) of the resampled differences (the percentile interval, Efron & Tibshirani 1993, chapter 13).
    pub interval: Interval,
    /// Twice the share of resampled differences on the other side of 0, the measured one counted among them, at most 1.
    pub p_value: f64,
}

impl Bootstrap {
    /// Resamples runs and examples with replacement, both at once (Sellam et al. 2022, "The MultiBERTs", section 4): each time as many runs
    /// and as many examples are drawn as there are, a side's score is the mean of its drawn runs' scores on the drawn examples, and both
    /// sides have the same examples. `score` gives the score of a run (side, index) on the examples of these indices, or on all of them
    /// where none are resampled. With one run on each side it is the paired bootstrap over examples. The same seed gives the same bits.
    ///
    /// Of few runs the interval is too narrow, as their spread is that of the runs that are there; Student's t
    /// ([`Estimate`](crate::statistics::Estimate)) allows for that.
    ///
    /// `None` where there is nothing to resample, pairs are not equally many, or a score is not a number.
    pub fn new(sampling: Sampling, seed: u64, score: impl Fn(usize, usize, Option<&[usize]>) -> f64) -> Option<Self> {
        let Sampling { runs, paired, examples } = sampling;
        if runs.contains(&0) || examples == Some(0) || (paired && runs[0] != runs[1]) {
            return None;
        }
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let difference = |drawn: [&[usize]; 2], rows: Option<&[usize]>| {
            let [first, second] = [0, 1].map(|side| mean_score(runs[side], drawn[side], |run| score(side, run, rows)));
            first - second
        };
        let all = runs.map(|runs| (0..runs).collect::<Vec<_>>());
        let measured = difference([&all[0], &all[1]], None);
        let mut differences = Vec::with_capacity(RESAMPLES);
        for _ in 0..RESAMPLES {
            let mut draw = |count: usize| (0..count).map(|_| generator.random_range(0..count)).collect::<Vec<_>>();
            let first = draw(runs[0]);
            let second = if paired { first.clone() } else { draw(runs[1]) };
            let rows = examples.map(&mut draw);
            differences.push(difference([&first, &second], rows.as_deref()));
        }
        if !measured.is_finite() || !differences.iter().all(|difference| difference.is_finite()) {
            return None;
        }
        differences.sort_by(f64::total_cmp);
        let share = |count: usize| (count + 1) as f64 / (RESAMPLES + 1) as f64;
        let below = share(differences.iter().filter(|&&difference| difference <= 0.0).count());
        let above = share(differences.iter().filter(|&&difference| difference >= 0.0).count());
        Some(Self {
            difference: measured,
            interval: Interval {
                low: quantile(&differences, LEVEL / 2.0),
                high: quantile(&differences, 1.0 - LEVEL / 2.0),
            },
            p_value: (2.0 * below.min(above)).min(1.0),
        })
    }
}

/// The mean over the runs that were drawn; one that was drawn several times is scored once.
fn mean_score(runs: usize, drawn: &[usize], score: impl Fn(usize) -> f64) -> f64 {
    let mut scores = vec![None; runs];
    mean(&drawn.iter().map(|&run| *scores[run].get_or_insert_with(|| score(run))).collect::<Vec<f64>>())
}

/// The value below which a share of sorted values lies, between two neighbors in proportion, as numpy's `quantile`.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_differs_the_interval_is_a_point_and_nothing_is_found() {
        let sampling = Sampling { runs: [3, 3], paired: true, examples: Some(10) };
        let found = Bootstrap::new(sampling, 1, |_, _, _| 0.5).unwrap();
        assert_eq!((found.difference, found.interval), (0.0, Interval { low: 0.0, high: 0.0 }));
        assert_eq!(found.p_value, 1.0);
    }

    #[test]
    fn nothing_to_resample_unequal_pairs_or_a_score_that_is_no_number_give_none() {
        let found = |runs, paired, examples, score| {
            Bootstrap::new(Sampling { runs, paired, examples }, 1, move |_, _, _| score)
        };
        assert_eq!(found([0, 2], false, None, 0.5), None);
        assert_eq!(found([3, 2], true, None, 0.5), None);
        assert_eq!(found([2, 2], true, Some(0), 0.5), None);
        assert_eq!(found([2, 2], true, None, f64::NAN), None);
        assert!(found([3, 2], false, None, 0.5).is_some());
    }
}
