//! Adapters of any options: what is saved is what is loaded, to the bit, and is saved again as the same files.

use std::path::Path;

use peft::{Bias, Bottleneck, LoHa, LoKr, Lora, Method, Model, ModelOptions, PrefixTuning, Targets, Vera};
use proptest::prelude::*;

use crate::support::*;

fn targets() -> impl Strategy<Value = Targets> {
    let names = ["query", "key", "value", "attention.output.dense", "intermediate.dense"];
    let some = prop::sample::subsequence(names.to_vec(), 1..=names.len()).prop_map(Targets::suffixes);
    prop_oneof![some, Just(Targets::AllLinear), Just(Targets::pattern(r".*\.(query|value)"))]
}

fn lora() -> impl Strategy<Value = Method> {
    let bias = prop::sample::select(vec![Bias::None, Bias::All, Bias::LoraOnly]);
    let pattern =
        prop::collection::btree_map(prop::sample::select(vec!["query", "layer.1.*", "dense"]), 1..5_usize, 0..3);
    (1..6_usize, 0.1..40.0, any::<bool>(), any::<bool>(), bias, targets(), pattern).prop_map(
        |(r, lora_alpha, use_rslora, use_dora, bias, target_modules, pattern)| {
            let rank_pattern = pattern.into_iter().map(|(name, r)| (name.to_string(), r)).collect();
            Method::Lora(Lora { lora_alpha, use_rslora, use_dora, bias, target_modules, rank_pattern, ..Lora::rank(r) })
        },
    )
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![
        4 => lora(),
        1 => (1..5_usize, targets()).prop_map(|(r, target_modules)| Method::LoHa(LoHa { r, target_modules, ..LoHa::default() })),
        1 => (1..5_usize, any::<bool>()).prop_map(|(r, decompose_both)| Method::LoKr(LoKr { r, decompose_both, ..LoKr::default() })),
        1 => (1..20_usize, 0..9_u64, any::<bool>()).prop_map(|(r, projection_prng_key, save_projection)| {
            Method::Vera(Vera { r, projection_prng_key, save_projection, ..Vera::default() })
        }),
        1 => (1..9_usize).prop_map(|size| Method::Bottleneck(Bottleneck { bottleneck_size: Some(size), ..Bottleneck::default() })),
        1 => (1..6_usize).prop_map(|num_virtual_tokens| {
            Method::PrefixTuning(PrefixTuning { num_virtual_tokens, ..PrefixTuning::default() })
        }),
    ]
}

fn files(folder: &Path) -> [Vec<u8>; 2] {
    ["adapter_config.json", "adapter_model.safetensors"].map(|file| std::fs::read(folder.join(file)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_adapter_of_any_options_comes_back_from_its_files_to_the_bit(method in method(), seed in any::<u64>(), labels in 1..4_usize) {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model = Model::new(&tiny(), &ModelOptions { seed, ..ModelOptions::new(method, labels) }).unwrap();
        // As after training: what begins as nothing would be the same without its file.
        fill_lora_b(&model);
        fill_bottleneck(&model);
        model.save_adapter(first.path()).unwrap();
        let (again, _) = Model::from_adapter(&tiny(), first.path()).unwrap();
        again.save_adapter(second.path()).unwrap();
        prop_assert!(files(first.path()) == files(second.path()), "the files differ");
        let logits = |model: &Model| model.predict(&batch(&sequences(&[6, 3], 40))).unwrap().to_vec2::<f32>().unwrap();
        prop_assert_eq!(logits(&model), logits(&again));
    }
}
