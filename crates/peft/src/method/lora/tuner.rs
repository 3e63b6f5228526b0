//! Which layers get a branch, and from what it is made.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::{Bias, Branch, Lora};
use crate::error::{Error, Result};
use crate::method::saved::{lies_in, unmatched_name};
use crate::method::targets::{Matcher, Targets, ends, expression};

/// A [`Lora`] ready to be asked, module by module.
pub(in crate::method) struct LoraTuner {
    lora: Lora,
    targets: Matcher,
    excluded: Option<Matcher>,
    /// Each finds a layer's number in a path.
    layer_numbers: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl LoraTuner {
    pub fn new(lora: &Lora) -> Result<Self> {
        lora.check()?;
        // PEFT `tuners_utils.py`, `check_target_module_exists`: the lazy `.*?` finds the first number.
        let layer_numbers = if lora.layers_pattern.is_empty() {
            vec![expression(r"^.*?\.[^.]*\.(\d+)\.", "")?]
        } else {
            let one = |name: &String| expression(&format!(r"^(?:.*?\.)?(?:{name})\.(\d+)\."), name);
            lora.layers_pattern.iter().map(one).collect::<Result<_>>()?
        };
        Ok(Self {
            targets: lora.target_modules.compile()?,
            excluded: lora.exclude_modules.as_ref().map(Targets::compile).transpose()?,
            layer_numbers,
            ranks: patterns(&lora.rank_pattern)?,
            alphas: patterns(&lora.alpha_pattern)?,
            lora: lora.clone(),
        })
    }

    /// Whether a linear layer that is not trained whole gets a branch (PEFT `tuners_utils.py`, `check_target_module_exists`).
    pub fn adapts(&self, module: &str) -> bool {
        let is_named_in_full =
            matches!(&self.lora.target_modules, Targets::Suffixes(names) if names.iter().any(|name| name == module));
        let wants_layer = self.lora.layers_to_transform.as_ref().is_none_or(|layers| {
            // An empty list stands for all layers, as in PEFT.
            layers.is_empty() || self.layer_number(module).is_some_and(|number| layers.contains(&number))
        });
        self.targets.matches(module)
            && !self.excluded.as_ref().is_some_and(|excluded| excluded.matches(module))
            && (wants_layer || is_named_in_full)
    }

    fn layer_number(&self, module: &str) -> Option<usize> {
        let captures = self.layer_numbers.iter().find_map(|pattern| pattern.captures(module))?;
        captures.get(1)?.as_str().parse().ok()
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

    /// Whether a module is trained whole.
    pub fn saves(&self, module: &str) -> bool {
        lies_in(module, &self.lora.modules_to_save)
    }

    /// Whether every bias is trained.
    pub fn trains_biases(&self) -> bool {
        self.lora.bias == Bias::All
    }

    /// Whether the biases of layers that have a branch are trained.
    pub fn trains_biases_beside(&self) -> bool {
        self.lora.bias != Bias::None
    }

    /// Fails where a name of the method names nothing: less would be trained than was asked for, silently.
    pub fn check_targets(&self, linear_layers: &BTreeSet<String>, modules: &BTreeSet<String>) -> Result<()> {
        let none = |targets: String, modules| {
            Err(Error::NoTarget { method: self.lora.to_string(), targets, choices: ends(modules) })
        };
        let unmatched = self.lora.target_modules.unmatched(linear_layers.iter())?;
        if !unmatched.is_empty() || self.lora.target_modules == Targets::Suffixes(Vec::new()) {
            return none(unmatched.join(", "), linear_layers);
        }
        if !linear_layers.iter().any(|module| self.adapts(module)) {
            return none(format!("{} without what is excluded", self.lora.target_modules), linear_layers);
        }
        match unmatched_name(&self.lora.modules_to_save, modules) {
            Some(name) => none(name.into(), modules),
            None => Ok(()),
        }
    }
}

/// PEFT `utils/other.py`, `get_pattern_key`.
fn patterns<T: Copy>(values: &BTreeMap<String, T>) -> Result<Vec<(Regex, T)>> {
    values
        .iter()
        .map(|(pattern, value)| Ok((expression(&format!(r"^(?:.*\.)?(?:{pattern})$"), pattern)?, *value)))
        .collect()
}
