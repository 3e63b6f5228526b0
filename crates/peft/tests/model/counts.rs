//! Numbers of trained parameters, against those of the papers.

use candle_core::{DType, Device, Tensor};
use peft::{
    AdaLora, BitFit, LoHa, LoKr, Method, Model, ModelOptions, Oft, PTuning, PrefixTuning, Pretrained, PromptTuning,
    Targets, TrainableReport, Vera,
};
use std::collections::HashMap;

/// BERT-base's sizes (Devlin et al. 2019, section 3).
const HIDDEN: usize = 768;
const INTERMEDIATE: usize = 3072;
const LAYERS: usize = 12;
const VOCABULARY: usize = 30_522;
const POSITIONS: usize = 512;
/// What [`narrow_base`]'s tables of 10 words and 32 positions lack.
const REST_OF_TABLES: usize = (VOCABULARY - 10 + POSITIONS - 32) * HIDDEN;

/// A checkpoint of BERT-base's width with two layers, 10 words and 32 positions: zeros in f16, 28 MB instead of 440.
fn narrow_base(folder: &std::path::Path) -> Pretrained {
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".into(), vec![10, HIDDEN]),
        ("embeddings.position_embeddings.weight".into(), vec![32, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, HIDDEN]),
    ];
    let mut module = |path: &str, weight: &[usize]| {
        shapes.push((format!("{path}.weight"), weight.to_vec()));
        shapes.push((format!("{path}.bias"), vec![weight[0]]));
    };
    module("embeddings.LayerNorm", &[HIDDEN]);
    module("pooler.dense", &[HIDDEN, HIDDEN]);
    for layer in ["encoder.layer.0", "encoder.layer.1"] {
        for name in ["self.query", "self.key", "self.value", "output.dense"] {
            module(&format!("{layer}.attention.{name}"), &[HIDDEN, HIDDEN]);
        }
        module(&format!("{layer}.intermediate.dense"), &[INTERMEDIATE, HIDDEN]);
        module(&format!("{layer}.output.dense"), &[HIDDEN, INTERMEDIATE]);
        module(&format!("{layer}.attention.output.LayerNorm"), &[HIDDEN]);
        module(&format!("{layer}.output.LayerNorm"), &[HIDDEN]);
    }
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> = shapes.into_iter().map(|(name, shape)| (name, zeros(&shape))).collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": 10, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 12,
        "intermediate_size": INTERMEDIATE, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 32,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    Pretrained::from_folder(folder).unwrap()
}

/// The reports for BERT-base's width with one and with two layers and two labels, the whole tables in their totals.
pub(crate) fn base_without_layers(method: &Method) -> [TrainableReport; 2] {
    let folder = tempfile::tempdir().unwrap();
    let mut pretrained = narrow_base(folder.path());
    [1, 2].map(|layers| {
        pretrained.config.num_hidden_layers = layers;
        let mut report = Model::new(&pretrained, &ModelOptions::new(method.clone(), 2)).unwrap().trainable_report();
        report.total += REST_OF_TABLES;
        report
    })
}

/// Trained numbers without the head, and the total, of all twelve layers: each layer adds the same.
pub(crate) fn at_twelve_layers(method: &Method) -> (usize, usize) {
    let [one, two] = base_without_layers(method);
    let extend = |count: &dyn Fn(&TrainableReport) -> usize| count(&one) + (LAYERS - 1) * (count(&two) - count(&one));
    (extend(&|report| report.trainable_without_head()), extend(&|report| report.total))
}

/// transformers' `BertModel` of bert-base-uncased.
const BERT_BASE: usize = 109_482_240;
/// A classifier of two labels.
const HEAD: usize = 2 * HIDDEN + 2;

#[test]
fn full_fine_tuning_trains_all_of_bert_base() {
    let (trained, total) = at_twelve_layers(&Method::Full);
    assert_eq!((trained + REST_OF_TABLES, total), (BERT_BASE, BERT_BASE + HEAD));
}

#[test]
fn head_only_trains_nothing_of_bert_base() {
    assert_eq!(at_twelve_layers(&Method::Head), (0, BERT_BASE + HEAD));
}

/// Ben Zaken et al. 2022, table 1: 0.09 % of BERT-base, and 0.04 % for the biases of query and of the first feed-forward layer.
#[test]
fn bitfit_trains_as_much_of_bert_base_as_its_paper_says() {
    let per_layer = 3 * 768 + 768 + 768 + 3072 + 768 + 768; // q k v, output, its norm, feed-forward in and out, its norm
    let (all, total) = at_twelve_layers(&Method::bitfit());
    assert_eq!((all, total), (12 * per_layer + 768 + 768, BERT_BASE + HEAD)); // the embeddings' norm, the pooler
    assert_eq!(all, 102_912);
    assert_eq!(format!("{:.2}", 100.0 * all as f64 / BERT_BASE as f64), "0.09");

    let target_modules = Some(Targets::suffixes(["query", "intermediate.dense"]));
    let (subset, _) = at_twelve_layers(&Method::BitFit(BitFit { target_modules }));
    assert_eq!(subset, 12 * (768 + 3072) + 768); // the pooler, which the paper's code always trains
    assert_eq!(format!("{:.2}", 100.0 * subset as f64 / BERT_BASE as f64), "0.04");
}

/// Hu et al. 2021, section 4.2: `2 * layers * matrices * hidden * r`.
#[test]
fn lora_trains_as_much_of_bert_base_as_its_paper_says() {
    let lora = 2 * 12 * 2 * 768 * 8;
    assert_eq!(at_twelve_layers(&Method::lora(8)), (lora, BERT_BASE + HEAD + lora));
    assert_eq!(lora, 294_912);
}

/// Kopiczko et al. 2023, table 1: `tuned layers * (hidden + r)`, and table 2: 0.043 million for a base model at rank 1024.
#[test]
fn vera_trains_as_much_of_bert_base_as_its_paper_says() {
    let trained = 2 * 12 * (768 + 1024);
    let vera = Method::Vera(Vera { r: 1024, ..Vera::default() });
    assert_eq!(at_twelve_layers(&vera), (trained, BERT_BASE + HEAD + trained));
    assert_eq!(trained, 43_008);
}

/// Hyeon-Woo et al. 2022, table 1: `2 r (m + n)` for a matrix of m by n.
#[test]
fn loha_trains_as_much_of_bert_base_as_its_paper_says() {
    let trained = 2 * 12 * 2 * 8 * (768 + 768);
    assert_eq!(at_twelve_layers(&Method::LoHa(LoHa::default())), (trained, BERT_BASE + HEAD + trained));
}

/// 768 is 24 by 32: C of 24 by 24, and D of 32 by 32 as a product of rank 8, twice in each layer.
#[test]
fn lokr_trains_two_small_matrices_for_each_layer_of_bert_base() {
    let trained = 2 * 12 * (24 * 24 + 2 * 8 * 32);
    assert_eq!(at_twelve_layers(&Method::LoKr(LoKr::default())), (trained, BERT_BASE + HEAD + trained));
}

/// What is above the diagonals of 768 / 32 blocks of 32, twice in each layer.
#[test]
fn oft_trains_half_of_each_block_without_its_diagonal() {
    let trained = 2 * 12 * (768 / 32) * (32 * 31 / 2);
    assert_eq!(at_twelve_layers(&Method::Oft(Oft::default())), (trained, BERT_BASE + HEAD + trained));
    let shared = Method::Oft(Oft { block_share: true, ..Oft::default() });
    assert_eq!(at_twelve_layers(&shared).0, 2 * 12 * (32 * 31 / 2));
}

/// Zhang et al. 2023, equation 3: for each layer P `(out, r)`, Λ `(r)` and Q `(r, in)`.
#[test]
fn adalora_trains_singular_vectors_and_values() {
    let trained = 2 * 12 * 12 * (768 + 1 + 768);
    let adalora = Method::AdaLora(AdaLora { total_step: Some(10), ..AdaLora::default() });
    assert_eq!(at_twelve_layers(&adalora), (trained, BERT_BASE + HEAD + trained));
}

/// `virtual tokens * layers * 2 * hidden` (Li and Liang 2021, section 4.2). PEFT's own example, bert-base with 20 virtual tokens, trains
/// 370,178 numbers with the head (its `docs/source/task_guides/prompt_based_methods.md`).
#[test]
fn prefix_tuning_trains_keys_and_values_of_each_layer() {
    let prefix = PrefixTuning { num_virtual_tokens: 20, ..PrefixTuning::default() };
    let count = 20 * 12 * 2 * 768;
    assert_eq!(at_twelve_layers(&Method::PrefixTuning(prefix.clone())), (count, BERT_BASE + HEAD + count));
    assert_eq!(count + HEAD, 370_178);
    // A table of the hidden size, and two linear layers with biases.
    let projected = PrefixTuning { prefix_projection: true, encoder_hidden_size: Some(512), ..prefix };
    let count = 20 * 768 + (768 * 512 + 512) + (512 + 1) * 12 * 2 * 768;
    assert_eq!(at_twelve_layers(&Method::PrefixTuning(projected)), (count, BERT_BASE + HEAD + count));
}

/// `virtual tokens * hidden` (Lester et al. 2021, section 2), and with P-tuning's network three linear layers besides.
#[test]
fn a_prompt_is_as_many_vectors_as_there_are_virtual_tokens() {
    let prompt = PromptTuning { num_virtual_tokens: 20, ..PromptTuning::default() };
    assert_eq!(at_twelve_layers(&Method::PromptTuning(prompt)).0, 20 * 768);
    let made = PTuning { num_virtual_tokens: 20, encoder_hidden_size: Some(128), ..PTuning::default() };
    let network = (768 * 128 + 128) + (128 * 128 + 128) + (128 * 768 + 768);
    assert_eq!(at_twelve_layers(&Method::PTuning(made)).0, 20 * 768 + network);
}
