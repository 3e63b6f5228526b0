//! A model's `tokenizer.json` as it is, but for the truncation and the padding that it asks for.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use std::path::{Path, PathBuf};

use glue::{Example, Glue, Task};
use peft::{Method, Model, ModelOptions, PrefixTuning, Pretrained};
use serde_json::{Value, json};
use trainer::{Run, Tokenizer, Trainer};

/// The tiny checkpoint of an architecture, with a tokenizer that cuts at blanks: a to z are 4 to 29.
fn model(case: &str, post_processor: Value) -> (tempfile::TempDir, Pretrained) {
    let folder = tempfile::tempdir().unwrap();
    let oracle: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../peft/tests/oracle/encoders", case].iter().collect();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(oracle.join(file), folder.path().join(file)).unwrap();
    }
    let words = ["<s>", "<pad>", "</s>", "<unk>"].map(String::from).into_iter();
    let vocabulary: serde_json::Map<String, Value> =
        words.chain(('a'..='z').map(String::from)).enumerate().map(|(id, word)| (word, json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0",
        // Both must not take effect.
        "truncation": { "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 20 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>",
        },
        "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "decoder": null,
        "post_processor": post_processor,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    });
    write(&folder.path().join("tokenizer.json"), &tokenizer);
    let pretrained = Pretrained::from_folder(folder.path()).unwrap();
    (folder, pretrained)
}

fn write(path: &Path, json: &Value) {
    std::fs::write(path, json.to_string()).unwrap();
}

fn pair(first: &str, second: &str) -> Example {
    Example { first: first.into(), second: Some(second.into()) }
}

#[test]
fn robertas_own_tokenizer_sets_two_ends_between_the_sentences_of_a_pair_and_no_padding() {
    let roberta = json!({
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": false,
    });
    let (_folder, pretrained) = model("roberta", roberta);
    let tokenizer = Tokenizer::load(&pretrained, 40).unwrap();
    let examples = [pair("a b c d", "e"), Example { first: "a b".into(), second: None }];
    let sequences = tokenizer.encode(&examples).unwrap();
    assert_eq!(sequences[0].input_ids, [0, 4, 5, 6, 7, 2, 2, 8, 2]); // <s> a b c d </s> </s> e </s>
    assert_eq!(sequences[1].input_ids, [0, 4, 5, 2]);
    // The longer sentence is cut first.
    let sequences = Tokenizer::load(&pretrained, 7).unwrap().encode(&examples[..1]).unwrap();
    assert_eq!(sequences[0].input_ids, [0, 4, 5, 2, 2, 8, 2]);
    // Two rows of the table of positions, those before the first token's, serve no token.
    let error = Tokenizer::load(&pretrained, 41).err().unwrap().to_string();
    assert!(error.contains("4 to 40"), "{error}");
}

#[test]
fn the_token_types_that_a_tokenizer_tells_are_read_only_by_models_that_have_them() {
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [
            { "SpecialToken": { "id": "<s>", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
            { "SpecialToken": { "id": "</s>", "type_id": 0 } },
            { "Sequence": { "id": "B", "type_id": 1 } },
        ],
        "special_tokens": {
            "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] },
            "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] },
        },
    });
    for (case, has_types) in [("distilbert", false), ("mpnet", false), ("roberta", false), ("electra", true)] {
        let (_folder, pretrained) = model(case, template.clone());
        let tokenizer = Tokenizer::load(&pretrained, 40).unwrap();
        let sequence = tokenizer.encode(&[pair("a b", "c")]).unwrap().remove(0);
        assert_eq!(sequence.token_type_ids, [0, 0, 0, 0, 1], "{case}");
        let mut without = sequence.clone();
        without.token_type_ids.fill(0);
        let model = Model::new(&pretrained, &ModelOptions::new(Method::Head, 3)).unwrap();
        let logits = |sequence| {
            let batch = peft::Batch::new([sequence]).unwrap();
            model.predict(&batch).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(logits(&sequence) != logits(&without), has_types, "{case}");
    }
}

#[test]
fn virtual_tokens_leave_fewer_positions_for_texts() {
    let (folder, _) = model("roberta", Value::Null);
    let method = Method::PrefixTuning(PrefixTuning { num_virtual_tokens: 30, ..PrefixTuning::default() });
    let run = |max_length| {
        let run = Run::new(Task::Synthetic, folder.path().to_str().unwrap(), method.clone());
        run.with(|settings| settings.max_length = max_length)
    };
    let mut trainer = Trainer::new(Glue::synthetic("test"), folder.path().join("runs"));
    assert!(trainer.tokenizer(&run(10)).is_ok());
    let error = trainer.tokenizer(&run(11)).err().unwrap().to_string();
    assert!(
        error.contains("max_length") && error.contains("at most 10, the positions that 30 virtual tokens"),
        "{error}"
    );
}
