//! A model's `tokenizer.json` as it is, but for the truncation and the padding that it asks for.

#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

use std::path::{Path, PathBuf};

use glue::{Example, Glue, Split, Task};
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

/// A tokenizer that adds nothing, with these tokens in the place of RoBERTa's.
fn without_template(case: &str, cls: &str, sep: &str) -> (tempfile::TempDir, Pretrained) {
    let (folder, pretrained) = model(case, Value::Null);
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text.replace("<s>", cls).replace("</s>", sep)).unwrap();
    (folder, pretrained)
}

/// The rules of transformers' `tokenization_bert.py`, `tokenization_roberta.py` and their like.
#[test]
fn a_tokenizer_that_adds_no_special_tokens_is_completed_by_the_rule_of_its_architecture_and_it_is_said() {
    for (case, cls, sep, ids, types) in [
        ("distilbert", "[CLS]", "[SEP]", vec![0, 4, 5, 2, 6, 2], vec![0, 0, 0, 0, 1, 1]),
        ("electra", "[CLS]", "[SEP]", vec![0, 4, 5, 2, 6, 2], vec![0, 0, 0, 0, 1, 1]),
        ("deberta-v3", "[CLS]", "[SEP]", vec![0, 4, 5, 2, 6, 2], vec![0, 0, 0, 0, 1, 1]),
        ("roberta", "<s>", "</s>", vec![0, 4, 5, 2, 2, 6, 2], vec![0; 7]),
        ("mpnet", "<s>", "</s>", vec![0, 4, 5, 2, 2, 6, 2], vec![0; 7]),
        ("xlm-roberta", "<s>", "</s>", vec![0, 4, 5, 2, 2, 6, 2], vec![0; 7]),
    ] {
        let (_folder, pretrained) = without_template(case, cls, sep);
        let tokenizer = Tokenizer::load(&pretrained, 40).unwrap();
        let empty = Example { first: String::new(), second: None };
        let sequences = tokenizer.encode(&[pair("a b", "c"), empty]).unwrap();
        assert_eq!((&sequences[0].input_ids, &sequences[0].token_type_ids), (&ids, &types), "{case}");
        assert_eq!(sequences[1].input_ids, [0, 2], "{case}: a row without text has its special tokens");
        let [remark] = tokenizer.remarks() else { panic!("{case}") };
        assert!(remark.to_string().contains(&format!("{cls} first {sep}")), "{remark}");
    }
}

#[test]
fn special_tokens_have_the_names_that_the_folder_says_and_where_there_are_none_it_is_refused() {
    let (folder, pretrained) = without_template("electra", "<cls>", "<sep>");
    let error = Tokenizer::load(&pretrained, 40).err().unwrap().to_string();
    assert!(error.contains("no [CLS]") && error.contains("tokenizer_config.json"), "{error}");
    write(&folder.path().join("tokenizer_config.json"), &json!({ "cls_token": "<cls>" }));
    write(&folder.path().join("special_tokens_map.json"), &json!({ "sep_token": { "content": "<sep>" } }));
    let sequences = Tokenizer::load(&pretrained, 40).unwrap().encode(&[pair("a", "b")]).unwrap();
    assert_eq!(sequences[0].input_ids, [0, 4, 2, 5, 2]);
}

#[test]
fn a_sequence_is_cut_on_the_side_that_the_folder_says() {
    let (folder, pretrained) = without_template("electra", "[CLS]", "[SEP]");
    let single = [Example { first: "a b c d e f".into(), second: None }];
    let ids = || Tokenizer::load(&pretrained, 4).unwrap().encode(&single).unwrap().remove(0).input_ids;
    assert_eq!(ids(), [0, 4, 5, 2]);
    write(&folder.path().join("tokenizer_config.json"), &json!({ "truncation_side": "left" }));
    assert_eq!(ids(), [0, 8, 9, 2]);
    write(&folder.path().join("tokenizer_config.json"), &json!({ "truncation_side": "middle" }));
    let error = Tokenizer::load(&pretrained, 4).err().unwrap().to_string();
    assert!(error.contains("truncation_side") && error.contains("\"left\" or \"right\""), "{error}");
}

#[test]
fn casing_is_that_of_tokenizer_config_where_it_says_one_as_in_transformers() {
    let (folder, pretrained) = without_template("electra", "[CLS]", "[SEP]");
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["normalizer"] = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true,
    });
    write(&path, &tokenizer);
    let ids = || Tokenizer::load(&pretrained, 40).unwrap().encode(&[pair("A", "b")]).unwrap().remove(0).input_ids;
    assert_eq!(ids(), [0, 4, 2, 5, 2]);
    write(&folder.path().join("tokenizer_config.json"), &json!({ "do_lower_case": false }));
    assert_eq!(ids(), [0, 3, 2, 5, 2], "a capital letter is none of the vocabulary's");
}

#[test]
fn a_token_that_the_table_of_words_has_no_row_for_is_named_before_anything_is_trained() {
    let (folder, pretrained) = without_template("electra", "[CLS]", "[SEP]");
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["<num>"] = json!(50);
    tokenizer["pre_tokenizer"] = json!({ "type": "WhitespaceSplit" });
    write(&path, &tokenizer);
    let tokenizer = Tokenizer::load(&pretrained, 40).unwrap();
    assert!(tokenizer.encode(&[pair("a", "b")]).is_ok());
    let error = tokenizer.encode(&[pair("a", "<num> b")]).unwrap_err().to_string();
    assert!(
        error.contains("\"<num>\" has the id 50") && error.contains("50 rows") && error.contains("tokenizer.json"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_that_is_not_there_or_something_else_is_an_error_that_says_what_to_do() {
    let (folder, pretrained) = model("electra", Value::Null);
    let error = |pretrained: &Pretrained| Tokenizer::load(pretrained, 40).err().unwrap().to_string();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:1\n").unwrap();
    assert!(error(&pretrained).contains("git lfs pull"));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("vocab.txt"), "[PAD]\n").unwrap();
    let message = error(&pretrained);
    assert!(message.contains("vocab.txt: no line \"[UNK]\""), "{message}");
    std::fs::rename(folder.path().join("vocab.txt"), folder.path().join("spm.model")).unwrap();
    let message = error(&pretrained);
    assert!(message.contains("spm.model") && message.contains("AutoTokenizer"), "{message}");
}

#[test]
fn the_default_length_adapts_to_a_model_of_fewer_positions_and_another_is_refused() {
    let (folder, _) = without_template("electra", "[CLS]", "[SEP]");
    let run = Run::new(Task::Synthetic, folder.path().to_str().unwrap(), Method::Head);
    let mut trainer = Trainer::new(Glue::synthetic("test"), folder.path().join("runs"));
    let long = [Example { first: "a ".repeat(60), second: None }];
    let sequences = trainer.tokenizer(&run).unwrap().encode(&long).unwrap();
    assert_eq!(sequences[0].len(), 40);
    let error = trainer.tokenizer(&run.with(|settings| settings.max_length = 64)).err().unwrap().to_string();
    assert!(error.contains("max_length is 64") && error.contains("at most 40, the positions of the model"), "{error}");
}

/// The file was made from the vocabulary by transformers (`convert_slow_tokenizer.py`).
#[test]
#[ignore = "needs models/: make test"]
fn a_vocabulary_alone_gives_the_tokens_that_transformers_file_gives() {
    let original = Pretrained::load(trainer::DEFAULT_MODEL).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::os::unix::fs::symlink(original.folder().join(file).canonicalize().unwrap(), folder.path().join(file))
            .unwrap();
    }
    let file: Value = serde_json::from_slice(&std::fs::read(original.tokenizer_path()).unwrap()).unwrap();
    let mut words: Vec<(u64, &String)> =
        file["model"]["vocab"].as_object().unwrap().iter().map(|(word, id)| (id.as_u64().unwrap(), word)).collect();
    words.sort();
    let text: String = words.iter().map(|(_, word)| format!("{word}\n")).collect();
    std::fs::write(folder.path().join("vocab.txt"), text).unwrap();

    let synthetic = Glue::synthetic("a test").load(Task::Synthetic, Split::Train).unwrap().examples().unwrap();
    let strange = [
        "Crème brûlée, naïvement!",
        "\u{4f60}\u{597d} in Chinese",
        "a\tb\u{a0}c\u{200b}d",
        "[MASK] [SEP] [CLS]",
        "",
        "x".repeat(120).as_str(),
    ]
    .map(|text| pair(text, "And the other.\u{fffd}"));
    let alone = Tokenizer::load(&Pretrained::from_folder(folder.path()).unwrap(), 64).unwrap();
    let expected = Tokenizer::load(&original, 64).unwrap();
    assert_eq!(alone.remarks().len(), 0);
    for examples in [&synthetic[..], &strange[..]] {
        assert_eq!(alone.encode(examples).unwrap(), expected.encode(examples).unwrap());
    }
    // In small letters, where no file says otherwise.
    let ids = |text| {
        Tokenizer::load(&Pretrained::from_folder(folder.path()).unwrap(), 64)
            .unwrap()
            .encode(&[pair(text, "b")])
            .unwrap()
    };
    assert_eq!(ids("Paris"), ids("paris"));
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
    assert_ne!(ids("Paris"), ids("paris"));
}

#[test]
fn tokens_that_tokenizer_config_alone_has_are_added_behind_the_others() {
    let (folder, pretrained) = model("roberta", Value::Null);
    let decoder = |number: &str, content: &str| json!({ "added_tokens_decoder": { number: { "content": content } } });
    let write =
        |fields: Value| std::fs::write(folder.path().join("tokenizer_config.json"), fields.to_string()).unwrap();
    let single = |text: &str| [pair(text, "b")];
    let before = Tokenizer::load(&pretrained, 40).unwrap().encode(&single("a")).unwrap();
    write(decoder("0", "<s>"));
    assert_eq!(Tokenizer::load(&pretrained, 40).unwrap().encode(&single("a")).unwrap(), before);
    write(decoder("500", "<new>"));
    // Its number is the next one, which may be one that the model has a vector for or none.
    let tokenizer = Tokenizer::load(&pretrained, 40).unwrap();
    assert_eq!(tokenizer.encode(&single("a")).unwrap(), before);
    match tokenizer.pieces(&pair("a <new>", "b")) {
        Ok(pieces) => assert!(pieces.contains(&"<new>".to_string()), "{pieces:?}"),
        Err(error) => {
            assert!(error.to_string().contains("<new>") && error.to_string().contains("vocab_size"), "{error}")
        }
    }
    write(json!({ "added_tokens_decoder": { "x": {} } }));
    let error = Tokenizer::load(&pretrained, 40).err().unwrap().to_string();
    assert!(error.contains("added_tokens_decoder"), "{error}");
}

/// The error of a model's folder whose `tokenizer.json` is changed.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let (folder, pretrained) = model("roberta", Value::Null);
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut tokenizer);
    write(&path, &tokenizer);
    let encoded =
        Tokenizer::load(&pretrained, 40).and_then(|tokenizer| tokenizer.encode(&[pair("a_b c", &"_".repeat(2000))]));
    let error = encoded.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("tokenizer.json"), "{error}");
    error
}

#[test]
fn a_file_at_which_the_crate_tokenizers_panics_is_an_error_that_names_it() {
    // A special token that is not defined.
    let template = json!({
        "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }], "special_tokens": {},
    });
    assert!(refused(|tokenizer| tokenizer["post_processor"] = template).contains("special token \"<s>\""));
    // A piece of a word that is shorter than the mark before it.
    let bpe = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "####", "end_of_word_suffix": null,
        "fuse_unk": false, "vocab": { "<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5 }, "merges": [["a", "b"]],
    });
    assert!(refused(|tokenizer| tokenizer["model"] = bpe).contains("range"));
    let (folder, pretrained) = model("roberta", Value::Null);
    for text in ["not JSON", "{\"version\": \"1.0\", \"decoder\": {\"type\": \"ByteLevel\" nonsense", "\"\""] {
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::load(&pretrained, 40).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn a_normalizer_that_blows_texts_up_is_an_error_that_says_how_long_they_may_become() {
    let replace = |content: String| json!({ "type": "Replace", "pattern": { "String": "_" }, "content": content });
    let error = refused(|tokenizer| tokenizer["normalizer"] = replace("x".repeat(5000)));
    assert!(error.contains("10000000 bytes of a text of 2000"), "{error}");
}

#[test]
fn sentences_of_any_lengths_are_cut_as_the_crate_tokenizers_cuts_a_pair() {
    let roberta = json!({
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": false,
    });
    let piece = |id: &str, kind: usize| json!({ "Sequence": { "id": id, "type_id": kind } });
    let end = json!({ "SpecialToken": { "id": "</s>", "type_id": 1 } });
    let template = json!({
        "type": "TemplateProcessing", "single": [piece("A", 0), end], "pair": [piece("A", 0), end, piece("B", 1), end],
        "special_tokens": { "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] } },
    });
    let bert = json!({ "type": "BertProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2] });
    for (processor, side) in
        [(&roberta, "right"), (&bert, "right"), (&bert, "left"), (&template, "left"), (&template, "right")]
    {
        let (folder, pretrained) = model("roberta", processor.clone());
        write(&folder.path().join("tokenizer_config.json"), &json!({ "truncation_side": side }));
        let ours = Tokenizer::load(&pretrained, 11).unwrap();
        let mut theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let direction =
            if side == "left" { tokenizers::TruncationDirection::Left } else { tokenizers::TruncationDirection::Right };
        let truncation = tokenizers::TruncationParams { max_length: 11, direction, ..Default::default() };
        theirs.with_padding(None).with_truncation(Some(truncation)).unwrap();
        let text = |words: usize, from: u8| {
            (0..words).map(|i| char::from(b'a' + (from + i as u8) % 26).to_string()).collect::<Vec<_>>().join(" ")
        };
        for (first, second) in
            (0..16).flat_map(|first| (0..16).map(move |second| (first, second))).chain([(200, 3), (4, 300), (90, 90)])
        {
            let (first, second) = (text(first, 0), text(second, 7));
            let expected = theirs.encode((first.as_str(), second.as_str()), true).unwrap();
            let found = ours.encode(&[pair(&first, &second), Example { first: second.clone(), second: None }]).unwrap();
            assert_eq!(found[0].input_ids, expected.get_ids(), "{first:?}, {second:?}, {side}");
            assert_eq!(found[0].token_type_ids, expected.get_type_ids());
            assert_eq!(found[1].input_ids, theirs.encode(second.as_str(), true).unwrap().get_ids());
        }
    }
}
