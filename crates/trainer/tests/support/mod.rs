//! What several tests share.

use std::path::Path;

use glue::{Glue, Split, Task};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A checkpoint of two layers, with a tokenizer for the first words of the synthetic task.
pub(crate) fn model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft/tests/oracle/tiny-bert");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(oracle.join(file), folder.path().join(file)).unwrap();
    }
    let examples = Glue::synthetic("a test").load(Task::Synthetic, Split::Train).unwrap().examples().unwrap();
    let mut vocabulary = Map::new();
    let words = examples.iter().flat_map(|example| example.first.split_whitespace());
    for word in ["[PAD]", "[CLS]", "[SEP]", "[UNK]"].into_iter().chain(words) {
        let id = vocabulary.len();
        if id < 100 && !vocabulary.contains_key(word) {
            vocabulary.insert(word.into(), json!(id));
        }
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": Value::Null, "padding": Value::Null, "added_tokens": [], "normalizer": Value::Null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "decoder": Value::Null,
        "post_processor": { "type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2] },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}
