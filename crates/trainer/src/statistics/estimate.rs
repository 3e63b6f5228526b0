//! Means and differences of means, estimated from a few values: interval, test and power by Student's t.

use crate::statistics::student::{quantile, two_sided};
use crate::statistics::{mean_and_deviation, power};

/// How often an interval that is given has the true value in it.
pub const CONFIDENCE: f64 = 0.95;

/// How often a test that is made finds a difference where there is none.
pub const LEVEL: f64 = 1.0 - CONFIDENCE;

/// How often a test finds the difference that is called the smallest visible one.
pub const POWER: f64 = 0.8;

/// An interval that a value is estimated to lie in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// That of the negative value.
    pub fn negative(self) -> Self {
        Self { low: -self.high, high: -self.low }
    }
}

/// A value that was estimated, with its error; it is taken to be distributed as Student's t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value, in the unit of what it was estimated from.
    pub value: f64,
    /// Its standard error, in the same unit. 0 where the values it was estimated from do not differ.
    pub standard_error: f64,
    /// How many independent deviations the error was estimated from; after Welch not a whole number.
    pub degrees_of_freedom: f64,
}

impl Estimate {
    /// The mean of what the values are a sample of: standard error `s / sqrt(n)`, with n - 1 degrees of freedom (Student 1908). `None` of
    /// fewer than two values, or where one is not a number.
    pub fn mean(values: &[f64]) -> Option<Self> {
        if values.len() < 2 || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        let ((value, deviation), count) = (mean_and_deviation(values), values.len() as f64);
        // Equal values can leave a deviation by rounding, as their mean need not be equal to them.
        let deviation = if values.iter().all(|value| *value == values[0]) { 0.0 } else { deviation };
        Some(Self { value, standard_error: deviation / count.sqrt(), degrees_of_freedom: count - 1.0 })
    }

    /// The mean of `a - b`, pair by pair, as scipy's `ttest_rel`. `None` of fewer than two pairs, of sides of different lengths, or where a
    /// value is not a number.
    pub fn paired_difference(a: &[f64], b: &[f64]) -> Option<Self> {
        if a.len() != b.len() {
            return None;
        }
        Self::mean(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
    }

    /// The mean of `a` less that of `b`, which are no pairs and may spread differently, as scipy's `ttest_ind(equal_var=False)`:
    /// `sqrt(s_a²/n_a + s_b²/n_b)`, with Welch's degrees of freedom (Welch 1947, equation 29). `None` of fewer than two values on a side,
    /// or where one is not a number.
    pub fn difference(a: &[f64], b: &[f64]) -> Option<Self> {
        let [a, b] = [Self::mean(a)?, Self::mean(b)?];
        let squares = [a.standard_error.powi(2), b.standard_error.powi(2)];
        let sum = squares[0] + squares[1];
        let denominator = squares[0].powi(2) / a.degrees_of_freedom + squares[1].powi(2) / b.degrees_of_freedom;
        Some(Self {
            value: a.value - b.value,
            standard_error: sum.sqrt(),
            degrees_of_freedom: if sum == 0.0 {
                a.degrees_of_freedom + b.degrees_of_freedom
            } else {
                sum.powi(2) / denominator
            },
        })
    }

    /// Where the true value lies, with a confidence of [`CONFIDENCE`]: `value ± t(1 - LEVEL/2, ν) · standard error`.
    pub fn interval(&self) -> Interval {
        let half = quantile(1.0 - LEVEL / 2.0, self.degrees_of_freedom) * self.standard_error;
        Interval { low: self.value - half, high: self.value + half }
    }

    /// How probable a value is that is as far from 0 or farther, on either side, where the true value is 0. `None` without an error:
    /// then no test says anything.
    pub fn p_value(&self) -> Option<f64> {
        (self.standard_error > 0.0).then(|| two_sided(self.value / self.standard_error, self.degrees_of_freedom))
    }

    /// The smallest true value that a two-sided test of this level finds with a probability of [`POWER`], where values spread as these do:
    /// the noncentrality of that power, times the standard error.
    pub fn smallest_visible(&self, level: f64) -> f64 {
        power::noncentrality(self.degrees_of_freedom, level, POWER) * self.standard_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_or_one_that_is_not_a_number_is_no_sample() {
        assert_eq!(Estimate::mean(&[0.5]), None);
        assert_eq!(Estimate::mean(&[0.5, f64::NAN]), None);
        assert_eq!(Estimate::paired_difference(&[0.5, 0.6], &[0.5]), None);
        assert_eq!(Estimate::difference(&[0.5, 0.6], &[0.5]), None);
    }

    #[test]
    fn equal_values_have_an_interval_of_no_width_and_no_test() {
        let estimate = Estimate::mean(&[0.1, 0.1, 0.1]).unwrap();
        assert_eq!((estimate.standard_error, estimate.p_value()), (0.0, None));
        let Interval { low, high } = estimate.interval();
        assert!(low == high && (low - 0.1).abs() < 1e-15);
    }
}
