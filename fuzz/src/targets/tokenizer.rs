//! Tokenizers: loaded, and texts encoded. No sequence may be longer than it was cut to, and the same text gives the same tokens again.

use anyhow::Result;
use glue::Example;
use peft::Pretrained;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use trainer::Tokenizer;

use super::{Outcome, Target};
use crate::input::Input;

const BASE: &str = "crates/peft/tests/oracle/tiny-bert";
const LONGEST: usize = 24;

pub(super) struct Tokenizers {
    pretrained: Pretrained,
    folder: TempDir,
    seeds: Vec<Input>,
    examples: Vec<Example>,
}

impl Tokenizers {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let base = Input { base: BASE.into(), ..Input::default() };
        base.put_into(folder.path())?;
        let pretrained = Pretrained::from_folder(folder.path())?;
        let seed = |(tokenizer, config): (Value, Value)| {
            let mut input = Input::file("tokenizer.json", tokenizer.to_string());
            input.files.insert("tokenizer_config.json".into(), config.to_string().into_bytes());
            input
        };
        let seeds = [word_level(), word_piece(), byte_level(), unigram()].map(seed).into();
        Ok(Self { pretrained, folder, seeds, examples: examples() })
    }
}

fn examples() -> Vec<Example> {
    let long = "the cat_sat on a mat ".repeat(150);
    let odd = "日本語 é ﷺ \u{200d}\u{1f468}\u{200d}\u{1f469} \u{0} \u{fffe} __ [SEP] ##ing \t";
    let pair = |first: &str, second: Option<&str>| Example { first: first.into(), second: second.map(String::from) };
    vec![
        pair("the cat sat", Some("a mat")),
        pair("", None),
        pair(&long, Some(&long)),
        pair(odd, Some("")),
        pair(&"x".repeat(300), None),
    ]
}

impl Target for Tokenizers {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        input.put_into(self.folder.path())?;
        let refused = |error: trainer::Error| Ok(Outcome::Refused(error.to_string()));
        let tokenizer = match Tokenizer::load(&self.pretrained, LONGEST) {
            Ok(tokenizer) => tokenizer,
            Err(error) => return refused(error),
        };
        let sequences = match tokenizer.encode(&self.examples) {
            Ok(sequences) => sequences,
            Err(error) => return refused(error),
        };
        if let Some(longest) =
            sequences.iter().map(|sequence| sequence.len()).max().filter(|longest| *longest > LONGEST)
        {
            return Ok(Outcome::Wrong(format!("a sequence of {longest} tokens, cut to {LONGEST}")));
        }
        Ok(match tokenizer.encode(&self.examples) {
            Ok(again) if again == sequences => Outcome::Accepted,
            _ => Outcome::Wrong("the same texts give other tokens".into()),
        })
    }
}

fn vocabulary(special: [&str; 4], words: &[&str]) -> Map<String, Value> {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let words = special.iter().chain(words).map(ToString::to_string).chain(letters);
    words.enumerate().map(|(id, word)| (word, json!(id))).collect()
}

fn template([cls, sep]: [&str; 2], separators: usize) -> Value {
    let special = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sentence = |id: &str, kind: usize| json!({ "Sequence": { "id": id, "type_id": kind } });
    let mut pair = vec![special(cls), sentence("A", 0)];
    pair.extend(std::iter::repeat_n(special(sep), separators));
    pair.extend([sentence("B", 1), special(sep)]);
    json!({
        "type": "TemplateProcessing", "single": [special(cls), sentence("A", 0), special(sep)], "pair": pair,
        "special_tokens": {
            cls: { "id": cls, "ids": [1], "tokens": [cls] }, sep: { "id": sep, "ids": [2], "tokens": [sep] },
        },
    })
}

fn tokenizer(normalizer: Value, pre_tokenizer: Value, post_processor: Value, model: Value) -> Value {
    let added = |id: usize, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    let names: Vec<Value> =
        ["[PAD]", "[CLS]", "[SEP]", "[UNK]"].into_iter().enumerate().map(|(id, n)| added(id, n)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": names, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": null, "model": model,
    })
}

const SPECIAL: [&str; 4] = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"];

fn word_level() -> (Value, Value) {
    let vocabulary = vocabulary(SPECIAL, &["the", "cat", "sat", "on", "mat"]);
    let replace = json!({ "type": "Replace", "pattern": { "String": "_" }, "content": " " });
    let normalizers = json!({ "type": "Sequence", "normalizers": [{ "type": "NFKD" }, replace] });
    let bert = json!({ "type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2] });
    let model = json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" });
    (tokenizer(normalizers, json!({ "type": "WhitespaceSplit" }), bert, model), json!({ "truncation_side": "left" }))
}

fn word_piece() -> (Value, Value) {
    let vocabulary = vocabulary(SPECIAL, &["the", "cat", "sat", "##at", "##t", "##x", "_"]);
    let bert = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true,
    });
    let model = json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    });
    let config = json!({
        "do_lower_case": true, "cls_token": "[CLS]", "sep_token": { "content": "[SEP]" },
        "added_tokens_decoder": { "40": { "content": "[NEW]", "special": true } },
    });
    (tokenizer(bert, json!({ "type": "BertPreTokenizer" }), template(["[CLS]", "[SEP]"], 1), model), config)
}

fn byte_level() -> (Value, Value) {
    let vocabulary = vocabulary(SPECIAL, &["Ġ", "Ġt", "Ġth", "Ġthe", "at", "cat", "_"]);
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let roberta = json!({
        "type": "RobertaProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1], "trim_offsets": true, "add_prefix_space": false,
    });
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": "[UNK]", "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
        "merges": [["Ġ", "t"], ["Ġt", "h"], ["Ġth", "e"], ["a", "t"], ["c", "at"]],
    });
    (tokenizer(Value::Null, bytes, roberta, model), json!({ "add_prefix_space": true }))
}

fn unigram() -> (Value, Value) {
    let mut vocabulary: Vec<Value> = SPECIAL.iter().map(|token| json!([token, 0.0])).collect();
    vocabulary.extend(["▁the", "▁cat", "▁", "at", "▁sat"].iter().map(|piece| json!([piece, -2.5])));
    vocabulary.extend(('a'..='z').map(|letter| json!([letter.to_string(), -6.0])));
    let replace = json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let model = json!({ "type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": false });
    (tokenizer(replace, metaspace, template(["[CLS]", "[SEP]"], 2), model), json!({}))
}
