//! Scores, learning rates, durations and digests as text.

/// A score, to three decimals; `–` if there is none.
pub fn score(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".into() }
}

/// A mean with the deviation over `count` values; one value has none.
pub fn mean_and_deviation(mean: f64, deviation: f64, count: usize) -> String {
    if count > 1 && mean.is_finite() { format!("{mean:.3} ± {deviation:.3}") } else { score(mean) }
}

/// How much more one score is than another, with its sign unless it is 0 to three decimals.
pub fn difference(value: f64) -> String {
    if value.abs() < 0.0005 { "0.000".into() } else { format!("{value:+.3}") }
}

/// Bytes as hexadecimal digits, two for each.
pub(crate) fn hexadecimal(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answer to a question.
pub fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

/// A learning rate or the like: `1e-3`, `0.06`, `2.5e-5`.
pub fn small(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:e}") } else { format!("{value}") }
}

/// Seconds, in the unit that reads best.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "–".into(),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        assert_eq!([small(1e-3), small(2.5e-5), small(0.06), small(0.0)], ["1e-3", "2.5e-5", "0.06", "0"]);
        assert_eq!([duration(4.25), duration(75.0), duration(600.0)], ["4.2 s", "75 s", "10.0 min"]);
        assert_eq!([difference(0.012), difference(-0.008), difference(-0.0004)], ["+0.012", "-0.008", "0.000"]);
        assert_eq!(mean_and_deviation(0.8614, 0.0042, 3), "0.861 ± 0.004");
        assert_eq!(mean_and_deviation(0.8614, 0.0, 1), "0.861");
        assert_eq!(mean_and_deviation(f64::NAN, f64::NAN, 3), "–");
    }
}
