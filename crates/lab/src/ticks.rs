//! Where an axis is marked, and with what.

use crate::chart::{Axis, Scale};

/// The marks of an axis between `low` and `high`: the axis's own, or `about` so many at round values.
pub(crate) fn ticks(axis: &Axis, low: f64, high: f64, about: usize) -> Vec<(f64, String)> {
    let inside = |value: &f64| {
        let slack = 1e-9 * (high - low).abs();
        (low - slack..=high + slack).contains(value)
    };
    if !axis.ticks.is_empty() {
        return axis.ticks.iter().filter(|(value, _)| inside(value)).cloned().collect();
    }
    match axis.scale {
        Scale::Linear => linear(low, high, about),
        Scale::Log10 => logarithmic(low, high, about),
        Scale::Log2 => {
            let exponents = low.log2().floor() as i32..=high.log2().ceil() as i32;
            exponents.map(|exponent| 2f64.powi(exponent)).filter(inside).map(|value| (value, brief(value))).collect()
        }
    }
}

fn linear(low: f64, high: f64, about: usize) -> Vec<(f64, String)> {
    let rough = (high - low) / about.max(1) as f64;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
    let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(10.0 * magnitude);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last)
        .map(|index| index as f64 * step)
        .map(|value| (value, if value.abs() >= 1e4 { brief(value) } else { format!("{value:.decimals$}") }))
        .collect()
}

fn logarithmic(low: f64, high: f64, about: usize) -> Vec<(f64, String)> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let at = |factors: &[f64]| -> Vec<f64> {
        let values = decades.clone().flat_map(|decade| factors.iter().map(move |factor| factor * 10f64.powi(decade)));
        values.filter(|value| (low * 0.999..=high * 1.001).contains(value)).collect()
    };
    // The most marks that are not too many; whole decades if all are.
    let choices = [at(&[1.0, 2.0, 5.0]), at(&[1.0, 3.0]), at(&[1.0])];
    let chosen = choices.iter().find(|values| values.len() <= about.max(2)).unwrap_or(&choices[2]);
    chosen.iter().map(|&value| (value, brief(value))).collect()
}

/// A number in a few characters: `1e-3`, `0.05`, `32`, `10k`, `1.5M`.
pub(crate) fn brief(value: f64) -> String {
    // 3 * 10^-4 is 0.00030000000000000003.
    let round = |value: f64| format!("{value:.3e}").parse::<f64>().unwrap_or(value);
    match value.abs() {
        0.0 => "0".into(),
        size if size < 0.01 => format!("{:e}", round(value)),
        size if size < 1e4 => format!("{}", round(value)),
        size if size < 1e6 => format!("{}k", round(value / 1e3)),
        _ => format!("{}M", round(value / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, low: f64, high: f64, about: usize) -> Vec<String> {
        ticks(&Axis::new("x").scale(scale), low, high, about).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn a_linear_axis_is_marked_at_round_values() {
        assert_eq!(labels(Scale::Linear, 0.0, 1.0, 5), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Scale::Linear, 0.83, 0.91, 4), ["0.84", "0.86", "0.88", "0.90"]);
        assert_eq!(labels(Scale::Linear, 0.0, 37.0, 4), ["0", "10", "20", "30"]);
    }

    #[test]
    fn a_logarithmic_axis_is_marked_at_decades_and_between_them_where_there_is_room() {
        assert_eq!(labels(Scale::Log10, 1e-5, 1e-2, 4), ["1e-5", "1e-4", "1e-3", "0.01"]);
        assert_eq!(labels(Scale::Log10, 1e-4, 1e-3, 4), ["1e-4", "2e-4", "5e-4", "1e-3"]);
        assert_eq!(labels(Scale::Log10, 5e3, 3e7, 8), ["10k", "30k", "100k", "300k", "1M", "3M", "10M", "30M"]);
    }

    #[test]
    fn an_axis_of_ranks_is_marked_at_powers_of_two() {
        assert_eq!(labels(Scale::Log2, 1.0, 64.0, 7), ["1", "2", "4", "8", "16", "32", "64"]);
    }
}
