//! Student's t distribution and its noncentral one, of which the first has quantiles and the second says how often a test finds something.

use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::erf::erfc;
use statrs::function::gamma::ln_gamma;

/// The value below which a share of the distribution lies. Not a number where there are no degrees of freedom.
pub(super) fn quantile(share: f64, degrees_of_freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, degrees_of_freedom).map_or(f64::NAN, |t| t.inverse_cdf(share))
}

/// How probable a value is that lies as far from 0 as `t`, or farther, on either side.
pub(super) fn two_sided(t: f64, degrees_of_freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, degrees_of_freedom).map_or(f64::NAN, |distribution| 2.0 * distribution.sf(t.abs()))
}

/// How probable a value is that lies farther from 0 than `t`, on either side, of the noncentral distribution: that of
/// `(Z + noncentrality) / U`, with Z standard normal, and `U^2 * degrees_of_freedom` chi-squared (Johnson, Kotz & Balakrishnan 1995,
/// chapter 31). It is the normal tails' mean over U,
///
/// `∫ f(u) [Φ(noncentrality - t u) + Φ(-noncentrality - t u)] du`, `f(u) = 2 (ν/2)^(ν/2) / Γ(ν/2) · u^(ν-1) · e^(-ν u²/2)`,
///
/// by Simpson's rule over x with u = x², so that f has no corner at 0 where ν is between 1 and 2.
pub(super) fn noncentral_two_sided(t: f64, degrees_of_freedom: f64, noncentrality: f64) -> f64 {
    const INTERVALS: usize = 2000;
    let half = degrees_of_freedom / 2.0;
    let log_factor = 2.0f64.ln() + half * half.ln() - ln_gamma(half);
    // U has about the mean 1 and the deviation 1 / sqrt(2 ν): what lies 12 deviations away is below 1e-30.
    let spread = 12.0 / (2.0 * degrees_of_freedom).sqrt();
    let (low, high) = ((1.0 - spread).max(0.0).sqrt(), (1.0 + spread).sqrt());
    let step = (high - low) / INTERVALS as f64;
    let value = |index: usize| {
        let x = low + index as f64 * step;
        if x == 0.0 {
            return 0.0; // f(u) du = f(x²) 2 x dx
        }
        let u = x * x;
        let density = (log_factor + (degrees_of_freedom - 1.0) * u.ln() - half * u * u).exp();
        density * 2.0 * x * (normal(noncentrality - t * u) + normal(-noncentrality - t * u))
    };
    let weight = |index: usize| match index {
        0 | INTERVALS => 1.0,
        odd if odd % 2 == 1 => 4.0,
        _ => 2.0,
    };
    (0..=INTERVALS).map(|index| weight(index) * value(index)).sum::<f64>() * step / 3.0
}

/// The share of the standard normal distribution below a value.
fn normal(value: f64) -> f64 {
    0.5 * erfc(-value / std::f64::consts::SQRT_2)
}

/// The value below which a share of the standard normal distribution lies.
pub(super) fn normal_quantile(share: f64) -> f64 {
    statrs::distribution::Normal::standard().inverse_cdf(share)
}
