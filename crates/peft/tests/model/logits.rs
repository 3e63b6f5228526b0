//! Logits against candle-transformers, for each architecture that it has.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;
use candle_transformers::models::{debertav2, distilbert, modernbert, xlm_roberta};
use peft::{Activation, Method, Model, ModelOptions, Pooling, Pretrained, Sequence};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::encoders::{Oracle, folder};
use crate::support::*;

/// Padded and masked, in f32; the pooler and the head are written out, since `BertModel` has neither.
fn peer_logits(folder: &Path, model: &Model, pooling: Pooling, sequences: &[Sequence]) -> Result<Tensor> {
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    let pooler = |name: &str| {
        tensors
            .iter()
            .find(|(path, _)| path.ends_with(&format!("pooler.dense.{name}")))
            .map(|(_, tensor)| tensor.clone())
    };
    let (pooler_weight, pooler_bias) = (pooler("weight").unwrap(), pooler("bias").unwrap());
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let bert = BertModel::load(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), &config)?;

    let longest = sequences.iter().map(Sequence::len).max().unwrap();
    let pad = |ids: &dyn Fn(&Sequence) -> Vec<u32>| {
        let rows: Vec<Vec<u32>> = sequences.iter().map(|s| [ids(s), vec![0; longest - s.len()]].concat()).collect();
        Tensor::new(rows, &Device::Cpu)
    };
    let kept = pad(&|s| vec![1; s.len()])?.to_dtype(DType::F32)?; // (batch, longest)
    let (ids, types) = (pad(&|s| s.input_ids.clone())?, pad(&|s| s.token_type_ids.clone())?);
    let hidden = bert.forward(&ids, &types, Some(&kept))?; // (batch, longest, hidden)

    let pooled = match pooling {
        Pooling::Cls => {
            hidden.narrow(1, 0, 1)?.squeeze(1)?.matmul(&pooler_weight.t()?)?.broadcast_add(&pooler_bias)?.tanh()?
        }
        Pooling::Mean => {
            let kept = kept.unsqueeze(D::Minus1)?;
            hidden.broadcast_mul(&kept)?.sum(1)?.broadcast_div(&kept.sum(1)?)?
        }
    };
    let head = |name: &str| model.parameters().get(&format!("classifier.{name}")).unwrap().as_tensor().clone();
    pooled.matmul(&head("weight").t()?)?.broadcast_add(&head("bias"))
}

fn agree(pretrained: &Pretrained, num_labels: usize, sequences: &[Sequence]) {
    for pooling in [Pooling::Cls, Pooling::Mean] {
        let options = ModelOptions { pooling, ..ModelOptions::new(Method::Head, num_labels) };
        let model = Model::new(pretrained, &options).unwrap();
        // A large head: MiniLM's pooler, which its training left alone, gives small numbers.
        let weights = numbers(num_labels * pretrained.config.hidden_size, 3);
        set(&model, "classifier.weight", weights);
        let expected = peer_logits(pretrained.folder(), &model, pooling, sequences).unwrap();
        let found = model.predict(&batch(sequences)).unwrap();
        assert_eq!(found.dims(), [sequences.len(), num_labels]);
        let scale = largest(&flat(&expected));
        assert!(scale > 0.3, "{pooling:?}: logits of at most {scale} tell little");
        // Relative to the logits, whose size this test's own head decides.
        close(&format!("{pooling:?}"), &flat(&found), &flat(&expected), 1e-5 * scale);
    }
}

#[test]
fn logits_of_the_tiny_model_equal_candle_transformers() {
    agree(&tiny(), 3, &sequences(&[7, 40, 1, 19], 100));
}

#[test]
#[ignore = "needs models/: make test"]
fn logits_of_all_minilm_equal_candle_transformers() {
    let pretrained = Pretrained::load("all-MiniLM-L6-v2").unwrap();
    agree(&pretrained, 2, &sequences(&[5, 128, 30], 30_522));
}

/// The case's checkpoint for candle-transformers: its `config.json` with some fields more, and its tensors.
fn peer<C: DeserializeOwned>(case: &str, more: Value) -> (C, VarBuilder<'static>) {
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder(case).join("config.json")).unwrap()).unwrap();
    for (field, value) in more.as_object().unwrap() {
        config[field] = value.clone();
    }
    let tensors = candle_core::safetensors::load(folder(case).join("model.safetensors"), &Device::Cpu).unwrap();
    (serde_json::from_value(config).unwrap(), VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

fn checkpoint(case: &str) -> Pretrained {
    Pretrained::from_folder(&folder(case)).unwrap()
}

/// Our logits of each of the case's sequences, or what `after` makes of them, against `logits(ids, types)`, `(1, length)` each.
fn agree_one_by_one(
    case: &str,
    pretrained: &Pretrained,
    after: impl Fn(&Tensor) -> Result<Tensor>,
    logits: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) {
    let model = Model::new(pretrained, &ModelOptions::new(Method::Head, 3)).unwrap();
    for sequence in Oracle::read(case).sequences() {
        let row = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let expected = flat(&logits(&row(&sequence.input_ids), &row(&sequence.token_type_ids)).unwrap());
        let found = after(&model.predict(&batch(std::slice::from_ref(&sequence))).unwrap()).unwrap();
        close(case, &flat(&found), &expected, 1e-5 * largest(&expected));
    }
}

#[test]
fn logits_of_roberta_and_xlm_r_equal_candle_transformers() {
    for case in ["roberta", "xlm-roberta"] {
        let (config, weights) = peer(case, json!({ "position_embedding_type": "absolute" }));
        let model = xlm_roberta::XLMRobertaForSequenceClassification::new(3, &config, weights).unwrap();
        agree_one_by_one(
            case,
            &checkpoint(case),
            |t| Ok(t.clone()),
            |ids, types| model.forward(ids, &ids.ones_like()?, types),
        );
    }
}

#[test]
fn logits_of_distilbert_equal_candle_transformers_with_the_head_written_out() {
    let (config, weights) = peer("distilbert", json!({}));
    let model = distilbert::DistilBertModel::load(weights.clone(), &config).unwrap();
    let dense = candle_nn::linear(16, 16, weights.pp("pre_classifier")).unwrap();
    let output = candle_nn::linear(16, 3, weights.pp("classifier")).unwrap();
    // Its "gelu" is the approximation.
    let mut pretrained = checkpoint("distilbert");
    pretrained.config.hidden_act = Activation::GeluApproximate;
    agree_one_by_one(
        "distilbert",
        &pretrained,
        |t| Ok(t.clone()),
        |ids, _| {
            // Its mask says what is left out.
            let first = model.forward(ids, &ids.zeros_like()?.to_dtype(DType::U8)?)?.narrow(1, 0, 1)?.squeeze(1)?;
            first.apply(&dense)?.relu()?.apply(&output)
        },
    );
}

#[test]
fn logits_of_deberta_equal_candle_transformers() {
    for case in ["deberta-v3", "deberta-v2"] {
        let (config, weights) = peer(case, json!({}));
        let model =
            debertav2::DebertaV2SeqClassificationModel::load(weights.set_prefix("deberta"), &config, None).unwrap();
        agree_one_by_one(
            case,
            &checkpoint(case),
            |t| Ok(t.clone()),
            |ids, types| model.forward(ids, Some(types.clone()), None),
        );
    }
}

#[test]
fn probabilities_of_modernbert_equal_candle_transformers() {
    let labels = json!({ "0": "a", "1": "b", "2": "c" });
    let more = json!({
        "layer_norm_eps": 1e-5, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
        "id2label": labels, "label2id": labels, "classifier_pooling": "cls",
    });
    let (config, weights) = peer("modernbert", more);
    let model = modernbert::ModernBertForSequenceClassification::load(weights, &config).unwrap();
    let probabilities = |logits: &Tensor| candle_nn::ops::softmax(logits, D::Minus1);
    agree_one_by_one("modernbert", &checkpoint("modernbert"), probabilities, |ids, _| {
        model.forward(ids, &ids.ones_like()?)
    });
}
