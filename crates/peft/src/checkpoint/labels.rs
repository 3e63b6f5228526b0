//! The labels of a checkpoint's classifier: `id2label`, and how they are a task's.

use serde_json::{Map, Value};

/// What `config.json` says of its classifier's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelNames {
    /// By their ids, if it names them.
    pub names: Option<Vec<String>>,
    /// `problem_type`.
    pub problem_type: Option<String>,
}

/// How the labels of a classifier are those that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LabelMatch {
    /// The wanted label of each place is the classifier's of this place.
    Order(Vec<usize>),
    /// It does not name them: `LABEL_0` and so on, or nothing.
    Unnamed,
    /// They are others.
    Others,
}

impl LabelNames {
    /// Of the fields of `config.json`; or what is wrong with them.
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Self, String> {
        let by_id = object(fields, "id2label")?
            .map(|ids| in_order(ids, "id2label", |id, name| Some((id.parse().ok()?, name.as_str()?))));
        let by_name = object(fields, "label2id")?
            .map(|ids| in_order(ids, "label2id", |name, id| Some((id.as_u64()? as usize, name.as_str()))));
        let problem_type = fields.get("problem_type").and_then(Value::as_str).map(String::from);
        Ok(Self { names: by_id.or(by_name).transpose()?, problem_type })
    }

    /// What a classifier of so many rows is for, for messages.
    pub(crate) fn described(&self, rows: usize) -> String {
        match (&self.names, self.problem_type.as_deref()) {
            (_, Some("regression")) => format!("{rows} scores"),
            (_, Some("multi_label_classification")) => format!("{rows} labels that may hold together"),
            (Some(names), _) if names.len() == rows => names.join(", "),
            (Some(names), _) => format!("{rows} labels, of which id2label names {}", names.len()),
            (None, _) => format!("{rows} labels"),
        }
    }

    /// How its labels are `wanted`. Case, and the signs between words, make no difference.
    pub(crate) fn matched(&self, wanted: &[&str]) -> LabelMatch {
        let Some(names) = &self.names else { return LabelMatch::Unnamed };
        let is_unnamed = |(id, name): (usize, &String)| plain(name) == format!("label{id}") || *name == id.to_string();
        if names.iter().enumerate().all(is_unnamed) {
            return LabelMatch::Unnamed;
        }
        let place = |label: &&str| {
            let mut places = (0..names.len()).filter(|&place| meaning(&names[place]) == meaning(label));
            places.next().filter(|_| places.next().is_none())
        };
        match wanted.iter().map(place).collect::<Option<Vec<usize>>>() {
            Some(order) if names.len() == wanted.len() => LabelMatch::Order(order),
            _ => LabelMatch::Others,
        }
    }
}

fn object<'a>(fields: &'a Map<String, Value>, field: &str) -> Result<Option<&'a Map<String, Value>>, String> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(labels)) if labels.is_empty() => Ok(None),
        Some(Value::Object(labels)) => Ok(Some(labels)),
        Some(other) => Err(format!("{field} {other}, expected an object of labels")),
    }
}

/// The names in the order of their ids, which are 0 and up.
fn in_order<'a>(
    labels: &'a Map<String, Value>,
    field: &str,
    pair: impl Fn(&'a String, &'a Value) -> Option<(usize, &'a str)>,
) -> Result<Vec<String>, String> {
    let wrong = || format!("{field} {}, expected a name for each id from 0 up", Value::Object(labels.clone()));
    let mut pairs: Vec<(usize, &str)> =
        labels.iter().map(|(key, value)| pair(key, value)).collect::<Option<_>>().ok_or_else(wrong)?;
    pairs.sort_unstable();
    let is_whole = pairs.iter().enumerate().all(|(place, (id, _))| place == *id);
    if is_whole { Ok(pairs.into_iter().map(|(_, name)| name.to_string()).collect()) } else { Err(wrong()) }
}

/// A label without case and without signs between words.
fn plain(label: &str) -> String {
    label.chars().filter(|sign| sign.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The words that published checkpoints have for one label.
const SYNONYMS: &[&[&str]] = &[
    &["entailment", "entails", "entailed", "entail"],
    &["contradiction", "contradicts", "contradictory", "contradict"],
    &["notentailment", "nonentailment", "noentailment"],
    &["negative", "neg"],
    &["positive", "pos"],
    &["notequivalent", "nonequivalent", "notparaphrase"],
    &["equivalent", "paraphrase"],
    &["notduplicate", "nonduplicate"],
    &["duplicate", "isduplicate"],
    &["unacceptable", "notacceptable", "ungrammatical"],
    &["acceptable", "grammatical"],
];

/// What a label means: the same for its synonyms.
fn meaning(label: &str) -> String {
    let label = plain(label);
    let of_all = SYNONYMS.iter().find(|words| words.contains(&label.as_str())).and_then(|words| words.first());
    of_all.map_or(label.clone(), |first| first.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use serde_json::json;

    use super::*;

    const NLI: [&str; 3] = ["entailment", "neutral", "contradiction"];

    fn matched(fields: Value, wanted: &[&str]) -> LabelMatch {
        LabelNames::read(fields.as_object().unwrap()).unwrap().matched(wanted)
    }

    #[test]
    fn labels_are_matched_by_their_names_in_any_case_and_order() {
        let large = json!({ "id2label": { "0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT" } });
        assert_eq!(matched(large, &NLI), LabelMatch::Order(vec![2, 1, 0]));
        let by_name = json!({ "label2id": { "neutral": 0, "entailment": 1, "contradiction": 2 } });
        assert_eq!(matched(by_name, &NLI), LabelMatch::Order(vec![1, 0, 2]));
        let signs = json!({ "id2label": { "0": "Not Entailment", "1": "entailment" } });
        assert_eq!(matched(signs, &["entailment", "not_entailment"]), LabelMatch::Order(vec![1, 0]));
        let short = json!({ "id2label": { "0": "POS", "1": "NEG" } });
        assert_eq!(matched(short, &["negative", "positive"]), LabelMatch::Order(vec![1, 0]));
        let tens: Map<String, Value> = (0..12).map(|id| (id.to_string(), json!(format!("c{id}")))).collect();
        let wanted: Vec<String> = (0..12).rev().map(|id| format!("c{id}")).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        assert_eq!(matched(json!({ "id2label": tens }), &wanted), LabelMatch::Order((0..12).rev().collect()));
    }

    #[test]
    fn labels_of_other_meanings_or_another_number_are_others_and_numbered_ones_have_no_names() {
        assert_eq!(
            matched(json!({ "id2label": { "0": "joy", "1": "anger" } }), &["negative", "positive"]),
            LabelMatch::Others
        );
        assert_eq!(matched(json!({ "id2label": { "0": "entailment", "1": "neutral" } }), &NLI), LabelMatch::Others);
        let twice = json!({ "id2label": { "0": "entailment", "1": "Entailment", "2": "neutral" } });
        assert_eq!(matched(twice, &NLI), LabelMatch::Others);
        assert_eq!(
            matched(json!({ "id2label": { "0": "LABEL_0", "1": "LABEL_1" } }), &["a", "b"]),
            LabelMatch::Unnamed
        );
        assert_eq!(matched(json!({}), &["a", "b"]), LabelMatch::Unnamed);
    }

    #[test]
    fn ids_with_a_gap_and_lists_are_refused_by_the_field() {
        for (fields, named) in [
            (json!({ "id2label": { "0": "a", "2": "b" } }), "id2label"),
            (json!({ "id2label": ["a", "b"] }), "id2label"),
            (json!({ "label2id": { "a": "0" } }), "label2id"),
        ] {
            let error = LabelNames::read(fields.as_object().unwrap()).unwrap_err();
            assert!(error.contains(named) && error.contains("expected"), "{error}");
        }
    }
}
