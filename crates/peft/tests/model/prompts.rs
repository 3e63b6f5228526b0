//! Prompt learning: on every architecture, by the values that `oracle/encoders/make_prompts.py` stored, against the encoder on words in
//! the place of virtual tokens, in files, and where it cannot be.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use peft::{
    AdapterConfig, Adapters, Lora, Method, Model, ModelOptions, PTuning, Pooling, PrefixInitWeights, PrefixTuning,
    Pretrained, PromptTuning, PromptTuningInit, Reparameterization, Sequence,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::encoders::{self, CASES};
use crate::support::*;

#[derive(Deserialize)]
struct Oracle {
    num_virtual_tokens: usize,
    logits: BTreeMap<String, BTreeMap<String, Vec<Vec<f64>>>>,
}

fn prefix(num_virtual_tokens: usize) -> PrefixTuning {
    PrefixTuning { num_virtual_tokens, ..PrefixTuning::default() }
}

fn prompt(num_virtual_tokens: usize) -> PromptTuning {
    PromptTuning { num_virtual_tokens, ..PromptTuning::default() }
}

fn made(num_virtual_tokens: usize) -> PTuning {
    PTuning { num_virtual_tokens, encoder_hidden_size: Some(7), ..PTuning::default() }
}

/// The start of a prompt as words of these ids.
fn words(ids: &[u32]) -> PromptTuningInit {
    PromptTuningInit::Text {
        prompt_tuning_init_text: "a text".into(),
        tokenizer_name_or_path: "a tokenizer".into(),
        token_ids: ids.to_vec(),
    }
}

/// Each sequence's first tokens.
fn cut(sequences: &[Sequence], length: usize) -> Vec<Sequence> {
    let part = |ids: &[u32]| ids.iter().copied().take(length).collect();
    let cut = |s: &Sequence| Sequence { input_ids: part(&s.input_ids), token_type_ids: part(&s.token_type_ids) };
    sequences.iter().map(cut).collect()
}

/// The oracle's model of an architecture and a method, with the values that were set.
fn stored(case: &str, name: &str, count: usize, dtype: DType, tensors: &HashMap<String, Tensor>) -> Model {
    let method = match name {
        "prefix_tuning" => Method::PrefixTuning(prefix(count)),
        "prompt_tuning" => Method::PromptTuning(prompt(count)),
        _ => Method::PTuning(made(count)),
    };
    let pretrained = Pretrained::from_folder(&encoders::folder(case)).unwrap();
    let options = ModelOptions { dtype, dropout: Some(0.0), ..options(method, 3) };
    let model = Model::new(&pretrained, &options).unwrap();
    let prompt_parameters = model.parameters().trainable().filter(|(name, _)| name.starts_with("prompt_encoder."));
    for (parameter, _) in prompt_parameters {
        set(&model, parameter, flat(&tensors[&format!("{case}.{name}.value.{parameter}")]));
    }
    model
}

/// PEFT's own where it can; tolerances as in `encoders.rs`.
#[test]
fn logits_and_gradients_of_prompt_learning_on_every_architecture_equal_those_of_peft_or_of_the_formula() {
    let folder = oracle_folder().join("encoders");
    let oracle: Oracle = serde_json::from_slice(&std::fs::read(folder.join("prompts.json")).unwrap()).unwrap();
    let tensors = candle_core::safetensors::load(folder.join("prompts.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(oracle.logits.len(), CASES.len());
    for case in CASES {
        let examples = encoders::Oracle::read(case);
        let longest = examples.sequences().iter().map(Sequence::len).max().unwrap() - oracle.num_virtual_tokens;
        let batch = batch(&cut(&examples.sequences(), longest));
        for (name, logits) in &oracle.logits[case] {
            let expected = logits.concat();
            for (dtype, tolerance) in of_device([(DType::F32, 1e-5), (DType::F64, 1e-11)]) {
                let model = stored(case, name, oracle.num_virtual_tokens, dtype, &tensors);
                let found = flat(&model.predict(&batch).unwrap());
                close(&format!("{case} {name}"), &found, &expected, tolerance * largest(&expected).max(1.0));
            }
            let (dtype, tolerance) = of_device([(DType::F64, 1e-7), (DType::F32, 1e-5)]).next().unwrap();
            let model = stored(case, name, oracle.num_virtual_tokens, dtype, &tensors);
            let store = loss(&model, &batch, &examples.labels, None).backward().unwrap();
            let found = gradients(&model, &store);
            let of_prompt = found.iter().filter(|(parameter, _)| parameter.starts_with("prompt_encoder."));
            for (parameter, found) in of_prompt {
                let expected = flat(&tensors[&format!("{case}.{name}.gradient.{parameter}")]);
                close(&format!("{case} {name} {parameter}"), found, &expected, tolerance * largest(&expected));
            }
        }
    }
}

/// A prompt that starts as a text is that text before each sequence, of type 0.
#[test]
fn a_prompt_of_words_gives_the_logits_of_the_model_on_those_words_and_the_sequence() {
    let ids = [7, 23, 9];
    for case in CASES.into_iter().chain(["tiny-bert"]) {
        let checkpoint =
            if case == "tiny-bert" { tiny() } else { Pretrained::from_folder(&encoders::folder(case)).unwrap() };
        // Behind vectors, transformers and so PEFT take a padding token for any other: here there is none.
        let shift = |s: &Sequence| Sequence {
            input_ids: s.input_ids.iter().map(|id| 4 + id % 40).collect(),
            token_type_ids: s.token_type_ids.clone(),
        };
        let sequences: Vec<Sequence> = sequences(&[7, 1, 30, 12], 40).iter().map(shift).collect();
        let behind_words = |s: &Sequence| Sequence {
            input_ids: [&ids, &s.input_ids[..]].concat(),
            token_type_ids: [&[0; 3], &s.token_type_ids[..]].concat(),
        };
        let longer: Vec<Sequence> = sequences.iter().map(behind_words).collect();
        for pooling in [Pooling::Cls, Pooling::Mean] {
            let logits = |method, sequences: &[Sequence]| {
                let options = ModelOptions { pooling, ..exact(method) };
                flat(&Model::new(&checkpoint, &options).unwrap().predict(&batch(sequences)).unwrap())
            };
            let method = Method::PromptTuning(PromptTuning { prompt_tuning_init: words(&ids), ..prompt(3) });
            let expected = logits(Method::Head, &longer);
            close(case, &logits(method, &sequences), &expected, 1e-12 * largest(&expected).max(1.0));
        }
    }
}

#[test]
fn prompts_start_as_they_are_told() {
    let table = |method: Method, seed: u64| {
        let model = Model::new(&tiny(), &ModelOptions { seed, ..ModelOptions::new(method, 2) }).unwrap();
        flat(model.parameters().get("prompt_encoder.embedding.weight").unwrap())
    };
    let vocabulary = candle_core::safetensors::load(oracle_folder().join("tiny-bert/model.safetensors"), &Device::Cpu);
    let vocabulary = flat(&vocabulary.unwrap()["bert.embeddings.word_embeddings.weight"]);
    let row = |id: usize| &vocabulary[id * 32..(id + 1) * 32];

    let start = |prompt_tuning_init, count| Method::PromptTuning(PromptTuning { prompt_tuning_init, ..prompt(count) });
    // From the first token again where they are fewer.
    let text = table(start(words(&[5, 90]), 3), 1);
    assert_eq!(text, [row(5), row(90), row(5)].concat());
    let sampled = table(start(PromptTuningInit::SampleVocab, 8), 1);
    assert!(sampled.chunks(32).all(|vector| vocabulary.chunks(32).any(|row| row == vector)));
    assert_ne!(sampled, table(start(PromptTuningInit::SampleVocab, 8), 2));
    assert_eq!(sampled, table(start(PromptTuningInit::SampleVocab, 8), 1));
    // 39 * 32 numbers of variance 1: their mean square is within five standard errors, sqrt(2 / 1248) = 0.04 each, of 1.
    let random = table(start(PromptTuningInit::Random, 39), 1);
    let mean_square = random.iter().map(|x| x * x).sum::<f64>() / random.len() as f64;
    assert!((mean_square - 1.0).abs() < 0.2, "{mean_square}");

    let zero = PrefixTuning { init_weights: Some(PrefixInitWeights::Zero), ..prefix(4) };
    assert!(table(Method::PrefixTuning(zero.clone()), 1).iter().all(|value| *value == 0.0));
    let projected = Method::PrefixTuning(PrefixTuning { prefix_projection: true, ..zero });
    let model = Model::new(&tiny(), &ModelOptions::new(projected, 2)).unwrap();
    let value = |name: &str| flat(model.parameters().get(&format!("prompt_encoder.transform.{name}")).unwrap());
    assert!([value("2.weight"), value("2.bias")].concat().iter().all(|value| *value == 0.0));
    // Uniform within 1 / sqrt(32).
    assert!(largest(&value("0.weight")) <= 1.0 / 32f64.sqrt() && largest(&value("0.bias")) > 0.0);
}

#[test]
fn virtual_tokens_take_positions_from_a_sequences_own() {
    for method in [Method::PrefixTuning(prefix(5)), Method::PromptTuning(prompt(5)), Method::PTuning(made(5))] {
        let model = Model::new(&tiny(), &ModelOptions::new(method, 2)).unwrap();
        assert!(model.predict(&batch(&sequences(&[35, 2], 100))).is_ok());
        let error = model.predict(&batch(&sequences(&[36], 100))).unwrap_err().to_string();
        assert_eq!(
            error,
            "a sequence of 36 tokens: the model has 35 positions besides those of 5 virtual tokens; truncate to at most that"
        );
    }
    let error = Model::new(&tiny(), &ModelOptions::new(Method::PrefixTuning(prefix(40)), 2)).err().unwrap();
    assert!(error.to_string().contains("num_virtual_tokens is 40: the model has 40 positions"), "{error}");
    assert!(Model::new(&tiny(), &ModelOptions::new(Method::PrefixTuning(prefix(39)), 2)).is_ok());
}

#[test]
fn options_that_make_no_prompt_are_refused_by_name() {
    let error = |method| Model::new(&tiny(), &ModelOptions::new(method, 2)).err().unwrap().to_string();
    assert!(error(Method::PrefixTuning(prefix(0))).contains("num_virtual_tokens is 0"));
    assert!(error(Method::PromptTuning(prompt(0))).contains("num_virtual_tokens is 0"));
    assert!(error(Method::PTuning(made(0))).contains("num_virtual_tokens is 0"));
    let narrow = PrefixTuning { prefix_projection: true, encoder_hidden_size: Some(0), ..prefix(2) };
    assert!(error(Method::PrefixTuning(narrow)).contains("encoder_hidden_size is 0"));
    let lstm = PTuning { encoder_reparameterization_type: Reparameterization::Lstm, ..made(2) };
    assert!(error(Method::PTuning(lstm)).contains("encoder_reparameterization_type is LSTM"));
    let text = |ids: &[u32]| Method::PromptTuning(PromptTuning { prompt_tuning_init: words(ids), ..prompt(2) });
    assert!(error(text(&[])).contains("token_ids is empty"));
    assert!(error(text(&[100])).contains("token_ids is 100, expected ids of the model's own tokenizer"));
    let saved = PromptTuning { modules_to_save: vec!["nowhere".into()], ..prompt(2) };
    assert!(error(Method::PromptTuning(saved)).contains("nowhere"));
}

/// Every kind, with what files hold and what they do not.
fn methods() -> Vec<Method> {
    vec![
        Method::PrefixTuning(prefix(3)),
        Method::PrefixTuning(PrefixTuning { prefix_projection: true, ..prefix(3) }),
        Method::PromptTuning(PromptTuning { modules_to_save: vec!["token_type_embeddings".into()], ..prompt(4) }),
        Method::PromptTuning(PromptTuning { prompt_tuning_init: words(&[3]), ..prompt(4) }),
        Method::PTuning(made(2)),
    ]
}

#[test]
fn virtual_tokens_come_back_from_files_with_the_same_logits_whatever_made_them() {
    let batch = batch(&sequences(&[7, 1, 30, 12], 100));
    for method in methods() {
        for pooling in [Pooling::Cls, Pooling::Mean] {
            let options = ModelOptions { pooling, ..ModelOptions::new(method.clone(), 2) };
            let model = Model::new(&tiny(), &options).unwrap();
            let there = tempfile::tempdir().unwrap();
            model.save_adapter(there.path()).unwrap();
            let (again, warnings) = Model::from_adapter(&tiny(), there.path()).unwrap();
            assert_eq!(warnings, []);
            let logits = |model: &Model| flat(&model.predict(&batch).unwrap());
            assert_eq!(logits(&again), logits(&model), "{method}");
            // And once more, from what was read.
            let second = tempfile::tempdir().unwrap();
            again.save_adapter(second.path()).unwrap();
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                let [first, second] = [&there, &second].map(|folder| std::fs::read(folder.path().join(file)).unwrap());
                assert_eq!(first, second, "{method} {file}");
            }
        }
    }
}

#[test]
fn an_adapter_in_memory_holds_virtual_tokens_as_a_file_does_and_cannot_be_merged() {
    let batch = batch(&sequences(&[7, 1, 30, 12], 100));
    let logits = |model: &Model| flat(&model.predict(&batch).unwrap());
    for method in methods() {
        let mut model = Model::new(&tiny(), &ModelOptions::new(method.clone(), 2)).unwrap();
        let adapter = model.adapter().unwrap();
        let again = Model::new(&tiny(), &adapter.options(&tiny()).unwrap()).unwrap();
        assert_eq!(again.load(&adapter).unwrap(), []);
        let expected = logits(&model);
        assert_eq!(logits(&again), expected, "{method}");
        let error = model.merge_adapter().unwrap_err().to_string();
        assert!(error.contains("cannot be merged") && error.contains("prompt_encoder."), "{error}");
        assert_eq!(logits(&model), expected, "{method}: not as it was");
    }
}

#[test]
fn sequences_with_virtual_tokens_stand_in_one_batch_with_others() {
    let whole = batch(&sequences(&[7, 1, 30, 12], 100));
    let mut adapters = Adapters::new(&tiny());
    let names = ["network", "lora", "prefix", "network"];
    let mut expected = Vec::new();
    for (name, method) in
        [("network", Method::PTuning(made(3))), ("lora", Method::lora(2)), ("prefix", Method::PrefixTuning(prefix(2)))]
    {
        let model = Model::new(&tiny(), &ModelOptions::new(method, 2)).unwrap();
        let there = tempfile::tempdir().unwrap();
        model.save_adapter(there.path()).unwrap();
        adapters.load_adapter(name, there.path()).unwrap();
        let logits: Vec<Vec<f64>> = flat(&model.predict(&whole).unwrap()).chunks(2).map(<[f64]>::to_vec).collect();
        expected.push((name, logits));
    }
    let found = adapters.predict_mixed(&whole, &names).unwrap();
    for (place, (name, found)) in names.iter().zip(&found).enumerate() {
        let (_, logits) = expected.iter().find(|(own, _)| own == name).unwrap();
        // The sequences beside it are others, which changes no more than the order of sums.
        close(name, &flat(found), &logits[place], 1e-5);
    }
}

#[test]
fn a_file_does_not_load_into_a_network_that_makes_virtual_tokens_or_into_another_method() {
    let there = tempfile::tempdir().unwrap();
    let build = |method| Model::new(&tiny(), &ModelOptions::new(method, 2)).unwrap();
    let (network, table) = (Method::PTuning(made(3)), PTuning { inference_mode: true, ..made(3) });
    build(network.clone()).save_adapter(there.path()).unwrap();
    assert_eq!(build(Method::PTuning(table)).load_adapter(there.path()).unwrap(), []);
    let model = build(network);
    let before = flat(model.parameters().get("prompt_encoder.embedding.weight").unwrap());
    let error = model.load_adapter(there.path()).unwrap_err().to_string();
    assert!(error.contains("inference_mode true, the model false") && error.contains("from_adapter"), "{error}");
    assert_eq!(flat(model.parameters().get("prompt_encoder.embedding.weight").unwrap()), before);
    let error = build(Method::PromptTuning(prompt(3))).load_adapter(there.path()).unwrap_err().to_string();
    assert!(error.contains("peft_type P_TUNING, the model PROMPT_TUNING"), "{error}");
    let error = build(Method::Lora(Lora::default())).load_adapter(there.path()).unwrap_err().to_string();
    assert!(error.contains("peft_type P_TUNING, the model LORA"), "{error}");
}

#[test]
fn what_a_configuration_of_prompt_learning_lacks_or_has_wrong_is_an_error_that_names_the_field() {
    let there = tempfile::tempdir().unwrap();
    let model = Model::new(&tiny(), &ModelOptions::new(Method::PromptTuning(prompt(3)), 2)).unwrap();
    model.save_adapter(there.path()).unwrap();
    let path = there.path().join("adapter_config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value, expected) in [
        ("num_virtual_tokens", json!(null), "no num_virtual_tokens"),
        ("num_virtual_tokens", json!("three"), "num_virtual_tokens \"three\""),
        ("num_virtual_tokens", json!(0), "num_virtual_tokens is 0"),
        ("num_transformer_submodules", json!(2), "num_transformer_submodules 2, which is not supported here"),
        ("prompt_tuning_init", json!("WORDS"), "prompt_tuning_init \"WORDS\""),
        ("prompt_tuning_init", json!("TEXT"), "no prompt_tuning_init_text"),
        ("token_dim", json!(-1), "token_dim -1"),
    ] {
        let mut config = config.clone();
        config[field] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = AdapterConfig::read(there.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is not in: {error}");
    }
    // Of another number of virtual tokens, the tensor does not fit.
    let mut config = config;
    config["num_virtual_tokens"] = json!(4);
    std::fs::write(&path, config.to_string()).unwrap();
    let error = Model::from_adapter(&tiny(), there.path()).err().unwrap().to_string();
    assert!(error.contains("prompt_embeddings should have shape [4, 32], found [3, 32]"), "{error}");
}
