//! McNemar's test: whether one of two models is right on more examples.

use statrs::distribution::{Binomial, DiscreteCDF};

/// On how many examples one of two models is right and the other wrong. The others, on which both are right or both wrong, say nothing of
/// which is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct McNemar {
    /// Only the first model is right.
    pub only_first: u64,
    /// Only the second one is.
    pub only_second: u64,
}

impl McNemar {
    /// Of whether each example was right, by the first model and by the second.
    pub fn new(right: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut counts = Self { only_first: 0, only_second: 0 };
        for pair in right {
            match pair {
                (true, false) => counts.only_first += 1,
                (false, true) => counts.only_second += 1,
                _ => {}
            }
        }
        counts
    }

    /// The exact two-sided p-value: twice the probability that of as many throws of a coin no more than the smaller count are heads, at most 1
    /// (McNemar 1947, with the binomial in the place of the chi-squared distribution; statsmodels' `mcnemar(exact=True)`).
    pub fn p_value(&self) -> f64 {
        let (smaller, all) = (self.only_first.min(self.only_second), self.only_first + self.only_second);
        Binomial::new(0.5, all).map_or(f64::NAN, |coin| (2.0 * coin.cdf(smaller)).min(1.0))
    }
}
