//! Several adapters: in one batch, combined, and converted to LoRA, against what PEFT computes with them: by the values that
//! `oracle/make_several.py` stored.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use peft::{
    AdaLora, Adapter, Adapters, Bias, Combination, CombinationType, ConversionRank, Error, Ia3, InitLoraWeights,
    LnTuning, LoHa, LoKr, Lora, MajoritySignMethod, Method, Model, ModelOptions, Oft, Targets, Vera,
};
use serde::Deserialize;

use crate::adapters::{self, examples};
use crate::support::*;

#[derive(Deserialize)]
struct Oracle {
    mixed: Mixed,
    combinations: BTreeMap<String, Combined>,
    conversions: BTreeMap<String, Converted>,
}

#[derive(Deserialize)]
struct Mixed {
    adapter_names: Vec<String>,
    logits: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Combined {
    adapters: Vec<(String, f64)>,
    options: Options,
    logits: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Options {
    combination_type: Option<String>,
    svd_rank: Option<usize>,
    density: Option<f64>,
    #[serde(default)]
    majority_sign_method: MajoritySignMethod,
}

#[derive(Deserialize)]
struct Converted {
    adapter: String,
    rank: f64,
    ranks: BTreeMap<String, usize>,
    logits: Vec<Vec<f64>>,
}

fn oracle() -> Oracle {
    serde_json::from_slice(&std::fs::read(oracle_folder().join("several.json")).unwrap()).unwrap()
}

fn folder(adapter: &str) -> PathBuf {
    oracle_folder().join("several").join(adapter)
}

fn read(adapter: &str) -> Adapter {
    Adapter::read(&folder(adapter)).unwrap()
}

/// The tiny BERT with an adapter, in f64.
fn with(adapter: &Adapter) -> Model {
    let options = ModelOptions { dtype: DType::F64, dropout: Some(0.0), ..adapter.options(&tiny()).unwrap() };
    let model = Model::new(&tiny(), &options).unwrap();
    assert_eq!(model.load(adapter).unwrap(), []);
    model
}

fn logits(adapter: &Adapter) -> Vec<f64> {
    flat(&with(adapter).predict(&batch(&examples().0)).unwrap())
}

/// A model of this method whose every trained number was moved, with so many labels.
fn trained(method: Method, labels: usize) -> Model {
    let options = ModelOptions { dtype: DType::F64, dropout: Some(0.0), ..ModelOptions::new(method, labels) };
    let model = Model::new(&tiny(), &options).unwrap();
    for (index, (name, variable)) in model.parameters().trainable().enumerate() {
        let new = numbers(variable.elem_count(), 50 + index as u64);
        set(&model, name, flat(variable).iter().zip(&new).map(|(value, new)| value + 0.2 * new).collect());
    }
    model
}

fn adapter(method: Method, labels: usize) -> Adapter {
    trained(method, labels).adapter().unwrap()
}

/// Both sides add in f32, PEFT over padded sequences; `LOGITS` of interop.py.
#[test]
fn each_sequence_of_a_mixed_batch_has_pefts_logits_of_its_own_adapter_or_of_the_base_model() {
    let Mixed { adapter_names, logits } = oracle().mixed;
    let mut adapters = Adapters::new(&tiny().to_device(&device()).unwrap());
    for name in ["first", "second"] {
        assert_eq!(adapters.load_adapter(name, &folder(name)).unwrap(), []);
    }
    let names: Vec<&str> = adapter_names.iter().map(String::as_str).collect();
    let found = adapters.predict_mixed(&batch(&examples().0), &names).unwrap();
    let largest = largest(&logits.concat()).max(1.0);
    for ((name, found), expected) in names.iter().zip(&found).zip(&logits) {
        close(name, &flat(found), expected, 1e-5 * largest);
    }
}

/// The sequences of one adapter are a batch: what may differ is argued at `the_logits_of_a_sequence_do_not_depend_on_its_batch`.
#[test]
fn adapters_of_any_methods_and_numbers_of_labels_share_a_batch() {
    let batch = batch(&examples().0);
    let mut adapters = Adapters::new(&tiny().to_device(&device()).unwrap());
    for (name, method, labels) in [
        ("bitfit", Method::bitfit(), 2),
        ("dora", Method::Lora(Lora { use_dora: true, ..lora_everywhere() }), 1),
        ("full", Method::Full, 5),
        ("ia3", Method::Ia3(Ia3::default()), 3),
    ] {
        adapters.add_adapter(name, &options(method, labels)).unwrap();
    }
    assert_eq!(adapters.active_adapter(), Some("bitfit"));
    let names = ["full", "dora", "bitfit", "ia3", "dora", "full"];
    let mixed = adapters.predict_mixed(&batch, &names).unwrap();
    for (place, (name, found)) in names.iter().zip(&mixed).enumerate() {
        adapters.set_adapter(name).unwrap();
        let alone = flat(&adapters.predict(&batch).unwrap().get(place).unwrap());
        close(name, &flat(found), &alone, 1e-6 * largest(&alone).max(1.0));
    }
    assert_eq!(mixed.iter().map(Tensor::elem_count).collect::<Vec<_>>(), [5, 1, 2, 3, 1, 5]);
    adapters.delete_adapter("full").unwrap();
    assert_eq!(
        (adapters.active_adapter(), adapters.names().collect::<Vec<_>>()),
        (None, vec!["bitfit", "dora", "ia3"])
    );
}

#[test]
fn a_name_that_is_not_there_is_an_error_with_the_nearest_and_one_that_is_taken_an_error_too() {
    let batch = batch(&examples().0);
    let mut adapters = Adapters::new(&tiny());
    adapters.load_adapter("mrpc", &folder("first")).unwrap();
    adapters.load_adapter("rte", &folder("second")).unwrap();
    let names = ["mrpc", "rte", "mprc", "rte", "rte", "rte"];
    for error in [
        adapters.predict_mixed(&batch, &names).unwrap_err(),
        adapters.set_adapter("mprc").unwrap_err(),
        adapters.delete_adapter("mprc").unwrap_err(),
        adapters.get("mprc").err().unwrap(),
        adapters.get_mut("mprc").err().unwrap(),
    ] {
        let error = error.to_string();
        assert!(error.contains("\"mprc\" (nearest: mrpc)") && error.contains("[mrpc, rte]"), "{error}");
    }
    let error = adapters.predict_mixed(&batch, &["mrpc"]).unwrap_err().to_string();
    assert!(error.contains("6 sequences with 1 adapter names"), "{error}");
    for name in ["rte", "__base__"] {
        assert!(matches!(adapters.load_adapter(name, &folder("first")), Err(Error::AdapterExists { .. })));
    }
}

#[test]
fn a_checkpoint_without_a_classifier_has_no_logits_without_an_adapter() {
    let there = tempfile::tempdir().unwrap();
    std::fs::copy(oracle_folder().join("tiny-bert/config.json"), there.path().join("config.json")).unwrap();
    let weights = oracle_folder().join("tiny-bert/model.safetensors");
    let mut tensors = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    tensors.retain(|name, _| !name.starts_with("classifier"));
    candle_core::safetensors::save(&tensors, there.path().join("model.safetensors")).unwrap();
    let mut adapters = Adapters::new(&peft::Pretrained::from_folder(there.path()).unwrap());
    adapters.set_adapter("__base__").unwrap();
    let error = adapters.predict(&batch(&examples().0)).unwrap_err();
    assert!(matches!(&error, Error::NoBaseHead { .. }) && error.to_string().contains("no classifier"), "{error}");
}

fn combination(case: &str, options: &Options) -> Combination {
    let kind = options.combination_type.as_deref().unwrap_or(if case == "ia3" { "linear" } else { case });
    Combination {
        svd_rank: options.svd_rank,
        density: options.density,
        majority_sign_method: options.majority_sign_method,
        ..Combination::new(kind.parse().unwrap())
    }
}

/// PEFT combines in f32: a root, two products and a sum of up to three numbers, each rounded by half of 2⁻²³, and for `svd` a
/// decomposition of 32 columns besides. Through the model a rounding of its weights comes out some ten times as large.
#[test]
fn every_combination_has_pefts_tensors_and_logits_also_once_it_was_saved() {
    let stored = candle_core::safetensors::load(oracle_folder().join("several.safetensors"), &Device::Cpu).unwrap();
    let mut compared = 0;
    let oracle = oracle();
    assert_eq!(oracle.combinations.len(), 15);
    for (case, expected) in oracle.combinations {
        let adapters: Vec<(Adapter, f64)> = expected.adapters.iter().map(|(name, w)| (read(name), *w)).collect();
        let weighted: Vec<(&Adapter, f64)> = adapters.iter().map(|(adapter, weight)| (adapter, *weight)).collect();
        let combined = Adapter::combine(&weighted, &combination(&case, &expected.options)).unwrap();
        let model = with(&combined);
        let prefix = format!("{case}.");
        for (name, tensor) in stored.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor))) {
            let variable = model.parameters().get(name).unwrap_or_else(|| panic!("{case}: {name} is not trained"));
            assert_eq!(variable.dims(), tensor.dims(), "{case} {name}");
            let expected = flat(tensor);
            close(&format!("{case} {name}"), &flat(variable), &expected, 1e-6 * largest(&expected).max(1.0));
            compared += 1;
        }
        let expected = expected.logits.concat();
        let tolerance = 1e-5 * largest(&expected).max(1.0);
        close(&case, &logits(&combined), &expected, tolerance);
        let there = tempfile::tempdir().unwrap();
        combined.save(there.path()).unwrap();
        close(&case, &logits(&Adapter::read(there.path()).unwrap()), &expected, tolerance);
    }
    assert!(compared >= 80, "{compared} tensors were compared");
}

#[test]
fn a_collection_combines_what_it_holds() {
    let Combined { adapters: parts, logits, .. } = &oracle().combinations["cat"];
    let mut adapters = Adapters::new(&tiny().to_device(&device()).unwrap());
    for (name, _) in parts {
        adapters.load_adapter(name, &folder(name)).unwrap();
    }
    let (names, weights): (Vec<&str>, Vec<f64>) = parts.iter().map(|(name, weight)| (name.as_str(), *weight)).unzip();
    let cat = Combination::new(CombinationType::Cat);
    assert_eq!(adapters.add_weighted_adapter(&names, &weights, "cat", &cat).unwrap(), []);
    let found = flat(&adapters.get("cat").unwrap().predict(&batch(&examples().0)).unwrap());
    close("cat", &found, &logits.concat(), 1e-5 * largest(&logits.concat()));
    let error = adapters.add_weighted_adapter(&names, &weights[1..], "other", &cat).unwrap_err().to_string();
    assert!(error.contains("3 adapters and 2 weights"), "{error}");
    let error = adapters.add_weighted_adapter(&["quary_value"], &[1.0], "other", &cat).unwrap_err().to_string();
    assert!(error.contains("nearest: query_value"), "{error}");
}

/// Of 2 × 96 numbers of each A, a binomial's count is within five of its standard deviations.
#[test]
fn dare_keeps_its_share_at_random_divided_by_it_and_the_same_for_one_seed() {
    let first = adapter(Method::Lora(Lora::rank(3)), 3);
    let zero = (&first, 0.0); // So that there are two: one alone is not pruned.
    let dare = |seed| {
        let kind = CombinationType::DareLinear;
        let options = Combination { density: Some(0.25), seed, ..Combination::new(kind) };
        with(&Adapter::combine(&[(&first, 1.0), zero], &options).unwrap())
    };
    let (model, again, other) = (dare(1), dare(1), dare(2));
    let (whole, mut kept, mut count) = (with(&first), 0, 0);
    let name = "bert.encoder.layer.0.attention.self.query.lora_A.weight";
    let values = |model: &Model| flat(model.parameters().get(name).unwrap());
    assert_eq!(values(&model), values(&again));
    assert_ne!(values(&model), values(&other));
    for (name, variable) in model.parameters().trainable().filter(|(name, _)| name.contains("lora_")) {
        let scale = 2f64.sqrt() / 0.25; // The root of the scaling, lora_alpha / r = 2, by the density.
        for (found, value) in flat(variable).into_iter().zip(flat(whole.parameters().get(name).unwrap())) {
            assert!(found == 0.0 || (found - value * scale).abs() <= 1e-12 * (value * scale).abs(), "{name}: {found}");
            kept += usize::from(found != 0.0);
            count += 1;
        }
    }
    let (expected, deviation) = (0.25 * count as f64, (0.25 * 0.75 * count as f64).sqrt());
    assert!((kept as f64 - expected).abs() < 5.0 * deviation, "{kept} of {count}");
}

#[test]
fn the_head_is_whole_and_of_the_adapter_that_was_chosen() {
    let (two, three) = (adapter(Method::lora(2), 2), adapter(Method::lora(2), 3));
    let kind = CombinationType::Linear;
    let error = Adapter::combine(&[(&two, 0.5), (&three, 0.5)], &Combination::new(kind)).unwrap_err().to_string();
    assert!(error.contains("2 labels") && error.contains("3; say whose head"), "{error}");
    let chosen = Combination { head: Some(1), ..Combination::new(kind) };
    let combined = with(&Adapter::combine(&[(&two, 0.5), (&three, 0.5)], &chosen).unwrap());
    let head = |model: &Model| flat(model.parameters().get("classifier.weight").unwrap());
    assert_eq!(head(&combined), head(&with(&three)));
}

#[test]
fn modules_to_save_come_with_the_head_and_must_be_the_same_of_all() {
    let saving = || Lora { modules_to_save: vec!["pooler".into()], ..Lora::rank(2) };
    let (first, second) = (adapter(Method::Lora(saving()), 3), adapter(Method::Lora(saving()), 3));
    let kind = Combination::new(CombinationType::Linear);
    let combined = with(&Adapter::combine(&[(&first, 0.5), (&second, 0.5)], &kind).unwrap());
    let pooler = |model: &Model| flat(model.parameters().get("bert.pooler.dense.weight").unwrap());
    assert_eq!(pooler(&combined), pooler(&with(&first)));
    let without = adapter(Method::lora(2), 3);
    let error = Adapter::combine(&[(&first, 0.5), (&without, 0.5)], &kind).unwrap_err().to_string();
    assert!(error.contains("{\"pooler\"} whole"), "{error}");
}

#[test]
fn what_is_no_sum_of_branches_or_does_not_fit_is_refused_with_the_reason() {
    let lora = |lora| adapter(Method::Lora(lora), 3);
    let plain = lora(Lora::rank(2));
    let refused = |others: &[&Adapter], options: &Combination| {
        let adapters: Vec<(&Adapter, f64)> =
            std::iter::once(&plain).chain(others.iter().copied()).map(|a| (a, 0.5)).collect();
        Adapter::combine(&adapters, options).unwrap_err().to_string()
    };
    let of = Combination::new;
    let dora = lora(Lora { use_dora: true, ..Lora::rank(2) });
    let pissa = lora(Lora { init_lora_weights: InitLoraWeights::Pissa, ..Lora::rank(2) });
    let biased = lora(Lora { bias: Bias::LoraOnly, ..Lora::rank(2) });
    let ia3 = adapter(Method::Ia3(Ia3::default()), 3);
    let tuned = adapter(Method::LnTuning(LnTuning::default()), 3);
    let svd = of(CombinationType::Svd);
    for (error, part) in [
        (refused(&[&dora], &svd), "is DoRA"),
        (refused(&[&pissa], &svd), "residual of the base weights"),
        (refused(&[&biased], &svd), "trains biases"),
        (refused(&[&ia3], &svd), "is (IA)³, the first LoRA"),
        (refused(&[&lora(Lora::rank(3))], &of(CombinationType::Linear)), "equal ranks are needed"),
        (refused(&[&plain], &of(CombinationType::Ties)), "density is not given; ties needs one"),
        (refused(&[&plain], &Combination { density: Some(1.5), ..of(CombinationType::DareTies) }), "density is 1.5"),
        (refused(&[&plain], &Combination { svd_rank: Some(33), ..svd.clone() }), "rank 33 is more than the width 32"),
        (refused(&[&plain], &Combination { svd_rank: Some(0), ..svd.clone() }), "rank is 0"),
        (refused(&[&plain], &Combination { head: Some(2), ..svd.clone() }), "head is Some(2) of 2"),
        (Adapter::combine(&[], &svd).unwrap_err().to_string(), "there is none"),
        (Adapter::combine(&[(&plain, f64::NAN)], &svd).unwrap_err().to_string(), "a weight is NaN"),
        (Adapter::combine(&[(&ia3, 1.0)], &svd).unwrap_err().to_string(), "use linear"),
        (Adapter::combine(&[(&tuned, 1.0)], &svd).unwrap_err().to_string(), "LoRA and (IA)³ are combined"),
    ] {
        assert!(error.contains("cannot be combined") && error.contains(part), "{part:?} is not in: {error}");
    }
    let error = "tyes".parse::<CombinationType>().unwrap_err();
    assert!(error.contains("(nearest: ties)") && error.contains("magnitude_prune_svd"), "{error}");
}

/// PEFT decomposes in f32: as above.
#[test]
fn a_conversion_to_lora_has_pefts_ranks_and_logits() {
    let conversions = oracle().conversions;
    assert_eq!(conversions.len(), 3);
    let (dtype, ()) = of_device([(DType::F64, ()), (DType::F32, ())]).next().unwrap();
    for (case, expected) in conversions {
        let rank = match expected.rank {
            share if share < 1.0 => ConversionRank::Threshold(share),
            rank => ConversionRank::Fixed(rank as usize),
        };
        let converted = adapters::model(&expected.adapter, dtype).convert_to_lora(&tiny(), rank).unwrap();
        let ranks: BTreeMap<String, usize> =
            converted.layers.iter().map(|layer| (layer.path.clone(), layer.rank)).collect();
        assert_eq!(ranks, expected.ranks, "{case}");
        let expected = expected.logits.concat();
        close(&case, &logits(&converted.adapter), &expected, 1e-5 * largest(&expected).max(1.0));
    }
}

/// `ΔW` has at most the branch's rank, PiSSA's and OLoRA's twice that, and DoRA's and (IA)³'s the layer's width, 32. In f64, where
/// decomposition and merging round by some hundred epsilons.
#[test]
fn a_conversion_is_exact_where_the_rank_suffices() {
    let lora = Lora { lora_alpha: 3.0, ..lora_everywhere() };
    let start = |init_lora_weights| Method::Lora(Lora { init_lora_weights, ..lora.clone() });
    let patterns =
        Lora { rank_pattern: HashMap::from([("query".to_string(), 3)]).into_iter().collect(), ..lora.clone() };
    let (outer, inner) = (["query", "output.dense", "intermediate.dense"], ["intermediate.dense"]);
    let (outer, inner) = (Targets::suffixes(outer), Targets::suffixes(inner));
    for (method, rank) in [
        (Method::Lora(lora.clone()), 2),
        (Method::Lora(patterns), 3),
        (Method::Lora(Lora { use_rslora: true, bias: Bias::LoraOnly, ..lora.clone() }), 2),
        (Method::Lora(Lora { bias: Bias::All, modules_to_save: vec!["pooler".into()], ..lora.clone() }), 2),
        (start(InitLoraWeights::Pissa), 4),
        (start(InitLoraWeights::Olora), 4),
        (Method::Lora(Lora { use_dora: true, ..lora.clone() }), 32),
        (Method::Ia3(Ia3::default()), 32),
        (Method::Ia3(Ia3 { target_modules: outer, feedforward_modules: inner, ..Ia3::default() }), 32),
        (Method::Vera(Vera { r: 5, target_modules: all_linear(), ..Vera::default() }), 5),
        (Method::AdaLora(AdaLora { init_r: 3, target_r: 2, bias: Bias::LoraOnly, ..AdaLora::default() }), 3),
        (Method::LoKr(LoKr { r: 1, ..LoKr::default() }), 32),
        (Method::LoHa(LoHa { r: 2, ..LoHa::default() }), 4),
        (Method::Oft(Oft { oft_block_size: 8, ..Oft::default() }), 32),
    ] {
        let model = trained(method, 3);
        let expected = flat(&model.predict(&batch(&examples().0)).unwrap());
        let converted = model.convert_to_lora(&tiny(), ConversionRank::Fixed(rank)).unwrap();
        let what = model.method().to_string();
        close(&what, &logits(&converted.adapter), &expected, 1e-11 * largest(&expected).max(1.0));
        assert!(
            converted.layers.iter().all(|layer| (layer.kept - 1.0).abs() < 1e-12),
            "{what}: {:?}",
            converted.layers
        );
        let there = tempfile::tempdir().unwrap();
        converted.adapter.save(there.path()).unwrap();
        let saved = logits(&Adapter::read(there.path()).unwrap());
        close(&what, &saved, &expected, 1e-5 * largest(&expected).max(1.0));
    }
}

/// The norms are worked out from A and B by themselves.
#[test]
fn the_share_that_a_conversion_keeps_is_that_of_the_squared_norms() {
    let model = trained(Method::Lora(lora_everywhere()), 3);
    let norm = |model: &Model, path: &str, scaling: f64| -> f64 {
        let factor = |name: &str| model.parameters().get(&format!("{path}.{name}.weight")).unwrap().as_tensor().clone();
        let product = factor("lora_B").matmul(&factor("lora_A")).unwrap();
        flat(&product).iter().map(|value| (scaling * value).powi(2)).sum()
    };
    let converted = model.convert_to_lora(&tiny(), ConversionRank::Fixed(1)).unwrap();
    let lora = with(&converted.adapter);
    assert_eq!(converted.layers.len(), 13);
    for layer in &converted.layers {
        let share = norm(&lora, &layer.path, 1.0) / norm(&model, &layer.path, 2.0);
        assert!((layer.kept - share).abs() < 1e-10 && share > 0.5 && share < 1.0, "{layer:?}, by the norms {share}");
    }
}

#[test]
fn what_changes_no_weight_by_an_adapter_is_not_converted_and_a_rank_must_fit() {
    let convert = |method, rank| trained(method, 3).convert_to_lora(&tiny(), rank).unwrap_err();
    for method in [Method::Full, Method::Head, Method::bitfit(), Method::LnTuning(LnTuning::default())] {
        let error = convert(method.clone(), ConversionRank::Fixed(2));
        assert!(matches!(&error, Error::NotConvertible { method: name } if *name == method.to_string()), "{error}");
    }
    for rank in [0, 33] {
        let error = convert(Method::lora(2), ConversionRank::Fixed(rank)).to_string();
        assert!(error.contains(&format!("rank is {rank} on bert.")) && error.contains("[32, 32]"), "{error}");
    }
    for (text, rank) in [("8", Some(ConversionRank::Fixed(8))), ("0.95", Some(ConversionRank::Threshold(0.95)))] {
        assert_eq!(text.parse().ok(), rank);
    }
    for text in ["0", "0.0", "1.5", "-3", "high"] {
        assert!(text.parse::<ConversionRank>().unwrap_err().contains(text));
    }
}
