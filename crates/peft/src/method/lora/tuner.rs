//! Which layers get a branch, and from what it is made.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::{Branch, Lora};
use crate::error::Result;
use crate::method::selection::Selection;
use crate::method::targets::expression;

/// A [`Lora`] ready to be asked, module by module.
pub(in crate::method) struct LoraTuner {
    lora: Lora,
    selection: Selection,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl LoraTuner {
    pub fn new(lora: &Lora) -> Result<Self> {
        lora.check()?;
        Ok(Self {
            selection: Selection::new(&lora.fields())?,
            ranks: patterns(&lora.rank_pattern)?,
            alphas: patterns(&lora.alpha_pattern)?,
            lora: lora.clone(),
        })
    }

    /// Whether a linear layer that is not trained whole gets a branch.
    pub fn adapts(&self, module: &str) -> bool {
        self.selection.adapts(module)
    }

    /// The branch of a linear layer that gets one.
    pub fn branch(&self, module: &str) -> Branch {
        let find_rank = self.ranks.iter().find(|(pattern, _)| pattern.is_match(module));
        let find_alpha = self.alphas.iter().find(|(pattern, _)| pattern.is_match(module));
        let r = find_rank.map_or(self.lora.r, |(_, r)| *r);
        let alpha = find_alpha.map_or(self.lora.lora_alpha, |(_, alpha)| *alpha);
        Branch {
            r,
            scaling: self.lora.scaling_of(r, alpha),
            dropout: self.lora.lora_dropout,
            start: self.lora.init_lora_weights,
            use_dora: self.lora.use_dora,
        }
    }

    /// Fails where a name of the method names nothing.
    pub fn check_targets(&self, linear_layers: &BTreeSet<String>, modules: &BTreeSet<String>) -> Result<()> {
        self.selection.check_targets(&self.lora.to_string(), linear_layers, modules)
    }
}

impl Lora {
    /// The `lora_alpha` of a module.
    pub(super) fn alpha_of(&self, module: &str) -> Result<f64> {
        let alphas = patterns(&self.alpha_pattern)?;
        Ok(alphas.iter().find(|(pattern, _)| pattern.is_match(module)).map_or(self.lora_alpha, |(_, alpha)| *alpha))
    }
}

/// PEFT `utils/other.py`, `get_pattern_key`.
fn patterns<T: Copy>(values: &BTreeMap<String, T>) -> Result<Vec<(Regex, T)>> {
    values
        .iter()
        .map(|(pattern, value)| Ok((expression(&format!(r"^(?:.*\.)?(?:{pattern})$"), pattern)?, *value)))
        .collect()
}
