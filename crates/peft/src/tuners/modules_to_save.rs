//! Modules that are trained whole beside an adapter: PEFT's `modules_to_save`.

use std::collections::BTreeSet;

use crate::builder::lies_in;
use crate::error::{Error, Result};
use crate::parameters::HEADS;
use crate::targets::ends;

/// Fails where one of `names` names no module. Those of heads are always taken: PEFT lists both, and a model has one.
pub(super) fn check(method: &str, names: &[String], modules: &BTreeSet<String>) -> Result<()> {
    let is_there = |name: &String| modules.iter().any(|module| lies_in(module, std::slice::from_ref(name)));
    match names.iter().find(|name| !HEADS.contains(&name.as_str()) && !is_there(name)) {
        Some(name) => Err(Error::NoTarget { method: method.into(), targets: name.clone(), choices: ends(modules) }),
        None => Ok(()),
    }
}
