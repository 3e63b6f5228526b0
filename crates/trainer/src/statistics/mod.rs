//! Statistics of scores over seeds and over examples: what an estimate is worth, and whether two methods differ.
//!
//! | question | answer |
//! | --- | --- |
//! | where does a mean over seeds lie? | [`Estimate::mean`], its interval by Student's t |
//! | do two methods differ, over seeds? | [`Estimate::paired_difference`], [`Estimate::difference`] (Welch) |
//! | which difference could be seen with these seeds? | [`Estimate::smallest_visible`] |
//! | do they differ, over seeds and examples? | [`Bootstrap`] (the multi-bootstrap) |
//! | do two single models differ, over examples? | [`McNemar`] |
//! | how nearly is one method always the better one? | [`almost_stochastic_order`] |
//! | are several answers right together? | [`holm`] |
//!
//! Scores have the unit of their metric, from 0 to 1 or, of correlations, from -1 to 1; so have differences, intervals and errors of them.

mod bootstrap;
mod estimate;
mod holm;
mod mcnemar;
mod power;
mod stochastic_order;
mod student;

pub use bootstrap::{Bootstrap, Sampling};
pub use estimate::{CONFIDENCE, Estimate, Interval, LEVEL, POWER};
pub use holm::holm;
pub use mcnemar::McNemar;
pub use stochastic_order::{almost_stochastic_order, violation_ratio};

/// The mean and the sample standard deviation (n - 1 in the denominator; 0 for a single value) of the values that are
/// numbers; not numbers if there are none.
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let count = values.len() as f64;
    let mean = mean(&values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() == 1 { 0.0 } else { (squares / (count - 1.0)).sqrt() })
}

/// The item with the highest score, the first of equals; never one whose score is not a number.
pub fn best_by<'a, T>(items: impl IntoIterator<Item = &'a T>, score: impl Fn(&T) -> f64) -> Option<&'a T> {
    items.into_iter().filter(|item| score(item).is_finite()).fold(None, |best: Option<&T>, item| {
        if best.is_none_or(|best| score(item) > score(best)) { Some(item) } else { best }
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::mean_and_deviation;

    #[test]
    fn the_deviation_of_2_4_4_4_5_5_7_9_is_the_textbooks() {
        let (mean, deviation) = mean_and_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!(mean, 5.0);
        assert!((deviation - (32.0f64 / 7.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn one_value_has_no_spread_and_a_failed_run_does_not_count() {
        assert_eq!(mean_and_deviation(&[3.0, f64::NAN]), (3.0, 0.0));
        assert!(mean_and_deviation(&[]).0.is_nan());
    }
}
