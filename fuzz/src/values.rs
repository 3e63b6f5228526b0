//! Numbers and texts that readers have had trouble with.

use rand::{Rng, RngExt};
use serde_json::{Number, Value, json};

/// Whole numbers at the edges of types and of memory.
const WHOLE: [i64; 24] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    255,
    256,
    1000,
    65_535,
    65_536,
    1_000_000,
    5_000_000,
    1_000_000_000,
    10_000_000_000,
    i32::MAX as i64,
    u32::MAX as i64,
    (1 << 32) + 5,
    1 << 53,
    1_000_000_000_000_000_000,
    i64::MAX,
    i64::MIN,
    i64::MAX - 1,
];

const FRACTIONS: [f64; 12] = [0.5, -0.5, 5.9, 0.999_999, 1e-12, 1e-300, 1e300, -1e300, 1e38, 3.5e38, 1.0, 1e15];

const TEXTS: [&str; 22] = [
    "",
    " ",
    "\u{0}",
    "\u{fffe}",
    "\u{1b}[31m",
    "_",
    "[CLS]",
    "##",
    "A",
    "all-linear",
    ".*",
    "(a+)+$",
    "query",
    "../..",
    "/etc/passwd",
    "no/such-model",
    "true",
    "NaN",
    "-1",
    "18446744073709551616",
    "日本語 é ﷺ",
    "\u{200d}\u{e0001}\u{1f468}",
];

fn one<T: Clone>(random: &mut impl Rng, of: &[T]) -> T {
    of[random.random_range(0..of.len())].clone()
}

/// A number, near to `old` or not.
pub(crate) fn number(random: &mut impl Rng, old: &Number) -> Value {
    if let (Some(whole), true) = (old.as_i64(), random.random_bool(0.4)) {
        return json!(match random.random_range(0..5) {
            0 => whole.wrapping_add(1),
            1 => whole.wrapping_sub(1),
            2 => whole.wrapping_mul(2),
            3 => whole / 2,
            _ => whole.wrapping_neg(),
        });
    }
    match random.random_range(0..10) {
        0..6 => json!(one(random, &WHOLE)),
        6 => json!(u64::MAX - random.random_range(0..3)),
        7 => json!(random.random_range(0..100_000_u64)),
        _ => json!(one(random, &FRACTIONS)),
    }
}

/// A text, made of `old` or not.
pub(crate) fn text(random: &mut impl Rng, old: &str) -> String {
    match random.random_range(0..6) {
        0 => one(random, &TEXTS).into(),
        1 => format!("{old}{}", one(random, &TEXTS)),
        2 => old.chars().rev().collect(),
        3 => old.chars().take(old.chars().count() / 2).collect(),
        4 => old.to_uppercase(),
        _ => one(random, &["a", "_", "[UNK]", "##"]).repeat(random.random_range(1..3000)),
    }
}

/// Any JSON value.
pub(crate) fn value(random: &mut impl Rng) -> Value {
    match random.random_range(0..8) {
        0 => Value::Null,
        1 => json!(random.random_bool(0.5)),
        2 => json!(one(random, &WHOLE)),
        3 => json!(one(random, &FRACTIONS)),
        4 => json!(one(random, &TEXTS)),
        5 => json!([]),
        6 => json!({}),
        _ => json!([one(random, &WHOLE), one(random, &TEXTS)]),
    }
}

/// A number as text.
pub(crate) fn digits(random: &mut impl Rng) -> String {
    match random.random_range(0..8) {
        0..4 => one(random, &WHOLE).to_string(),
        4 | 5 => one(random, &FRACTIONS).to_string(),
        6 => one(random, &["nan", "inf", "-inf", "1e999", "-0", "+1", "0x10", "1_0", "٣"]).into(),
        _ => u64::MAX.to_string(),
    }
}
