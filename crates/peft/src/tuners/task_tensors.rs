//! Several adapters' tensors made into one, number by number (PEFT's `utils/merge_utils.py`).

use serde::{Deserialize, Serialize};

/// Which sign a number of several adapters has (TIES, Yadav et al. 2023, section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySignMethod {
    /// That of their sum.
    #[default]
    Total,
    /// That of most of them.
    Frequency,
}

/// Which numbers of a tensor are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prune {
    /// The largest.
    Magnitude,
    /// Drawn at random and divided by the density, so that the expected value stays (DARE, Yu et al. 2024, equation 4).
    Random,
}

/// How the numbers of several tensors become one: a weighted sum (task arithmetic, Ilharco et al. 2023) of what is kept of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mixing {
    /// Which are kept, and which share of them.
    pub prune: Option<(Prune, f64)>,
    /// Leave out those whose sign is not the majority's, and take the mean over the others.
    pub elect: Option<MajoritySignMethod>,
}

impl Mixing {
    /// One tensor of several, all of one length. `drawn` says of each number that is pruned at random, in their order, whether it is kept.
    pub(super) fn mix(&self, tensors: &[Vec<f64>], weights: &[f64], drawn: &mut dyn FnMut(f64) -> bool) -> Vec<f64> {
        let kept: Vec<Vec<f64>> = tensors.iter().map(|tensor| self.pruned(tensor, drawn)).collect();
        let count = kept.first().map_or(0, Vec::len);
        (0..count).map(|index| self.one(kept.iter().map(|tensor| tensor[index]).zip(weights.iter().copied()))).collect()
    }

    fn pruned(&self, tensor: &[f64], drawn: &mut dyn FnMut(f64) -> bool) -> Vec<f64> {
        match self.prune {
            Some((_, density)) if density >= 1.0 => tensor.to_vec(),
            Some((Prune::Magnitude, density)) => {
                let mut order: Vec<usize> = (0..tensor.len()).collect();
                order.sort_by(|&a, &b| tensor[b].abs().total_cmp(&tensor[a].abs()));
                let mut kept = vec![0.0; tensor.len()];
                for index in order.into_iter().take((density * tensor.len() as f64) as usize) {
                    kept[index] = tensor[index];
                }
                kept
            }
            Some((Prune::Random, density)) => {
                tensor.iter().map(|value| if drawn(density) { value / density } else { 0.0 }).collect()
            }
            None => tensor.to_vec(),
        }
    }

    /// One number, of those of all tensors with their weights.
    fn one(&self, numbers: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
        let sum =
            |numbers: &mut dyn Iterator<Item = (f64, f64)>| numbers.map(|(value, weight)| value * weight).sum::<f64>();
        let Some(method) = self.elect else { return sum(&mut numbers.clone()) };
        let majority: f64 = match method {
            MajoritySignMethod::Total => numbers.clone().map(|(value, _)| value).sum(),
            MajoritySignMethod::Frequency => numbers.clone().map(|(value, _)| sign(value)).sum(),
        };
        let majority = if majority >= 0.0 { 1.0 } else { -1.0 };
        let mut agreeing = numbers.filter(|(value, _)| sign(*value) == majority);
        let count = agreeing.clone().count().max(1);
        sum(&mut agreeing) / count as f64
    }
}

/// Of zero, zero: what is pruned has no say.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Oracle {
        merge_utils: MergeUtils,
    }

    #[derive(Deserialize)]
    struct MergeUtils {
        task_tensors: Vec<Vec<f64>>,
        weights: Vec<f64>,
        density: f64,
        cases: BTreeMap<String, Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        masks: Vec<Vec<bool>>,
        result: Vec<f64>,
    }

    fn mixing(name: &str, density: f64) -> Mixing {
        let prune = match name {
            "task_arithmetic" => None,
            name if name.starts_with("dare") => Some((Prune::Random, density)),
            _ => Some((Prune::Magnitude, density)),
        };
        let elect = match name {
            name if name.ends_with("frequency") => Some(MajoritySignMethod::Frequency),
            name if name.contains("ties") => Some(MajoritySignMethod::Total),
            _ => None,
        };
        Mixing { prune, elect }
    }

    /// PEFT adds three products in f32: numbers up to about 5, each rounded by half of 2⁻²³.
    #[test]
    fn tensors_are_mixed_as_pefts_functions_mix_them_with_the_masks_that_those_drew() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/several.json");
        let Oracle { merge_utils } = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(merge_utils.cases.len(), 7);
        for (name, case) in merge_utils.cases {
            let mut masks = case.masks.concat().into_iter();
            let mixing = mixing(&name, merge_utils.density);
            let mixed = mixing.mix(&merge_utils.task_tensors, &merge_utils.weights, &mut |_| masks.next().unwrap());
            assert!(masks.next().is_none(), "{name}: a mask was not used");
            for (index, (found, expected)) in mixed.iter().zip(&case.result).enumerate() {
                assert!((found - expected).abs() <= 2e-6, "{name}, element {index}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn what_is_kept_at_random_keeps_the_expected_value() {
        let mixing = Mixing { prune: Some((Prune::Random, 0.25)), elect: None };
        let mut calls = 0;
        let mixed = mixing.mix(&[vec![3.0; 8]], &[1.0], &mut |density| {
            assert_eq!(density, 0.25);
            calls += 1;
            calls % 4 == 0
        });
        assert_eq!(mixed, [0.0, 0.0, 0.0, 12.0, 0.0, 0.0, 0.0, 12.0]);
        assert_eq!(mixed.iter().sum::<f64>(), 8.0 * 3.0);
    }
}
