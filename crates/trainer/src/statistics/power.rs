//! The power of a t test: how often it finds a difference that is there.

use crate::statistics::student::{noncentral_two_sided, quantile};

/// The noncentrality (a difference divided by its standard error) at which a two-sided t test of this level finds the difference with this
/// power: the root of `P(|T'(ν, noncentrality)| > t(1 - level/2, ν)) = power` (Cohen 1988, chapter 2; statsmodels'
/// `TTestPower.solve_power`). Not a number where there are no degrees of freedom.
pub(super) fn noncentrality(degrees_of_freedom: f64, level: f64, power: f64) -> f64 {
    let critical = quantile(1.0 - level / 2.0, degrees_of_freedom);
    if !critical.is_finite() {
        return f64::NAN;
    }
    let found = |noncentrality| noncentral_two_sided(critical, degrees_of_freedom, noncentrality);
    // The power grows with it: from the level, at 0, to 1.
    let (mut low, mut high) = (0.0, 1.0);
    while found(high) < power {
        (low, high) = (high, 2.0 * high);
    }
    // Halved until it is between two neighboring numbers or nearly so.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if found(middle) < power { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}
