//! Merging adapters into weights, taking them out again, and checkpoints of merged models.

use candle_core::DType;
use peft::{
    AdaLora, Bias, BitFit, Error, ForwardPass, Ia3, InitLoraWeights, LnTuning, LoHa, LoKr, Lora, Method, Model,
    ModelOptions, Oft, Pretrained, Targets, Vera,
};

use crate::adapters::{cases, examples, model, starts_from_the_weight};
use crate::support::*;

/// Each method that has an adapter, and what changes how that is merged.
fn mergeable() -> Vec<Method> {
    let lora = Lora { lora_dropout: 0.5, lora_alpha: 3.0, ..lora_everywhere() };
    let start = |init_lora_weights| Lora { init_lora_weights, ..lora.clone() };
    let (outer, inner) = (["query", "output.dense", "intermediate.dense"], ["intermediate.dense"]);
    let (outer, inner) = (Targets::suffixes(outer), Targets::suffixes(inner));
    vec![
        Method::Lora(lora.clone()),
        Method::Lora(Lora { use_rslora: true, bias: Bias::LoraOnly, ..lora.clone() }),
        Method::Lora(Lora { use_dora: true, ..lora.clone() }),
        Method::Lora(start(InitLoraWeights::Pissa)),
        Method::Lora(start(InitLoraWeights::Olora)),
        Method::Ia3(Ia3::default()),
        Method::Ia3(Ia3 { target_modules: outer, feedforward_modules: inner, ..Ia3::default() }),
        Method::Vera(Vera { r: 8, vera_dropout: 0.5, target_modules: all_linear(), ..Vera::default() }),
        Method::AdaLora(AdaLora { lora_dropout: 0.5, target_modules: all_linear(), ..AdaLora::default() }),
        Method::LoKr(LoKr { rank_dropout: 0.5, target_modules: all_linear(), ..LoKr::default() }),
        Method::LoHa(LoHa { rank_dropout: 0.5, target_modules: all_linear(), ..LoHa::default() }),
        Method::Oft(Oft { oft_block_size: 8, target_modules: all_linear(), bias: Bias::LoraOnly, ..Oft::default() }),
        Method::Oft(Oft { use_cayley_neumann: false, coft: true, eps: 0.7, ..Oft::default() }),
    ]
}

/// A model whose every trained number was moved.
fn trained(method: &Method, dtype: DType) -> Model {
    let model = Model::new(&tiny(), &ModelOptions { dtype, ..options(method.clone(), 2) }).unwrap();
    for (index, (name, variable)) in model.parameters().trainable().enumerate() {
        let new = numbers(variable.elem_count(), index as u64);
        set(&model, name, flat(variable).iter().zip(&new).map(|(value, new)| value + 0.2 * new).collect());
    }
    model
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What is rounded is argued at `a_merged_model_gives_the_logits_of_branches_beside_their_weights`.
#[test]
fn a_merged_adapter_computes_the_same_and_unmerged_the_same_to_the_bit() {
    let batch = batch(&sequences(&[7, 1, 40, 12], 100));
    for method in mergeable() {
        for (dtype, epsilon) in of_device([(DType::F32, f64::from(f32::EPSILON)), (DType::F64, f64::EPSILON)]) {
            let mut model = trained(&method, dtype);
            let logits = |model: &Model| flat(&model.predict(&batch).unwrap());
            let trained: Vec<Vec<f64>> = model.parameters().trainable().map(|(_, variable)| flat(variable)).collect();
            let before = logits(&model);
            model.merge_adapter().unwrap();
            assert!(model.is_merged());
            let merged = logits(&model);
            close(&format!("{method}, merged"), &merged, &before, 40.0 * epsilon * largest(&before).max(1.0));
            model.merge_adapter().unwrap();
            assert_eq!(bits(&logits(&model)), bits(&merged), "{method}: merged twice");
            model.unmerge_adapter();
            assert!(!model.is_merged());
            assert_eq!(bits(&logits(&model)), bits(&before), "{method}: unmerged");
            let after: Vec<Vec<f64>> = model.parameters().trainable().map(|(_, variable)| flat(variable)).collect();
            assert_eq!(after, trained, "{method}");
            model.unmerge_adapter();
            assert_eq!(bits(&logits(&model.merge_and_unload().unwrap())), bits(&merged), "{method}: unloaded");
        }
    }
}

#[test]
fn a_model_can_be_unloaded_while_it_is_merged() {
    let batch = batch(&sequences(&[7, 12], 100));
    let mut model = trained(&Method::lora(4), DType::F32);
    model.merge_adapter().unwrap();
    let merged = flat(&model.predict(&batch).unwrap());
    let unloaded = model.merge_and_unload().unwrap();
    assert!(!unloaded.is_merged() && unloaded.method() == &Method::Head);
    assert_eq!(bits(&flat(&unloaded.predict(&batch).unwrap())), bits(&merged));
}

#[test]
fn a_merged_model_is_not_trained_and_nothing_is_loaded_into_it_but_it_can_be_saved() {
    let batch = batch(&sequences(&[7, 12], 100));
    let mut model = trained(&Method::lora(4), DType::F32);
    let folder = tempfile::tempdir().unwrap();
    model.merge_adapter().unwrap();
    model.save_adapter(folder.path()).unwrap();
    let error = model.forward(&batch, &ForwardPass::training(&batch.segments, 1)).unwrap_err();
    assert!(matches!(error, Error::TrainingMerged) && error.to_string().contains("unmerge_adapter"), "{error}");
    let error = model.load_adapter(folder.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors") && error.contains("unmerge_adapter"), "{error}");
    model.unmerge_adapter();
    model.forward(&batch, &ForwardPass::training(&batch.segments, 1)).unwrap();
    assert_eq!(model.load_adapter(folder.path()).unwrap(), []);
    // What is merged for good has no adapter left.
    let error = model.merge_and_unload().unwrap().save_adapter(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Merged), "{error}");
}

#[test]
fn a_model_without_adapters_is_left_as_it_is_and_can_be_trained() {
    let batch = batch(&sequences(&[7, 12], 100));
    for method in [Method::Full, Method::Head, Method::bitfit(), Method::LnTuning(LnTuning::default())] {
        let mut model = trained(&method, DType::F32);
        let before = flat(&model.predict(&batch).unwrap());
        model.merge_adapter().unwrap();
        assert!(!model.is_merged());
        assert_eq!(flat(&model.predict(&batch).unwrap()), before);
        model.forward(&batch, &ForwardPass::training(&batch.segments, 1)).unwrap();
    }
}

/// Against what PEFT computes with the adapter beside the model. The checkpoint is in f32, so that the merged weights are rounded once,
/// and twice where the model is.
#[test]
fn a_merged_checkpoint_gives_pefts_logits_without_the_adapter() {
    let (sequences, _) = examples();
    let (dtype, tolerance) = of_device([(DType::F64, 5e-6), (DType::F32, 1e-5)]).next().unwrap();
    for (name, case) in cases() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(&name, dtype);
        if model.method().virtual_tokens() > 0 {
            // Nothing is written of what no checkpoint can hold.
            assert!(matches!(model.save_merged(&tiny(), &[], folder.path()).unwrap_err(), Error::NotMergeable { .. }));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{name}");
            continue;
        }
        model.save_merged(&tiny(), &[], folder.path()).unwrap();
        let merged = Pretrained::from_folder(folder.path()).unwrap();
        assert_eq!(merged.num_labels(), Some(3));
        let classifier = Model::new(&merged, &exact(Method::Head)).unwrap();
        assert!(classifier.parameters().new_names().is_empty(), "{name}");
        let expected = case.logits.concat();
        let tolerance = if starts_from_the_weight(&name) { 1e-5 } else { tolerance };
        let logits = flat(&classifier.predict(&batch(&sequences)).unwrap());
        close(&name, &logits, &expected, tolerance * largest(&expected).max(1.0));
    }
}

#[test]
fn a_merged_checkpoint_of_any_method_is_the_models_and_says_that_it_classifies() {
    let batch = batch(&sequences(&[7, 12], 100));
    let subset = BitFit { target_modules: Some(Targets::suffixes(["query"])) };
    for method in [Method::Full, Method::bitfit(), Method::BitFit(subset), Method::LnTuning(LnTuning::default())] {
        let folder = tempfile::tempdir().unwrap();
        let model = trained(&method, DType::F32);
        model.save_merged(&tiny(), &[], folder.path()).unwrap();
        let merged = Pretrained::from_folder(folder.path()).unwrap();
        let again = Model::new(&merged, &ModelOptions::new(Method::Head, 2)).unwrap();
        assert_eq!(flat(&again.predict(&batch).unwrap()), flat(&model.predict(&batch).unwrap()), "{method}");
        let config = std::fs::read(folder.path().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["id2label"], serde_json::json!({ "0": "LABEL_0", "1": "LABEL_1" }));
        assert_eq!(config["label2id"], serde_json::json!({ "LABEL_0": 0, "LABEL_1": 1 }));
        assert_eq!(config["architectures"], serde_json::json!(["BertForSequenceClassification"]));
    }
}
