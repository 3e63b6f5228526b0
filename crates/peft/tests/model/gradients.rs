//! The gradients of every method: who gets one, and whether it is right.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor, TensorId};
use peft::{
    AdaLora, Batch, Bias, BitFit, ForwardPass, Ia3, InitLoKrWeights, InitLoraWeights, LnTuning, LoHa, LoKr, Lora,
    Method, Model, ModelOptions, Oft, PTuning, Pooling, Precision, PrefixTuning, PromptTuning, Targets, Vera,
};

use crate::reference::Reference;
use crate::support::*;

const LENGTHS: [usize; 4] = [7, 1, 12, 2];
const LABELS: [u32; 4] = [2, 0, 1, 1];

fn methods() -> Vec<Method> {
    let subset = BitFit { target_modules: Some(Targets::suffixes(["query", "intermediate.dense"])) };
    vec![
        Method::Full,
        Method::Head,
        Method::bitfit(),
        Method::BitFit(subset),
        Method::lora(2),
        Method::Lora(lora_everywhere()),
        Method::Lora(Lora { lora_alpha: 3.0, ..lora_everywhere() }),
    ]
}

/// LoRA with its further options, VeRA, AdaLoRA, (IA)³, LN tuning, bottleneck adapters and prompt learning.
fn variants() -> Vec<Method> {
    let lora = lora_everywhere();
    let oft = Oft { oft_block_size: 8, init_weights: false, ..Oft::default() };
    let prefix = PrefixTuning { num_virtual_tokens: 3, ..PrefixTuning::default() };
    let projected = PrefixTuning { prefix_projection: true, encoder_hidden_size: Some(5), ..prefix.clone() };
    let prompt = PromptTuning { num_virtual_tokens: 3, ..PromptTuning::default() };
    let made = PTuning { num_virtual_tokens: 3, encoder_hidden_size: Some(5), ..PTuning::default() };
    let pooler = vec!["pooler".into(), "token_type_embeddings".into(), "position_embeddings".into()];
    let prompts = [
        Method::PrefixTuning(prefix),
        Method::PrefixTuning(projected),
        Method::PromptTuning(prompt.clone()),
        Method::PromptTuning(PromptTuning { modules_to_save: pooler, ..prompt }),
        Method::PTuning(made),
    ];
    [
        Lora { use_rslora: true, lora_alpha: 3.0, ..lora.clone() },
        Lora { bias: Bias::All, ..Lora::rank(2) },
        Lora { bias: Bias::LoraOnly, init_lora_weights: InitLoraWeights::Gaussian, ..lora.clone() },
        Lora { modules_to_save: vec!["pooler".into(), "token_type_embeddings".into()], ..lora.clone() },
        Lora {
            rank_pattern: [("query".into(), 3), ("output.dense".into(), 1)].into(),
            alpha_pattern: [("value".into(), 1.0)].into(),
            layers_to_transform: Some(vec![1]),
            ..lora.clone()
        },
        Lora {
            init_lora_weights: InitLoraWeights::Unset,
            exclude_modules: Some(Targets::suffixes(["key"])),
            ..lora.clone()
        },
        Lora { init_lora_weights: InitLoraWeights::Pissa, ..lora.clone() },
        Lora { init_lora_weights: InitLoraWeights::Olora, ..lora.clone() },
        Lora { use_dora: true, ..lora.clone() },
        Lora { use_dora: true, bias: Bias::LoraOnly, init_lora_weights: InitLoraWeights::Pissa, ..lora },
    ]
    .map(Method::Lora)
    .into_iter()
    .chain([
        Method::Ia3(Ia3::default()),
        Method::LnTuning(LnTuning::default()),
        Method::Vera(Vera { r: 5, target_modules: all_linear(), ..Vera::default() }),
        Method::Vera(Vera { r: 5, bias: Bias::LoraOnly, layers_to_transform: Some(vec![1]), ..Vera::default() }),
        Method::AdaLora(AdaLora { init_r: 3, target_r: 2, target_modules: all_linear(), ..adalora() }),
        Method::AdaLora(AdaLora { bias: Bias::LoraOnly, ..adalora() }),
        Method::LoKr(LoKr { target_modules: all_linear(), ..lokr() }),
        Method::LoKr(LoKr { r: 1, decompose_both: true, ..lokr() }),
        Method::LoHa(LoHa { r: 2, alpha: 2.0, target_modules: all_linear(), ..LoHa::default() }),
        Method::Oft(Oft { oft_block_size: 4, target_modules: all_linear(), ..oft.clone() }),
        Method::Oft(Oft { use_cayley_neumann: false, block_share: true, bias: Bias::All, ..oft }),
    ])
    .chain(smooth_bottlenecks())
    .chain(prompts)
    .collect()
}

/// Its vectors start with a standard deviation of 1, not of 0.02, so that its gradients are of the size of the others'; its scaling is
/// small, so that the model is no steeper in its values than in others.
fn adalora() -> AdaLora {
    AdaLora { init_lora_weights: false, lora_alpha: 0.2, total_step: Some(10), ..AdaLora::default() }
}

/// All its matrices start as numbers, without which some have no gradient.
fn lokr() -> LoKr {
    LoKr { alpha: 4.0, init_weights: InitLoKrWeights::Switch(false), ..LoKr::default() }
}

fn needs_the_pooler(method: &Method) -> bool {
    let saved: &[String] = match method {
        Method::Lora(lora) => &lora.modules_to_save,
        Method::PromptTuning(prompt) => &prompt.modules_to_save,
        _ => &[],
    };
    saved.iter().any(|name| name == "pooler")
}

/// DoRA takes the norm of the adapted weight for a constant, so that its gradient of A and B is on purpose not that of the loss.
/// That one is compared with PEFT's, in `adapters.rs`.
fn takes_a_norm_for_a_constant(model: &Model, name: &str) -> bool {
    matches!(model.method(), Method::Lora(lora) if lora.use_dora)
        && (name.contains("lora_A") || name.contains("lora_B"))
}

/// With a LoRA branch or an adapter that does something.
fn started(options: &ModelOptions) -> Model {
    let model = Model::new(&tiny(), options).unwrap();
    fill_lora_b(&model);
    fill_bottleneck(&model);
    model
}

/// The largest gradient of each tensor and three at random, against central differences of the fourth order with step 1e-4:
/// in f64 the rounding error is of the order 1e-12, and the truncation error 3e-18 times the fifth derivative.
pub(crate) fn agrees_with_finite_differences(model: &Model, batch: &Batch, labels: &[u32], step_seed: Option<u64>) {
    let store = loss(model, batch, labels, step_seed).backward().unwrap();
    for (index, (name, analytic)) in gradients(model, &store).into_iter().enumerate() {
        if takes_a_norm_for_a_constant(model, &name) {
            continue;
        }
        let scale = largest(&analytic);
        assert!(scale > 1e-4 || has_zero_gradient(&name), "{name}: no gradient above {scale}");
        let original = flat(model.parameters().get(&name).unwrap());
        let random = numbers(3, 1000 + index as u64);
        let mut elements: BTreeSet<usize> = random.iter().map(|x| (x.abs() * original.len() as f64) as usize).collect();
        elements.extend(analytic.iter().position(|gradient| gradient.abs() == scale));
        for element in elements {
            let at = |offset: f64| {
                let mut values = original.clone();
                values[element] += offset;
                set(model, &name, values);
                loss(model, batch, labels, step_seed).to_scalar::<f64>().unwrap()
            };
            let step = 1e-4;
            let numeric = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
            close(&format!("{name}[{element}]"), &[analytic[element]], &[numeric], 1e-8 * scale.max(0.1));
        }
        set(model, &name, original);
    }
}

#[test]
fn every_trained_parameter_of_every_method_has_the_gradient_of_finite_differences() {
    for method in methods().into_iter().chain(variants()) {
        for pooling in [Pooling::Cls, Pooling::Mean] {
            if pooling == Pooling::Mean && needs_the_pooler(&method) {
                continue;
            }
            let model = started(&ModelOptions { pooling, ..exact(method.clone()) });
            agrees_with_finite_differences(&model, &batch(&sequences(&LENGTHS, 100)), &LABELS, None);
        }
    }
}

#[test]
fn with_dropout_in_the_model_and_in_the_branch_gradients_are_those_of_the_same_masks() {
    for method in methods().into_iter().chain(variants()) {
        let method = match method {
            Method::Lora(lora) => Method::Lora(Lora { lora_dropout: 0.3, ..lora }),
            Method::Vera(vera) => Method::Vera(Vera { vera_dropout: 0.3, ..vera }),
            Method::AdaLora(adalora) => Method::AdaLora(AdaLora { lora_dropout: 0.3, ..adalora }),
            Method::LoHa(loha) => Method::LoHa(LoHa { rank_dropout: 0.3, ..loha }),
            Method::LoKr(lokr) => Method::LoKr(LoKr { rank_dropout: 0.3, ..lokr }),
            other => other,
        };
        let model = started(&ModelOptions { dropout: Some(0.2), ..exact(method) });
        let batch = batch(&sequences(&LENGTHS, 100));
        let [with, without] = [Some(5), None].map(|seed| flat(&loss(&model, &batch, &LABELS, seed)));
        assert_ne!(with, without, "dropout does nothing");
        agrees_with_finite_differences(&model, &batch, &LABELS, Some(5));
    }
}

#[test]
fn no_frozen_parameter_has_a_gradient_tensor() {
    for method in methods().into_iter().chain(variants()) {
        for (pooling, dropout) in [(Pooling::Cls, 0.0), (Pooling::Mean, 0.2)] {
            if pooling == Pooling::Mean && needs_the_pooler(&method) {
                continue;
            }
            let model = started(&ModelOptions { pooling, dropout: Some(dropout), ..exact(method.clone()) });
            let store = loss(&model, &batch(&sequences(&LENGTHS, 100)), &LABELS, Some(5)).backward().unwrap();
            // candle drops the gradients of intermediate results itself: what is left belongs to parameters.
            let mut with_gradient: Vec<TensorId> = store.get_ids().copied().collect();
            for (name, variable) in model.parameters().trainable() {
                assert!(with_gradient.contains(&variable.id()), "{method}: {name} has none");
                with_gradient.retain(|&id| id != variable.id());
            }
            assert!(with_gradient.is_empty(), "{method}: {} frozen tensors have one", with_gradient.len());
        }
    }
}

#[test]
fn logits_and_gradients_equal_those_of_the_model_in_basic_operations() {
    let sequences = sequences(&LENGTHS, 100);
    for method in methods() {
        for pooling in [Pooling::Cls, Pooling::Mean] {
            let model = started(&ModelOptions { pooling, ..exact(method.clone()) });
            let scaling = if let Method::Lora(lora) = &method { lora.lora_alpha / lora.r as f64 } else { 0.0 };
            let reference = Reference::of(&model, scaling, pooling).unwrap();

            let logits = reference.forward(&sequences).unwrap();
            close("logits", &flat(&model.predict(&batch(&sequences)).unwrap()), &flat(&logits), 1e-12);
            let expected = cross_entropy(&logits, &LABELS).backward().unwrap();
            let store = loss(&model, &batch(&sequences), &LABELS, None).backward().unwrap();
            for (name, found) in gradients(&model, &store) {
                let expected = flat(expected.get(&reference.variables[&name]).unwrap());
                close(&name, &found, &expected, 1e-11 * largest(&expected).max(0.1));
            }
        }
    }
}

#[test]
fn what_comes_out_of_each_layer_equals_that_of_the_model_in_basic_operations() {
    let sequences = sequences(&LENGTHS, 100);
    let lora = lora_everywhere();
    let scaling = lora.lora_alpha / lora.r as f64;
    let model = started(&exact(Method::Lora(lora)));
    let (states, kept) = Reference::of(&model, scaling, Pooling::Cls).unwrap().hidden_states(&sequences).unwrap();
    let kept: Vec<f64> = flat(&kept);
    let found = model.hidden_states(&batch(&sequences)).unwrap();
    assert_eq!((found.len(), states.len()), (3, 3));
    for (found, expected) in found.iter().zip(states) {
        let rows = expected.flatten_to(1).unwrap().to_vec2::<f64>().unwrap();
        let expected: Vec<f64> =
            rows.into_iter().zip(&kept).filter(|(_, kept)| **kept == 1.0).flat_map(|(row, _)| row).collect();
        close("hidden states", &flat(found), &expected, 1e-12);
    }
}

/// A product of bf16 numbers is off by up to a 128th, to either side; a chain of the 20 that lie between the loss and the first
/// layer, there and back, by about `sqrt(20) / 128`, 3.5 %. Of a hundred tensors one may be off by five times that, 17.5 %,
/// which turns a vector by a cosine of 0.984; the loss is one number, and stays within four times, 14 %.
#[test]
fn in_bf16_every_gradient_points_where_the_exact_one_points() {
    let batch = batch(&sequences(&[7, 3, 12], 100));
    for method in [Method::Full, Method::bitfit(), Method::Lora(lora_everywhere())] {
        let run = |precision: Precision| {
            let options = ModelOptions { precision, dropout: Some(0.0), ..ModelOptions::new(method.clone(), 3) };
            let model = started(&options);
            let loss = loss(&model, &batch, &[0, 2, 1], None);
            (flat(&loss)[0], gradients(&model, &loss.backward().unwrap()))
        };
        let ((exact_loss, exact), (rounded_loss, rounded)) = (run(Precision::F32), run(Precision::Bf16));
        assert!(
            (rounded_loss / exact_loss - 1.0).abs() < 0.14 && rounded_loss != exact_loss,
            "{rounded_loss} {exact_loss}"
        );
        for (name, exact) in exact.iter().filter(|(name, _)| !has_zero_gradient(name)) {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            let found = &rounded[name];
            let cosine = dot(exact, found) / (dot(exact, exact) * dot(found, found)).sqrt();
            assert!(cosine > 0.984, "{method} {name}: cosine {cosine}");
        }
    }
}

#[test]
fn what_training_records_gives_the_gradients_of_candles_graph() {
    for method in methods().into_iter().chain(variants()) {
        for pooling in [Pooling::Cls, Pooling::Mean] {
            if pooling == Pooling::Mean && needs_the_pooler(&method) {
                continue;
            }
            let model = started(&ModelOptions { dtype: DType::F64, pooling, ..ModelOptions::new(method.clone(), 3) });
            let batch = batch(&sequences(&LENGTHS, 100));
            let expected = gradients(&model, &loss(&model, &batch, &LABELS, Some(5)).backward().unwrap());
            let labels = Tensor::new(&LABELS, &Device::Cpu).unwrap();
            let recorded = ops::record(|| -> peft::Result<Tensor> {
                let logits = model.forward(&batch, &ForwardPass::training(&batch.segments, 5))?;
                Ok(ops::cross_entropy(&logits, &labels)?)
            });
            let found = recorded.unwrap().gradients().unwrap();
            for (name, variable) in model.parameters().trainable() {
                let found = flat(found.get(variable).unwrap());
                let scale = largest(&expected[name]).max(1.0);
                // The same operations in f64; only gradients that meet are added in another order.
                close(name, &found, &expected[name], 1e-13 * scale);
            }
        }
    }
}
