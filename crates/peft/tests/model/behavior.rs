//! How models start, repeat, and treat a batch.

use std::collections::BTreeMap;

use candle_core::DType;
use peft::{
    Batch, BitFit, Error, ForwardPass, Lora, Method, Model, ModelOptions, Pooling, Precision, Sequence, Targets,
};

use crate::support::*;

/// Every trained parameter, to the bit.
fn bits(model: &Model) -> BTreeMap<String, Vec<u64>> {
    let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect();
    model.parameters().trainable().map(|(name, variable)| (name.to_string(), bits(flat(variable)))).collect()
}

/// Two labels: the checkpoint's classifier has three, so that a new one starts.
fn build(method: Method, seed: u64) -> Model {
    Model::new(&tiny(), &ModelOptions { seed, ..ModelOptions::new(method, 2) }).unwrap()
}

#[test]
fn at_its_start_lora_gives_the_logits_of_the_base_model_exactly() {
    let batch = batch(&sequences(&[7, 1, 40], 100));
    let base = flat(&build(Method::Head, 1).predict(&batch).unwrap());
    for method in [Method::lora(8), Method::Lora(Lora { lora_dropout: 0.5, ..lora_everywhere() })] {
        assert_eq!(flat(&build(method, 1).predict(&batch).unwrap()), base);
    }
}

#[test]
fn lora_starts_with_pefts_distribution() {
    let model = build(Method::Lora(Lora::rank(16).on(all_linear())), 1);
    for (name, variable) in model.parameters().trainable() {
        let values = flat(variable);
        if name.ends_with("lora_A.weight") {
            // Kaiming-uniform with a = sqrt(5): uniform in ±1 / sqrt(in), whose variance is bound² / 3.
            let bound = 1.0 / (variable.dims()[1] as f64).sqrt();
            let variance = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
            assert!(largest(&values) <= bound && largest(&values) > 0.95 * bound, "{name}");
            assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.2, "{name}: variance {variance}");
        } else if name.ends_with("lora_B.weight") || name == "classifier.bias" {
            assert_eq!(largest(&values), 0.0, "{name}");
        }
    }
}

#[test]
fn models_of_one_seed_are_equal_to_the_bit_and_those_of_another_differ() {
    for method in [Method::Full, Method::Head, Method::bitfit(), Method::Lora(lora_everywhere())] {
        let [first, second, other] = [1, 1, 2].map(|seed| build(method.clone(), seed));
        assert_eq!(bits(&first), bits(&second));
        let (first, other) = (bits(&first), bits(&other));
        for name in first.keys().filter(|name| *name == "classifier.weight" || name.ends_with("lora_A.weight")) {
            assert_ne!(first[name], other[name], "{name}");
        }
    }
}

#[test]
fn the_new_classifier_is_the_same_whatever_the_method() {
    let classifier = |method| bits(&build(method, 3))["classifier.weight"].clone();
    assert_eq!(classifier(Method::Full), classifier(Method::Lora(lora_everywhere())));
    assert_eq!(classifier(Method::Full), classifier(Method::bitfit()));
}

#[test]
fn no_two_new_parameters_start_with_the_same_numbers() {
    let bits = bits(&build(Method::Lora(lora_everywhere()), 1));
    let starts: Vec<_> = bits.iter().filter(|(name, _)| name.ends_with("lora_A.weight")).collect();
    for (index, (name, values)) in starts.iter().enumerate() {
        assert!(starts[..index].iter().all(|(_, other)| other[..32] != values[..32]), "{name}");
    }
}

#[test]
fn what_a_checkpoint_lacks_is_listed_as_new() {
    assert_eq!(build(Method::Full, 1).parameters().new_names(), ["classifier.weight", "classifier.bias"]);
    let with_its_classifier = Model::new(&tiny(), &ModelOptions::new(Method::Full, 3)).unwrap();
    assert!(with_its_classifier.parameters().new_names().is_empty());
}

#[test]
fn a_training_pass_repeats_to_the_bit_with_its_step_seed_and_differs_with_another() {
    let batch = batch(&sequences(&[7, 1, 40, 12], 100));
    for method in [Method::Full, Method::bitfit(), Method::Lora(Lora { lora_dropout: 0.1, ..lora_everywhere() })] {
        let model = build(method, 1);
        fill_lora_b(&model);
        let step = |seed| {
            let loss = loss(&model, &batch, &[0, 1, 1, 0], Some(seed));
            (flat(&loss), gradients(&model, &loss.backward().unwrap()))
        };
        let (first, again, other) = (step(11), step(11), step(12));
        assert_eq!(first, again);
        assert_ne!(first.0, other.0);
    }
}

#[test]
fn a_prediction_knows_no_dropout_and_a_training_pass_does() {
    let model = build(Method::Head, 1);
    let batch = batch(&sequences(&[7, 12], 100));
    let evaluation = flat(&model.forward(&batch, &ForwardPass::evaluation(&batch.segments)).unwrap());
    assert_eq!(flat(&model.predict(&batch).unwrap()), evaluation);
    assert_ne!(flat(&model.forward(&batch, &ForwardPass::training(&batch.segments, 1)).unwrap()), evaluation);
}

/// The formula has no term between two sequences. What may differ is the order in which a matrix product adds: its kernel is
/// chosen by the number of rows, which is the number of tokens in the batch. So f32 agrees within a few units in the last
/// place of logits around 1 (2⁻²³ is 1.2e-7) and f64 shows that it is only that.
#[test]
fn the_logits_of_a_sequence_do_not_depend_on_its_batch() {
    let sequences = sequences(&[7, 1, 40, 12, 2], 100);
    let reversed: Vec<Sequence> = sequences.iter().rev().cloned().collect();
    for pooling in [Pooling::Cls, Pooling::Mean] {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
            let options = ModelOptions { pooling, dtype, ..ModelOptions::new(Method::Lora(lora_everywhere()), 2) };
            let model = Model::new(&tiny(), &options).unwrap();
            fill_lora_b(&model);
            let predict = |sequences: &[Sequence]| flat(&model.predict(&batch(sequences)).unwrap());
            let together = predict(&sequences);
            let scale = largest(&together).max(1.0);
            let backwards: Vec<f64> = predict(&reversed).rchunks(2).flatten().copied().collect();
            close("reversed", &backwards, &together, tolerance * scale);
            for (sequence, expected) in sequences.iter().zip(together.chunks(2)) {
                close("alone", &predict(std::slice::from_ref(sequence)), expected, tolerance * scale);
            }
        }
    }
}

/// LoRA's model with and without its branches merged, and how its logits were at its start.
fn merging(options: &ModelOptions, batch: &Batch) -> [Vec<f64>; 3] {
    let model = Model::new(&tiny(), options).unwrap();
    let start = flat(&model.predict(batch).unwrap());
    fill_lora_b(&model);
    let beside = flat(&model.predict(batch).unwrap());
    [start, beside, flat(&model.merge_and_unload().unwrap().predict(batch).unwrap())]
}

/// Merging changes what is rounded, not what is computed. A sum of 64 terms, each rounded by half an epsilon, errs by about
/// `sqrt(64) / 2`, 4 epsilon; ten products follow one another from the embeddings to the logits: 40 if no two errors cancel.
#[test]
fn a_merged_model_gives_the_logits_of_branches_beside_their_weights() {
    let batch = batch(&sequences(&[7, 1, 40, 12], 100));
    for pooling in [Pooling::Cls, Pooling::Mean] {
        for (dtype, epsilon) in [(DType::F32, f64::from(f32::EPSILON)), (DType::F64, f64::EPSILON)] {
            let method = Method::Lora(Lora { lora_dropout: 0.5, lora_alpha: 3.0, ..lora_everywhere() });
            let options = ModelOptions { pooling, dtype, ..ModelOptions::new(method, 2) };
            let [start, beside, merged] = merging(&options, &batch);
            let scale = largest(&beside);
            close("merged", &merged, &beside, 40.0 * epsilon * scale);
            let effect = start.iter().zip(&beside).map(|(start, beside)| (start - beside).abs()).fold(0.0, f64::max);
            assert!(effect > 0.1 * scale, "the branches do nothing: {effect}");
        }
    }
}

/// A product of bf16 numbers is off by up to a 128th, to either side; ten in a row by about `sqrt(10) / 128`, 2.5 %. Of eight
/// logits none is off by five times that, 12.5 % of the largest.
#[test]
fn a_merged_model_in_bf16_stays_in_bf16() {
    let batch = batch(&sequences(&[7, 1, 40, 12], 100));
    let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| {
        let method = Method::Lora(lora_everywhere());
        let [_, _, merged] = merging(&ModelOptions { precision, ..ModelOptions::new(method, 2) }, &batch);
        merged
    });
    close("merged", &rounded, &exact, 0.125 * largest(&exact));
    // f32 would come within a millionth.
    let off = exact.iter().zip(&rounded).map(|(exact, rounded)| (exact - rounded).abs()).fold(0.0, f64::max);
    assert!(off > 1e-4 * largest(&exact), "nothing was rounded to bf16: {off}");
}

#[test]
fn a_merged_model_has_no_parameter_of_lora_and_trains_the_head_alone() {
    let head = build(Method::Head, 1);
    let merged = build(Method::Lora(lora_everywhere()), 1).merge_and_unload().unwrap();
    assert_eq!(bits(&merged), bits(&head));
    assert_eq!(merged.parameters().new_names(), head.parameters().new_names());
    assert_eq!(merged.trainable_report(), head.trainable_report());
}

#[test]
fn merging_leaves_a_model_without_lora_as_it_is() {
    let batch = batch(&sequences(&[7, 12], 100));
    for method in [Method::Full, Method::Head, Method::bitfit()] {
        let [model, merged] = [build(method.clone(), 1), build(method, 1).merge_and_unload().unwrap()];
        assert_eq!(bits(&merged), bits(&model));
        assert_eq!(merged.trainable_report(), model.trainable_report());
        assert_eq!(flat(&merged.predict(&batch).unwrap()), flat(&model.predict(&batch).unwrap()));
    }
}

#[test]
fn a_target_that_matches_nothing_is_an_error_that_names_it_and_the_choices() {
    let error = |method| Model::new(&tiny(), &ModelOptions::new(method, 2)).err().unwrap().to_string();
    let lora = |targets| error(Method::Lora(Lora::default().on(targets)));
    // One of two, a module without a linear layer, a pattern.
    for (targets, unmatched) in [
        (Targets::suffixes(["query", "valeu"]), "[valeu]"),
        (Targets::suffixes(["LayerNorm"]), "[LayerNorm]"),
        (Targets::suffixes(["classifier"]), "[classifier]"),
        (Targets::pattern(r".*\.q_lin"), r"[/.*\.q_lin/]"),
        (Targets::Suffixes(Vec::new()), "[]"),
    ] {
        let message = lora(targets);
        assert!(message.contains(unmatched) && message.contains("in dense, key, query, value"), "{message}");
    }
    let message = error(Method::BitFit(BitFit { target_modules: Some(Targets::suffixes(["word_embeddings"])) }));
    assert!(message.contains("[word_embeddings]") && message.contains("in LayerNorm, dense, key"), "{message}");
}

#[test]
fn a_pooler_that_is_not_there_or_trained_whole_is_no_target_of_lora() {
    let method = Method::Lora(Lora::default().on(Targets::suffixes(["pooler.dense"])));
    let options = ModelOptions::new(method, 2);
    assert!(Model::new(&tiny(), &options).is_ok());
    for options in
        [ModelOptions { pooling: Pooling::Mean, ..options.clone() }, ModelOptions { train_pooler: true, ..options }]
    {
        assert!(matches!(Model::new(&tiny(), &options).err().unwrap(), Error::NoTarget { .. }));
    }
}

#[test]
fn sequences_that_the_model_cannot_take_are_errors() {
    let model = build(Method::Head, 1);
    let error = |sequences: &[Sequence]| model.predict(&batch(sequences)).unwrap_err().to_string();
    let message = error(&sequences(&[3, 41], 100));
    assert!(message.contains("41 tokens") && message.contains("40 positions"), "{message}");
    assert!(error(&sequences(&[3, 0], 100)).contains("no token"));
    error(&[Sequence { input_ids: vec![100], token_type_ids: vec![0] }]);
    let uneven = Sequence { input_ids: vec![1, 2], token_type_ids: vec![0] };
    let message = Batch::new([&uneven]).unwrap_err().to_string();
    assert!(message.contains("2 token ids and 1 token types"), "{message}");
}
