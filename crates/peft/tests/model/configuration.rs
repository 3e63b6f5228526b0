//! `config.json` against transformers' configuration classes of several releases, as `oracle/encoders/make_config_fields.py` stored them.

use std::collections::BTreeMap;
use std::path::Path;

use peft::{Activation, Architecture, Configuration, FieldRole, Pooling, Pretrained, Remark};
use serde_json::{Map, Value, json};

use crate::encoders::folder;
use crate::support::oracle_folder;

/// Version, `model_type`, field, default.
type Releases = BTreeMap<String, BTreeMap<String, Map<String, Value>>>;

fn releases() -> Releases {
    serde_json::from_slice(&std::fs::read(oracle_folder().join("encoders/config_fields.json")).unwrap()).unwrap()
}

fn classes() -> Vec<(Architecture, String, Map<String, Value>)> {
    let of_type = |(version, classes): (String, BTreeMap<String, Map<String, Value>>)| {
        let named = move |(kind, fields): (String, Map<String, Value>)| {
            let architecture = Architecture::ALL.into_iter().find(|a| a.model_type() == kind).unwrap();
            (architecture, version.clone(), fields)
        };
        classes.into_iter().map(named)
    };
    releases().into_iter().flat_map(of_type).collect()
}

fn read(fields: Value) -> peft::Result<Configuration> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), fields.to_string()).unwrap();
    Configuration::read(folder.path())
}

fn error(fields: Value) -> String {
    read(fields).unwrap_err().to_string()
}

/// A folder with the tensors of a tiny checkpoint and a configuration that was changed.
fn changed(case: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let mut fields = serde_json::from_slice(&std::fs::read(case.join("config.json")).unwrap()).unwrap();
    change(&mut fields);
    std::fs::write(copy.path().join("config.json"), Value::Object(fields).to_string()).unwrap();
    copy
}

#[test]
fn no_field_of_transformers_classes_is_unlisted() {
    assert!(releases().len() >= 5 && releases()["5.23.0"].len() == Architecture::ALL.len());
    for (architecture, version, fields) in classes() {
        let roles = architecture.config_fields();
        let unlisted: Vec<&String> =
            fields.keys().filter(|field| !roles.iter().any(|(name, _)| name == *field)).collect();
        assert!(unlisted.is_empty(), "{architecture}, transformers {version}: {unlisted:?}");
    }
}

#[test]
fn the_page_of_the_fields_says_what_the_code_does() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config-json.md");
    let page = std::fs::read_to_string(page).unwrap();
    let row = |architecture: Architecture| {
        let (mut used, mut without, mut only) = (Vec::new(), Vec::new(), Vec::new());
        let common = Architecture::Bert.config_fields();
        for (name, role) in architecture.config_fields() {
            // The page says once what holds for every configuration.
            let is_common =
                Architecture::ALL.iter().all(|other| other.config_fields().contains(&(name.clone(), role.clone())));
            match role {
                _ if is_common && common.iter().any(|(other, _)| *other == name) => {}
                FieldRole::Used(default) => used.push(format!("`{name}` {default}")),
                FieldRole::WithoutEffect => without.push(format!("`{name}`")),
                FieldRole::Only(value) => only.push(format!("`{name}` {value}")),
            }
        }
        let cell = |names: &[String]| if names.is_empty() { "–".to_string() } else { names.join(", ") };
        format!("| `{architecture}` | {} | {} | {} |", cell(&used), cell(&without), cell(&only))
    };
    let lacking: Vec<String> = Architecture::ALL.into_iter().map(row).filter(|row| !page.contains(row)).collect();
    assert!(lacking.is_empty(), "docs/config-json.md lacks these rows:\n{}", lacking.join("\n"));
    for (name, _) in Architecture::Bert.config_fields() {
        assert!(page.contains(&format!("`{name}`")), "docs/config-json.md does not name {name}");
    }
}

#[test]
fn fields_that_a_file_lacks_have_the_defaults_of_transformers_class() {
    // What a class works out from other fields.
    let worked_out = [
        "classifier_pooling",
        "layer_types",
        "rope_parameters",
        "pooler_hidden_size",
        "architectures",
        "id2label",
        "label2id",
        "model_type",
    ];
    let mut compared = 0;
    for (architecture, version, fields) in classes() {
        for (name, role) in architecture.config_fields() {
            if name == "vocab_size" && !version.starts_with("5.") {
                continue; // RoBERTa's and XLM-R's was BERT's before; the table's shape is checked at any rate.
            }
            let (FieldRole::Used(ours), Some(theirs)) = (role, fields.get(&name)) else { continue };
            if worked_out.contains(&name.as_str()) {
                continue;
            }
            let is_equal = ours == *theirs || ours.as_f64().is_some_and(|ours| theirs.as_f64() == Some(ours));
            assert!(is_equal, "{architecture}, transformers {version}: {name} is {ours}, not {theirs}");
            compared += 1;
        }
    }
    assert!(compared > 400, "{compared}");
}

#[test]
fn a_file_of_the_type_alone_means_what_one_with_every_default_written_out_means() {
    for (architecture, version, fields) in classes() {
        let short = read(json!({ "model_type": architecture.model_type() })).unwrap();
        let mut long = read(Value::Object(fields)).unwrap();
        if !version.starts_with("5.") {
            long.config.vocab_size = short.config.vocab_size;
        }
        assert_eq!(format!("{:?}", short.config), format!("{:?}", long.config), "{architecture} {version}");
        assert_eq!((short.pooling(), short.max_length()), (long.pooling(), long.max_length()), "{architecture}");
        assert!(long.remarks().is_empty(), "{architecture} {version}: {:?}", long.remarks());
    }
}

#[test]
fn a_field_that_may_say_one_thing_alone_is_refused_by_name_where_it_says_another() {
    let other = |supported: &Value| match supported {
        Value::Bool(value) => json!(!value),
        Value::String(_) => json!("relative_key_query"),
        Value::Object(_) => json!({ "0": [1] }),
        _ => json!({ "AutoModel": "modeling.Model", "quant_method": "gptq" }),
    };
    for architecture in Architecture::ALL {
        let mut refused = 0;
        for (name, role) in architecture.config_fields() {
            let FieldRole::Only(supported) = role else { continue };
            let with = |value: Value| json!({ "model_type": architecture.model_type(), name.clone(): value });
            let message = error(with(other(&supported)));
            assert!(message.contains(&name) && message.contains("not supported"), "{architecture}: {message}");
            read(with(supported)).unwrap();
            read(with(Value::Null)).unwrap();
            refused += 1;
        }
        assert!(refused >= 6, "{architecture}: {refused}");
    }
    read(json!({ "model_type": "bert", "auto_map": { "AutoTokenizer": ["tokenizer.Own", null] } })).unwrap();
}

#[test]
fn a_value_that_does_not_fit_is_refused_by_the_name_of_its_field() {
    for (kind, field, value) in [
        ("bert", "hidden_act", json!("mish")),
        ("bert", "layer_norm_eps", Value::Null),
        ("bert", "hidden_size", json!("768")),
        ("distilbert", "activation", json!("quick_gelu")),
        ("modernbert", "classifier_pooling", json!("max")),
        ("modernbert", "rope_parameters", json!({ "rope_theta": 1e6, "rope_type": "yarn" })),
        ("modernbert", "rope_parameters", json!({ "full_attention": { "rope_type": "linear", "factor": 2.0 } })),
        ("deberta-v2", "pooler_hidden_act", json!("sigmoid")),
        ("deberta-v2", "attention_head_size", json!(32)),
        ("roberta", "pad_token_id", Value::Null),
    ] {
        let message = error(json!({ "model_type": kind, field: value }));
        assert!(message.contains(field), "{kind}: {message}");
    }
    let twice = error(json!({ "model_type": "distilbert", "dim": 32, "hidden_size": 64 }));
    assert!(twice.contains("hidden_size 64 beside dim 32"), "{twice}");
}

#[test]
fn an_activation_has_each_of_transformers_names_for_it() {
    for (name, activation) in [
        ("gelu", Activation::Gelu),
        ("gelu_python", Activation::Gelu),
        ("gelu_new", Activation::GeluApproximate),
        ("gelu_fast", Activation::GeluApproximate),
        ("gelu_accurate", Activation::GeluApproximate),
        ("gelu_pytorch_tanh", Activation::GeluApproximate),
        ("silu", Activation::Swish),
        ("swish", Activation::Swish),
        ("relu", Activation::Relu),
        ("tanh", Activation::Tanh),
    ] {
        let read = read(json!({ "model_type": "bert", "hidden_act": name })).unwrap();
        assert_eq!(read.config.hidden_act, activation, "{name}");
    }
}

#[test]
fn fields_that_no_class_has_are_named_and_a_misspelt_one_beside_the_one_that_was_meant() {
    let read = read(json!({ "model_type": "bert", "cell": {}, "hiden_act": "relu" })).unwrap();
    let [remark @ Remark::UnknownFields { .. }] = read.remarks() else { panic!("{:?}", read.remarks()) };
    let said = remark.to_string();
    assert!(said.contains("cell") && said.contains("hiden_act (nearest: hidden_act)"), "{said}");
    // DistilBERT's class takes three fields under BERT's names.
    let distilbert =
        json!({ "model_type": "distilbert", "hidden_size": 60, "num_attention_heads": 6, "num_hidden_layers": 2 });
    let read = self::read(distilbert).unwrap();
    assert!(read.remarks().is_empty());
    assert_eq!((read.config.hidden_size, read.config.num_attention_heads, read.config.num_hidden_layers), (60, 6, 2));
}

#[test]
fn modernbert_pools_as_its_configuration_says_and_by_the_first_token_where_it_says_nothing() {
    let pooling = |fields: Value| read(fields).unwrap().pooling();
    assert_eq!(pooling(json!({ "model_type": "modernbert", "classifier_pooling": "mean" })), Pooling::Mean);
    assert_eq!(pooling(json!({ "model_type": "modernbert", "classifier_pooling": "cls" })), Pooling::Cls);
    assert_eq!(pooling(json!({ "model_type": "modernbert" })), Pooling::Cls);
}

#[test]
fn without_model_type_the_class_of_the_checkpoint_says_the_architecture() {
    for (class, expected) in [
        ("BertForMaskedLM", "bert"),
        ("BertModel", "bert"),
        ("RobertaForSequenceClassification", "roberta"),
        ("XLMRobertaModel", "xlm-roberta"),
        ("DistilBertForMaskedLM", "distilbert"),
        ("ElectraForPreTraining", "electra"),
        ("MPNetForMaskedLM", "mpnet"),
        ("DebertaV2ForSequenceClassification", "deberta-v2"),
        ("ModernBertForMaskedLM", "modernbert"),
    ] {
        let read = read(json!({ "architectures": [class] })).unwrap();
        assert_eq!(read.config.architecture.model_type(), expected, "{class}");
        let [remark] = read.remarks() else { panic!("{:?}", read.remarks()) };
        assert!(remark.to_string().contains(class) && remark.to_string().contains(expected), "{remark}");
    }
    let message = error(json!({ "architectures": ["DebertaForMaskedLM"] }));
    assert!(message.contains("DebertaForMaskedLM") && message.contains("\"model_type\""), "{message}");
    assert!(error(json!({ "model_type": "deberta" })).contains("\"deberta\" is not known"));
}

#[test]
fn without_model_type_and_class_the_names_of_the_tensors_say_the_architecture_or_it_is_asked_for() {
    let forget = |fields: &mut Map<String, Value>| ["model_type", "architectures"].map(|field| fields.remove(field));
    for case in ["distilbert", "electra", "mpnet", "deberta-v3", "deberta-v2", "modernbert", "roberta"] {
        let copy = changed(&folder(case), |fields| _ = forget(fields));
        let read = Pretrained::from_folder(copy.path()).unwrap();
        let expected = Pretrained::from_folder(&folder(case)).unwrap().config.architecture;
        assert_eq!(read.config.architecture, expected, "{case}");
        assert!(read.remarks()[0].to_string().contains("embeddings"), "{}", read.remarks()[0]);
    }
    let tiny = changed(&oracle_folder().join("tiny-bert"), |fields| _ = forget(fields));
    assert_eq!(Pretrained::from_folder(tiny.path()).unwrap().config.architecture, Architecture::Bert);

    // Nothing of an encoder's: which it is has to be said.
    let nothing = changed(&oracle_folder().join("tiny-bert"), |fields| _ = forget(fields));
    let tensor = candle_core::Tensor::zeros(3, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("something", tensor)].into(), nothing.path().join("model.safetensors")).unwrap();
    let message = Configuration::read(nothing.path()).unwrap_err().to_string();
    assert!(message.contains("\"model_type\": one of bert, roberta"), "{message}");
}
