//! Names in an adapter's lists of modules that the model does not have.
//!
//! PEFT passes over a name that matches nothing as long as another one does, so that one list serves many architectures. Where an adapter
//! is read that is right: its tensors say what was trained, and each has its place.

use serde_json::Value;

use super::config::AdapterConfig;
use super::warning::Warning;
use crate::error::ConfigError;
use crate::parameters::{HEADS, Modules};

/// A warning for each list that has such names.
pub(super) fn warnings(config: &AdapterConfig, modules: &Modules) -> Result<Vec<Warning>, ConfigError> {
    let fields = config.method.write(config.prompt)?;
    let names = |field: &str| match fields.get(field) {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(String::from).collect(),
        _ => Vec::new(),
    };
    let is_target = |name: &String| {
        let ends =
            |module: &String| module.strip_suffix(name.as_str()).is_some_and(|s| s.is_empty() || s.ends_with('.'));
        modules.all.iter().any(ends)
    };
    // PEFT adds both names of heads, and a model has one; of the others it compares the last letters alone.
    let is_saved = |name: &String| {
        let within = format!("{name}.");
        HEADS.contains(&name.as_str())
            || modules.all.iter().any(|module| module.ends_with(name.as_str()) || module.contains(&within))
    };
    let unused = |field: &str, is_there: &dyn Fn(&String) -> bool| {
        let names: Vec<String> = names(field).into_iter().filter(|name| !is_there(name)).collect();
        (!names.is_empty()).then(|| Warning::UnusedNames { field: field.into(), names })
    };
    let lists = [unused("target_modules", &is_target), unused("modules_to_save", &is_saved)];
    Ok(lists.into_iter().flatten().collect())
}
