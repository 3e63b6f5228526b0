//! Numbers in JSON, which has none that are not finite: what is not a number is `null`, and the infinities are `"inf"` and `"-inf"`. For
//! serde's `with`.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number that reads back from JSON as it was, finite or not.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Number(#[serde(with = "crate::number")] pub f64);

/// Writes a number.
///
/// # Errors
/// As the serializer.
pub fn serialize<S: Serializer>(value: &f64, output: S) -> Result<S::Ok, S::Error> {
    match *value {
        f64::INFINITY => output.serialize_str("inf"),
        f64::NEG_INFINITY => output.serialize_str("-inf"),
        value if value.is_nan() => output.serialize_unit(),
        value => output.serialize_f64(value),
    }
}

/// Reads a number.
///
/// # Errors
/// When there is anything else.
pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<f64, D::Error> {
    struct AnyNumber;

    impl Visitor<'_> for AnyNumber {
        type Value = f64;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a number, null where there is none, \"inf\" or \"-inf\"")
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
            Ok(value)
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<f64, E> {
            Ok(value as f64)
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
            Ok(value as f64)
        }

        fn visit_unit<E: Error>(self) -> Result<f64, E> {
            Ok(f64::NAN)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<f64, E> {
            match text {
                "inf" => Ok(f64::INFINITY),
                "-inf" => Ok(f64::NEG_INFINITY),
                other => Err(E::invalid_value(Unexpected::Str(other), &self)),
            }
        }
    }

    input.deserialize_any(AnyNumber)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_as_it_was_and_what_is_none_is_refused() {
        let numbers = [0.1 + 0.2, -0.0, 5e-324, f64::MAX, 7.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let json = serde_json::to_string(&numbers.map(Number)).unwrap();
        assert!(json.ends_with(r#",7.0,"inf","-inf",null]"#), "{json}");
        let read: Vec<Number> = serde_json::from_str(&json).unwrap();
        for (Number(read), written) in read.into_iter().zip(numbers) {
            assert!(
                read.to_bits() == written.to_bits() || read.is_nan() && written.is_nan(),
                "{written} became {read}"
            );
        }
        for integer in ["7", "-7", "18446744073709551615"] {
            assert_eq!(serde_json::from_str::<Number>(integer).unwrap().0, integer.parse::<f64>().unwrap());
        }
        for other in ["\"NaN\"", "true", "[1.0]", "\"1.0\""] {
            let error = serde_json::from_str::<Number>(other).unwrap_err().to_string();
            assert!(error.contains("expected a number"), "{error}");
        }
    }
}
