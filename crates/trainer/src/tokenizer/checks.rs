//! What a `tokenizer.json` must not say: the crate tokenizers would fail at it in the midst of the work, take memory without end, or cut one text
//! differently each time.

use serde::Deserialize;
use serde_json::{Map, Value};

/// The parts that are looked at.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    post_processor: Option<Value>,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// Bytes of the marks of a word's pieces. Those in use have one to four; each look-up in a vocabulary copies them.
const MOST_OF_A_MARK: usize = 64;

/// Bytes that a normalizer may make of a text, where it makes texts longer.
const MOST_OF_A_TEXT: f64 = (1 << 23) as f64;

/// How much longer a tokenizer's normalizer may make a text: so many bytes of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Growth(f64);

impl Growth {
    /// That of a tokenizer that is not of a file.
    pub(super) const NONE: Self = Self(1.0);

    /// Fails where a text may become too long. Unicode's own normal forms, which at most multiply a text by a small number, are not limited.
    pub(super) fn check(self, text: &str) -> Result<(), String> {
        let most = self.0 * text.len() as f64;
        if self.0 <= 1.0 || most <= MOST_OF_A_TEXT {
            return Ok(());
        }
        let (length, most) = (text.len(), most.min(1e18) as u64);
        Err(format!(
            "its normalizer may make up to {most} bytes of a text of {length}, expected at most {MOST_OF_A_TEXT}: look at the normalizer's \
             Replace and Prepend, or shorten the text"
        ))
    }
}

/// Checks the text of a `tokenizer.json`, and gives how much longer its normalizer makes texts; or says what is wrong with it.
pub(super) fn check(bytes: &[u8]) -> Result<Growth, String> {
    let parts: Parts = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if let Some(model) = &parts.model {
        for (name, mark) in [
            ("continuing_subword_prefix", &model.continuing_subword_prefix),
            ("end_of_word_suffix", &model.end_of_word_suffix),
        ] {
            if let Some(length) = mark.as_ref().map(String::len).filter(|length| *length > MOST_OF_A_MARK) {
                return Err(format!("model.{name} of {length} bytes, expected at most {MOST_OF_A_MARK}"));
            }
        }
        if let Some(dropout) = model.dropout.filter(|dropout| *dropout != 0.0) {
            return Err(format!("model.dropout {dropout}, expected none: it cuts one text differently each time"));
        }
    }
    parts.post_processor.as_ref().map_or(Ok(()), check_processor)?;
    Ok(Growth(parts.normalizer.as_ref().map_or(1.0, growth)))
}

/// Fails where a template puts a special token that it does not define, or a sentence twice.
fn check_processor(processor: &Value) -> Result<(), String> {
    for part in list(processor, "processors") {
        check_processor(part)?;
    }
    let Some(Value::Object(special)) = processor.get("special_tokens") else { return Ok(()) };
    for (name, sentences) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        let pieces = list(processor, name);
        check_pieces(pieces, sentences, special).map_err(|found| format!("post_processor.{name}: {found}"))?;
    }
    Ok(())
}

fn check_pieces(pieces: &[Value], sentences: &[&str], special: &Map<String, Value>) -> Result<(), String> {
    let ids = |kind: &'static str| pieces.iter().filter_map(move |piece| piece.get(kind)?.get("id")?.as_str());
    if let Some(token) = ids("SpecialToken").find(|token| !special.contains_key(*token)) {
        return Err(format!("the special token {token:?}, which special_tokens does not define"));
    }
    for sentence in ["A", "B"] {
        let (times, most) = (ids("Sequence").filter(|id| *id == sentence).count(), sentences.contains(&sentence));
        if times > usize::from(most) {
            return Err(format!("sentence {sentence} {times} times, expected {}", if most { "once" } else { "none" }));
        }
    }
    Ok(())
}

/// How many bytes a normalizer makes of one at most, as far as it is the file that says so.
fn growth(normalizer: &Value) -> f64 {
    let length = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0.0, |text| text.len() as f64);
    let own = match normalizer.get("type").and_then(Value::as_str) {
        Some("Replace") => {
            let content = length(normalizer.get("content"));
            // A regular expression may match between any two characters.
            match normalizer.get("pattern").and_then(|pattern| pattern.get("String")) {
                Some(text) => content / length(Some(text)).max(1.0),
                None => content + 1.0,
            }
        }
        Some("Prepend") => length(normalizer.get("prepend")) + 1.0,
        _ => 1.0,
    };
    list(normalizer, "normalizers").iter().map(growth).fold(own.max(1.0), |product, one| product * one)
}

/// The members of a list.
fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use serde_json::json;

    use super::*;

    fn of(parts: Value) -> Result<Growth, String> {
        check(parts.to_string().as_bytes())
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        assert!(check(b"not JSON").is_err() && check(b"{\"model\": {\"type\": \"BPE\"").is_err());
        assert_eq!(of(json!({})), Ok(Growth(1.0)));
    }

    #[test]
    fn a_template_that_names_what_it_has_not_is_refused() {
        let template = |single: Value, pair: Value| {
            let tokens = json!({ "[CLS]": { "id": "[CLS]", "ids": [1], "tokens": ["[CLS]"] } });
            let template =
                json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens });
            of(json!({ "post_processor": { "type": "Sequence", "processors": [template] } }))
        };
        let cls = json!({ "SpecialToken": { "id": "[CLS]", "type_id": 0 } });
        let [a, b] = ["A", "B"].map(|id| json!({ "Sequence": { "id": id, "type_id": 0 } }));
        assert!(template(json!([cls, a]), json!([cls, a, b])).is_ok());
        for (single, pair, part) in [
            (
                json!([{ "SpecialToken": { "id": "[SEP]", "type_id": 0 } }, a]),
                json!([a, b]),
                "single: the special token \"[SEP]\"",
            ),
            (json!([a]), json!([a, b, b]), "pair: sentence B 2 times, expected once"),
            (json!([a, b]), json!([a, b]), "single: sentence B 1 times, expected none"),
        ] {
            let error = template(single, pair).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_normalizer_that_blows_texts_up_is_refused_by_how_long_they_may_become() {
        let replace =
            |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
        let underscore = replace(json!({ "String": "_" }), &"x".repeat(5000));
        let twice =
            json!({ "type": "Sequence", "normalizers": [underscore, replace(json!({ "Regex": "x" }), "yyyy")] });
        let growth = of(json!({ "normalizer": twice })).unwrap();
        assert_eq!(growth, Growth(25_000.0));
        assert!(growth.check("a_short_one").is_ok());
        let error = growth.check(&"_".repeat(1000)).unwrap_err();
        assert!(error.contains("25000000 bytes of a text of 1000"), "{error}");
        // SentencePiece's.
        let metaspace = of(json!({ "normalizer": replace(json!({ "String": " " }), "\u{2581}") })).unwrap();
        assert!(metaspace.check(&"a ".repeat(1_000_000)).is_ok());
        assert!(Growth::NONE.check(&"a".repeat(1 << 25)).is_ok());
    }

    #[test]
    fn a_model_that_cuts_a_text_differently_each_time_is_refused() {
        assert!(of(json!({ "model": { "dropout": 0.1 } })).unwrap_err().contains("dropout 0.1"));
        assert!(of(json!({ "model": { "dropout": null, "continuing_subword_prefix": "##" } })).is_ok());
        let long = "#".repeat(65);
        assert!(of(json!({ "model": { "end_of_word_suffix": long } })).unwrap_err().contains("of 65 bytes"));
    }
}
