//! Which linear layers get an adapter, by the fields that PEFT's configurations of LoRA's kind share.

use fancy_regex::Regex;

use super::modules_to_save;
use crate::builder::lies_in;
use crate::error::{Error, Result};
use crate::parameters::{Modules, is_head};
use crate::targets::{Matcher, Targets, ends, expression};

/// Whether a field of a record may be left out: old records are as long as they were.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The fields as they were asked for.
pub(super) struct Fields<'a> {
    /// The method's name, for messages.
    pub method: &'static str,
    pub target_modules: &'a Targets,
    pub exclude_modules: Option<&'a Targets>,
    pub layers_to_transform: Option<&'a [usize]>,
    pub layers_pattern: &'a [String],
    pub modules_to_save: &'a [String],
}

/// The [`Fields`] of a method's options, whose fields have PEFT's names.
macro_rules! fields {
    ($options:expr, $method:literal) => {
        $crate::tuners::selection::Fields {
            method: $method,
            target_modules: &$options.target_modules,
            exclude_modules: $options.exclude_modules.as_ref(),
            layers_to_transform: $options.layers_to_transform.as_deref(),
            layers_pattern: &$options.layers_pattern,
            modules_to_save: &$options.modules_to_save,
        }
    };
}
pub(super) use fields;

impl Fields<'_> {
    /// Fails where fields contradict each other (PEFT `tuners/lora/config.py`, `__post_init__`).
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |field, found, expected| Err(Error::Adapter { method: self.method, field, found, expected });
        let is_list = matches!(self.target_modules, Targets::Suffixes(_));
        match (self.layers_to_transform, self.layers_pattern) {
            (Some(layers), _) if !is_list => wrong(
                "layers_to_transform",
                format!("{layers:?}"),
                "nothing, since target_modules is not a list of names",
            ),
            (None, names @ [_, ..]) => {
                wrong("layers_pattern", names.join(", "), "nothing, since layers_to_transform is not given")
            }
            _ => Ok(()),
        }
    }
}

/// [`Fields`] ready to be asked, module by module.
pub(super) struct Selection {
    targets: Targets,
    matcher: Matcher,
    excluded: Option<Matcher>,
    layers: Option<Vec<usize>>,
    /// Each finds a layer's number in a path.
    layer_numbers: Vec<Regex>,
    saved: Vec<String>,
}

impl Selection {
    pub(super) fn new(fields: &Fields) -> Result<Self> {
        fields.check()?;
        // PEFT `tuners_utils.py`, `check_target_module_exists`: the lazy `.*?` finds the first number.
        let layer_numbers = if fields.layers_pattern.is_empty() {
            vec![expression(r"^.*?\.[^.]*\.(\d+)\.", "")?]
        } else {
            let one = |name: &String| expression(&format!(r"^(?:.*?\.)?(?:{name})\.(\d+)\."), name);
            fields.layers_pattern.iter().map(one).collect::<Result<_>>()?
        };
        Ok(Self {
            matcher: fields.target_modules.compile()?,
            excluded: fields.exclude_modules.map(Targets::compile).transpose()?,
            targets: fields.target_modules.clone(),
            layers: fields.layers_to_transform.map(<[usize]>::to_vec),
            layer_numbers,
            saved: fields.modules_to_save.to_vec(),
        })
    }

    /// Whether a linear layer that is not trained whole gets an adapter (PEFT `tuners_utils.py`, `check_target_module_exists`).
    pub(super) fn adapts(&self, module: &str) -> bool {
        let is_named_in_full =
            matches!(&self.targets, Targets::Suffixes(names) if names.iter().any(|name| name == module));
        let wants_layer = self.layers.as_ref().is_none_or(|layers| {
            // An empty list stands for all layers, as in PEFT.
            layers.is_empty() || self.layer_number(module).is_some_and(|number| layers.contains(&number))
        });
        self.matcher.matches(module)
            && !self.excluded.as_ref().is_some_and(|excluded| excluded.matches(module))
            && (wants_layer || is_named_in_full)
    }

    fn layer_number(&self, module: &str) -> Option<usize> {
        let captures = self.layer_numbers.iter().find_map(|pattern| pattern.captures(module).ok().flatten())?;
        captures.get(1)?.as_str().parse().ok()
    }

    /// Fails where a name of `method`'s names nothing: less would be trained than was asked for, silently.
    pub(super) fn check_targets(&self, method: &str, modules: &Modules) -> Result<()> {
        let Modules { all, linear_layers, .. } = modules;
        let none = |targets| Err(Error::NoTarget { method: method.into(), targets, choices: ends(linear_layers) });
        // PEFT writes "all-linear" as the names of all linear layers, those among them that are trained whole, such as those within
        // RoBERTa's classifier.
        let trained_whole = all.iter().filter(|module| lies_in(module, &self.saved));
        let mut unmatched = self.targets.unmatched(linear_layers.iter().chain(trained_whole))?;
        unmatched.retain(|name| !(is_head(name) && name.contains('.')));
        if !unmatched.is_empty() || self.targets == Targets::Suffixes(Vec::new()) {
            return none(unmatched.join(", "));
        }
        if !linear_layers.iter().any(|module| self.adapts(module)) {
            return none(format!("{} without what is excluded", self.targets));
        }
        modules_to_save::check(method, &self.saved, all)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_within_a_head_are_taken_beside_those_that_name_a_layer() {
        let check = |names: &[&str]| {
            let targets = Targets::suffixes(names.iter().copied());
            let fields = Fields {
                method: "LoRA",
                target_modules: &targets,
                exclude_modules: None,
                layers_to_transform: None,
                layers_pattern: &[],
                modules_to_save: &[],
            };
            let layers: BTreeSet<String> = ["encoder.query", "encoder.dense"].map(String::from).into();
            let modules = Modules { all: layers.clone(), linear_layers: layers, ..Modules::default() };
            Selection::new(&fields).unwrap().check_targets("LoRA", &modules)
        };
        assert!(check(&["query", "classifier.dense", "classifier.out_proj"]).is_ok());
        let error = check(&["query", "encoder.key"]).unwrap_err().to_string();
        assert!(error.contains("[encoder.key]"), "{error}");
        assert!(check(&["classifier.dense"]).is_err(), "no layer has an adapter");
        assert!(check(&["query", "classifier"]).is_err(), "no list of PEFT's has the head by its own name");
    }
}
