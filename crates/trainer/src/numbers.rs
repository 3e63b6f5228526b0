//! Scores, learning rates, durations and digests as text.

use crate::statistics::Interval;

/// A score, to three decimals; `–` if there is none.
pub fn score(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".into() }
}

/// A mean with the deviation over `count` values; one value has none.
pub fn mean_and_deviation(mean: f64, deviation: f64, count: usize) -> String {
    if count > 1 && mean.is_finite() { format!("{mean:.3} ± {deviation:.3}") } else { score(mean) }
}

/// The ends of an interval of scores.
pub fn interval(interval: Interval) -> String {
    format!("{} to {}", score(interval.low), score(interval.high))
}

/// A score from 0 to 1 in points of 100, to one decimal.
pub fn points(value: f64) -> String {
    let text = format!("{:.1}", 100.0 * value);
    if text == "-0.0" { "0.0".into() } else { text }
}

/// A difference of scores in points of 100, with its sign unless it is 0 to one decimal.
pub fn signed_points(value: f64) -> String {
    let text = points(value);
    if value > 0.0 && text != "0.0" { format!("+{text}") } else { text }
}

/// A p-value, with as many digits as say something.
pub fn p_value(value: f64) -> String {
    match value {
        p if p < 0.001 => "below 0.001".into(),
        p if p < 0.1 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

/// How many, as a word up to twelve.
pub fn count(number: usize) -> String {
    const WORDS: [&str; 13] =
        ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
    WORDS.get(number).map_or_else(|| number.to_string(), ToString::to_string)
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
        assert_eq!([points(0.8614), points(-0.0003), signed_points(0.012)], ["86.1", "0.0", "+1.2"]);
        assert_eq!([signed_points(-0.012), signed_points(0.0004)], ["-1.2", "0.0"]);
        assert_eq!([p_value(0.0004), p_value(0.0123), p_value(0.345)], ["below 0.001", "0.012", "0.34"]);
        assert_eq!([count(1), count(12), count(13)], ["one", "twelve", "13"]);
        assert_eq!(mean_and_deviation(0.8614, 0.0042, 3), "0.861 ± 0.004");
        assert_eq!(mean_and_deviation(0.8614, 0.0, 1), "0.861");
        assert_eq!(mean_and_deviation(f64::NAN, f64::NAN, 3), "–");
    }
}
