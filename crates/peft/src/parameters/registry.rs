//! The parameters of a model: which are trained, which are new, which belong to adapters, and how many numbers they hold.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Tensor, Var};

/// The parameters of a model. Only those that are trained exist as variables; a frozen one has no gradient, no optimizer
/// state and no copy.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    pub(crate) trainable: BTreeMap<String, Var>,
    pub(crate) new: Vec<String>,
    /// Of the trained parameters, the values of those that the checkpoint holds.
    pub(crate) pretrained: BTreeMap<String, Tensor>,
    /// The trained parameters that belong to adapters.
    pub(crate) of_adapters: BTreeSet<String>,
    /// What PEFT's files have between a trained parameter's module and its name, by the parameter's path.
    pub(crate) parts: BTreeMap<String, &'static str>,
    /// Every parameter's name and shape, in the order in which the model is built.
    pub(crate) shapes: Vec<(String, Vec<usize>)>,
    /// Numbers that PEFT counts besides: those of modules that it trains a copy of, and what it keeps beside AdaLoRA's branches.
    pub(crate) copied: usize,
    /// The parameters of adapters that have nothing left, which hold no number, with their shapes.
    pub(crate) empty: BTreeMap<String, Vec<usize>>,
    pub(crate) total: usize,
}

impl Parameters {
    /// The trained parameters by name, in the order of their names.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.trainable.iter().map(|(name, variable)| (name.as_str(), variable))
    }

    /// The trained parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.trainable.get(name)
    }

    /// The names of the parameters that no checkpoint holds: the classifier, and those of adapters, such as LoRA's A and B.
    pub fn new_names(&self) -> &[String] {
        &self.new
    }

    /// How many numbers the model has in all, frozen and trained.
    pub fn total_count(&self) -> usize {
        self.total
    }

    /// How many numbers PEFT counts that are no parameters here.
    pub(crate) fn copied_count(&self) -> usize {
        self.copied
    }

    /// Every parameter, frozen or trained: its name and shape, in the order in which a pass meets them.
    pub(crate) fn shapes(&self) -> &[(String, Vec<usize>)] {
        &self.shapes
    }

    /// The trained parameters that belong to adapters.
    pub(crate) fn of_adapters(&self) -> impl Iterator<Item = &str> {
        self.of_adapters.iter().map(String::as_str)
    }

    /// What PEFT's files have between a trained parameter's module and its name.
    pub(crate) fn part(&self, name: &str) -> Option<&'static str> {
        self.parts.get(name).copied()
    }

    /// The parameters that hold no number, with their shapes: files name them all the same.
    pub(crate) fn empty(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.empty.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }

    /// Whether there are adapters.
    pub(crate) fn has_adapters(&self) -> bool {
        !self.of_adapters.is_empty()
    }

    /// Whether an adapter stands beside a module.
    pub(crate) fn has_adapter(&self, module: &str) -> bool {
        let within = format!("{module}.");
        self.of_adapters.range(within.clone()..).next().is_some_and(|name| name.starts_with(&within))
    }

    /// What is left once adapters are merged. The merged weights are frozen, as those they replace were.
    pub(crate) fn without_adapters(self) -> Self {
        let Self { trainable, mut new, of_adapters, mut shapes, total, .. } = self;
        let (merged, trainable): (BTreeMap<_, _>, _) =
            trainable.into_iter().partition(|(name, _)| of_adapters.contains(name));
        new.retain(|name| !of_adapters.contains(name));
        shapes.retain(|(name, _)| !of_adapters.contains(name));
        let total = total - merged.values().map(|variable| variable.elem_count()).sum::<usize>();
        Self { trainable, new, shapes, total, ..Self::default() }
    }
}
