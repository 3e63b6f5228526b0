//! A weighted combination of several adapters: PEFT's `add_weighted_adapter`.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use crate::adapter_files::{Adapter, AdapterConfig, PREFIX, Weights, base_warning};
use crate::error::Result;
use crate::parameters::HEADS;
use crate::tuners::combination::{Combination, refuse};
use crate::tuners::config::Part;

impl Adapter {
    /// One adapter of several, each with its weight, which may be below 0: LoRA as `combination_type` says, (IA)³ by the weighted sum
    /// of its vectors. As PEFT's `add_weighted_adapter`, and where that would give something else than was meant, better:
    ///
    /// - The result names its layers by their whole paths, and its scaling is 1. PEFT keeps the first adapter's `use_rslora`,
    ///   `exclude_modules` and `layers_to_transform`, which are those of one.
    /// - What is not the method's is never mixed. PEFT refuses adapters that have a head; here all that is trained whole, the head
    ///   and modules to save, is one adapter's (see [`Combination::head`]).
    /// - DoRA, PiSSA and OLoRA, biases that are trained besides, and adapters of which one has modules to save that the other
    ///   has not, are errors: a sum of branches is not what they compute. [`crate::Model::convert_to_lora`] makes LoRA of them.
    ///
    /// A layer that only some adapters have is combined of these. PEFT's `svd_clamp` is left out: what it cuts hangs on the signs of
    /// singular vectors, which any decomposition may choose.
    ///
    /// # Errors
    /// When the adapters do not go together, or the options not with them.
    pub fn combine(adapters: &[(&Self, f64)], combination: &Combination) -> Result<Self> {
        let Some((first, _)) = adapters.first() else { return refuse("there is none; name at least one") };
        if let Some((_, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
            return refuse(format!("a weight is {weight}; give finite numbers"));
        }
        let Some((of_head, _)) = adapters.get(combination.head.unwrap_or(0)) else {
            return refuse(format!("head is {:?} of {} adapters", combination.head, adapters.len()));
        };
        check_labels(adapters, combination)?;
        let modules_to_save = modules_to_save(adapters, of_head)?;
        let parts: Vec<Part> = adapters.iter().map(|(adapter, weight)| adapter.part(*weight)).collect();
        let mut method = first.config.method.clone();
        let combined = method.change(|config| config.combine(&parts, combination, modules_to_save))?;
        let mut tensors: BTreeMap<String, Tensor> =
            combined.into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect();
        let own = method.tensor_names();
        let whole = of_head.weights.iter().filter(|(key, _)| !own.iter().any(|name| key.contains(name)));
        tensors.extend(whole.map(|(key, tensor)| (key.to_string(), tensor.clone())));
        let config = AdapterConfig { method, ..of_head.config.clone() };
        let base = config.base_model_name_or_path.as_deref();
        let other_base = |(adapter, _): &(&Self, f64)| base_warning(&adapter.config, base?);
        let warnings = adapters.iter().filter_map(other_base).collect();
        let conditions = of_head.conditions.clone();
        Ok(Self { config, warnings, conditions, weights: Weights::new("a combination", tensors) })
    }

    /// What messages call it.
    fn name(&self) -> String {
        self.weights.path().display().to_string()
    }

    fn part(&self, weight: f64) -> Part<'_> {
        let tensors = self.weights.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(PREFIX)?, tensor)));
        Part { name: self.name(), config: self.config.method.config(), weight, tensors: tensors.collect() }
    }
}

/// All adapters are of one pooling, and of one number of labels, unless the head was chosen.
fn check_labels(adapters: &[(&Adapter, f64)], combination: &Combination) -> Result<()> {
    let Some(((first, _), others)) = adapters.split_first() else { return Ok(()) };
    for (other, _) in others {
        if other.config.pooling != first.config.pooling {
            let (pooling, others) = (first.config.pooling, other.config.pooling);
            return refuse(format!("{} has pooling {pooling:?}, {} {others:?}", first.name(), other.name()));
        }
        let (labels, others) = (first.weights.num_labels()?, other.weights.num_labels()?);
        if labels != others && combination.head.is_none() {
            return refuse(format!(
                "{} has {labels} labels, {} {others}; say whose head the result is to have",
                first.name(),
                other.name()
            ));
        }
    }
    Ok(())
}

/// The modules that every adapter trains whole besides the head: the same of all.
fn modules_to_save(adapters: &[(&Adapter, f64)], of_head: &Adapter) -> Result<Vec<String>> {
    let names = |adapter: &Adapter| {
        let AdapterConfig { method, head, train_pooler, .. } = &adapter.config;
        let pooler = train_pooler.then(|| "pooler".to_string());
        let names = method.config().modules_to_save().iter().chain(head).cloned().chain(pooler);
        names.filter(|name| !HEADS.contains(&name.as_str())).collect::<BTreeSet<_>>()
    };
    match adapters.iter().find(|(adapter, _)| names(adapter) != names(of_head)) {
        Some((other, _)) => refuse(format!(
            "{} trains the modules {:?} whole, {} {:?}",
            of_head.name(),
            names(of_head),
            other.name(),
            names(other)
        )),
        None => Ok(of_head.config.method.config().modules_to_save().to_vec()),
    }
}
