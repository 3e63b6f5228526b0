//! Modules that are trained whole beside an adapter: PEFT's `modules_to_save`.

use std::collections::BTreeSet;

use super::HEADS;

/// Whether a module, or one that it is part of, ends in one of `names` (PEFT `utils/other.py`, `_set_trainable`).
pub(super) fn lies_in(module: &str, names: &[String]) -> bool {
    let mut ancestors = std::iter::successors(Some(module), |path| path.rsplit_once('.').map(|(parent, _)| parent));
    ancestors.any(|path| names.iter().any(|name| path.ends_with(name.as_str())))
}

/// The first of `names` that no module lies in. Those of heads are always taken: PEFT lists both, and a model has one.
pub(super) fn unmatched_name<'a>(names: &'a [String], modules: &BTreeSet<String>) -> Option<&'a str> {
    let is_there = |name: &String| modules.iter().any(|module| lies_in(module, std::slice::from_ref(name)));
    names.iter().find(|name| !HEADS.contains(&name.as_str()) && !is_there(name)).map(String::as_str)
}
