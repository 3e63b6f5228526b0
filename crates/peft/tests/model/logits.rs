//! Logits against candle-transformers' `BertModel` with the same head.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;
use peft::{Method, Model, ModelOptions, Pooling, Pretrained, Sequence};

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
fn logits_of_all_minilm_equal_candle_transformers() {
    let Ok(pretrained) = Pretrained::load("all-MiniLM-L6-v2") else {
        println!("skipped: all-MiniLM-L6-v2 is neither in models/ nor on the hub");
        return;
    };
    agree(&pretrained, 2, &sequences(&[5, 128, 30], 30_522));
}
