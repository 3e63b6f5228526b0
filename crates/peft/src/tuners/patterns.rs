//! Ranks and alphas that some layers have for themselves: PEFT's `rank_pattern` and `alpha_pattern`.

use std::collections::BTreeMap;

use fancy_regex::Regex;

use crate::error::Result;
use crate::targets::{expression, is_match};

/// Both, compiled (PEFT `utils/other.py`, `get_pattern_key`): the first that matches counts.
pub(super) struct Patterns {
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Patterns {
    pub(super) fn new(ranks: &BTreeMap<String, usize>, alphas: &BTreeMap<String, f64>) -> Result<Self> {
        Ok(Self { ranks: compile(ranks)?, alphas: compile(alphas)? })
    }

    /// A layer's rank, which is `r` where no pattern says otherwise.
    pub(super) fn rank(&self, module: &str, r: usize) -> usize {
        first(&self.ranks, module).unwrap_or(r)
    }

    /// A layer's alpha, likewise.
    pub(super) fn alpha(&self, module: &str, alpha: f64) -> f64 {
        first(&self.alphas, module).unwrap_or(alpha)
    }
}

fn first<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| is_match(pattern, module)).map(|(_, value)| *value)
}

fn compile<T: Copy>(values: &BTreeMap<String, T>) -> Result<Vec<(Regex, T)>> {
    values
        .iter()
        .map(|(pattern, value)| Ok((expression(&format!(r"^(?:.*\.)?(?:{pattern})$"), pattern)?, *value)))
        .collect()
}
