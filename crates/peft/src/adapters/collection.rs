//! Several named adapters on one base model.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use ops::Precision;

use crate::adapter_files::{Adapter, Warning};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::model::{Model, ModelOptions};
use crate::pretrained::Pretrained;
use crate::similar_names::nearest;
use crate::tuners::{Combination, Method};

/// PEFT's name for no adapter at all.
const BASE: &str = "__base__";

/// Named adapters on one checkpoint, of any methods, ranks and numbers of labels, in the words of PEFT's `PeftModel`. Their models
/// stand where the checkpoint does ([`Pretrained::to_device`]) and share what is frozen: an adapter costs what it trains.
///
/// ```
/// use peft::{Adapters, Batch, Combination, CombinationType, Method, ModelOptions, Pretrained, Sequence};
///
/// # fn main() -> peft::Result<()> {
/// # let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/tiny-bert");
/// let mut adapters = Adapters::new(&Pretrained::load(checkpoint)?);
/// adapters.add_adapter("first", &ModelOptions::new(Method::lora(4), 2))?; // or load_adapter, from a folder
/// adapters.add_adapter("second", &ModelOptions::new(Method::lora(4), 2))?;
/// let combination = Combination::new(CombinationType::Linear);
/// adapters.add_weighted_adapter(&["first", "second"], &[0.7, 0.3], "both", &combination)?;
///
/// let sentence = Sequence { input_ids: vec![1, 75, 92, 2], token_type_ids: vec![0; 4] };
/// let batch = Batch::new([&sentence, &sentence, &sentence])?;
/// let logits = adapters.predict_mixed(&batch, &["first", "both", "__base__"])?; // one of (num_labels) for each sequence
/// adapters.set_adapter("second")?;
/// let of_second = adapters.predict(&batch)?; // (3, 2)
/// # assert_eq!((logits.len(), of_second.dims()), (3, &[3, 2][..]));
/// # Ok(())
/// # }
/// ```
pub struct Adapters {
    pretrained: Pretrained,
    precision: Precision,
    models: BTreeMap<String, Model>,
    active: Option<String>,
}

impl Adapters {
    /// None yet.
    pub fn new(pretrained: &Pretrained) -> Self {
        Self { pretrained: pretrained.clone(), precision: Precision::F32, models: BTreeMap::new(), active: None }
    }

    /// The precision of the adapters that are loaded from now on.
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// A new adapter of that name, to be trained. The first one becomes active.
    ///
    /// # Errors
    /// When the name is taken or `"__base__"`, or as [`Model::new`].
    pub fn add_adapter(&mut self, name: &str, options: &ModelOptions) -> Result<()> {
        self.check_new(name)?;
        self.insert(name, Model::new(&self.pretrained, options)?);
        Ok(())
    }

    /// The adapter in a folder, under that name; and what of it was passed over. The first one becomes active.
    ///
    /// # Errors
    /// When the name is taken or `"__base__"`, or as [`Model::from_adapter`].
    pub fn load_adapter(&mut self, name: &str, folder: &Path) -> Result<Vec<Warning>> {
        self.check_new(name)?;
        self.load(name, &Adapter::read(folder)?)
    }

    /// A combination of adapters, under a name of its own, as [`Adapter::combine`] makes it.
    ///
    /// # Errors
    /// When there are not as many weights as adapters, a name is not there or taken, or as [`Adapter::combine`].
    pub fn add_weighted_adapter(
        &mut self,
        adapters: &[&str],
        weights: &[f64],
        name: &str,
        combination: &Combination,
    ) -> Result<Vec<Warning>> {
        self.check_new(name)?;
        if adapters.len() != weights.len() {
            let reason = format!("{} adapters and {} weights; give one for each", adapters.len(), weights.len());
            return Err(Error::Combination { reason });
        }
        let parts: Vec<Adapter> =
            adapters.iter().map(|adapter| Ok(self.get(adapter)?.adapter()?.named(adapter))).collect::<Result<_>>()?;
        let weighted: Vec<(&Adapter, f64)> = parts.iter().zip(weights.iter().copied()).collect();
        self.load(name, &Adapter::combine(&weighted, combination)?)
    }

    /// Has [`Adapters::predict`] use that adapter; `"__base__"` for none.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn set_adapter(&mut self, name: &str) -> Result<()> {
        if name != BASE {
            self.get(name)?;
        }
        self.active = Some(name.into());
        Ok(())
    }

    /// The active adapter's name, if there is any.
    pub fn active_adapter(&self) -> Option<&str> {
        self.active.as_deref()
    }

    /// Removes an adapter, and frees what only it had. If it was active, none is.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn delete_adapter(&mut self, name: &str) -> Result<()> {
        self.get(name)?;
        self.models.remove(name);
        self.active.take_if(|active| active == name);
        Ok(())
    }

    /// The adapters' names, in the order of the alphabet.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// The model with that adapter.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> Result<&Model> {
        self.models.get(name).ok_or_else(|| self.unknown(name))
    }

    /// The same, to merge or unmerge it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get_mut(&mut self, name: &str) -> Result<&mut Model> {
        let unknown = self.unknown(name);
        self.models.get_mut(name).ok_or(unknown)
    }

    /// The logits of the active adapter, `(sequences, num_labels)`.
    ///
    /// # Errors
    /// When none is active, or as [`Model::predict`].
    pub fn predict(&self, batch: &Batch) -> Result<Tensor> {
        match self.active_adapter() {
            Some(BASE) => self.base()?.predict(batch),
            name => self.get(name.unwrap_or_default())?.predict(batch),
        }
    }

    /// The logits of each sequence of a batch by an adapter of its own (PEFT's `adapter_names`), `(num_labels)` each, in the order
    /// of the sequences. `"__base__"` is the checkpoint with its own classifier.
    ///
    /// The sequences of one adapter are taken together: since a batch has no padding, that costs what they would cost in any batch,
    /// whatever the methods, and numbers of labels may differ.
    ///
    /// # Errors
    /// When there are not as many names as sequences, an adapter is not there, `"__base__"` is named and the checkpoint has no
    /// classifier, or as [`Model::predict`].
    pub fn predict_mixed(&self, batch: &Batch, adapter_names: &[&str]) -> Result<Vec<Tensor>> {
        let sequences = batch.segments.len();
        if adapter_names.len() != sequences {
            return Err(Error::AdapterNames { sequences, names: adapter_names.len() });
        }
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (sequence, name) in adapter_names.iter().enumerate() {
            groups.entry(name).or_default().push(sequence);
        }
        // Before anything is computed.
        let unknown = groups.keys().find(|name| **name != BASE && !self.models.contains_key(**name));
        if let Some(unknown) = unknown {
            return Err(self.unknown(unknown));
        }
        let mut logits = vec![None; sequences];
        for (name, group) in groups {
            let part = batch.select(&group)?;
            let found = if name == BASE { self.base()?.predict(&part)? } else { self.get(name)?.predict(&part)? };
            for (row, sequence) in group.into_iter().enumerate() {
                logits[sequence] = Some(found.get(row)?);
            }
        }
        Ok(logits.into_iter().flatten().collect())
    }

    /// The checkpoint with its own classifier. It shares all but that with the adapters' models.
    fn base(&self) -> Result<Model> {
        let no_head = || Error::NoBaseHead { model: self.pretrained.name().into() };
        let labels = self.pretrained.num_labels().ok_or_else(no_head)?;
        let device = self.pretrained.device();
        let options =
            ModelOptions { precision: self.precision, device, ..ModelOptions::new(Method::default(), labels) };
        let model = Model::new(&self.pretrained, &options)?;
        if model.parameters().new_names().is_empty() { Ok(model) } else { Err(no_head()) }
    }

    fn load(&mut self, name: &str, adapter: &Adapter) -> Result<Vec<Warning>> {
        let device = self.pretrained.device();
        let options = ModelOptions { precision: self.precision, device, ..adapter.options(&self.pretrained)? };
        let model = Model::new(&self.pretrained, &options)?;
        let warnings = model.load(adapter)?;
        self.insert(name, model);
        Ok(warnings)
    }

    fn insert(&mut self, name: &str, model: Model) {
        self.models.insert(name.into(), model);
        self.active.get_or_insert_with(|| name.into());
    }

    fn check_new(&self, name: &str) -> Result<()> {
        match name == BASE || self.models.contains_key(name) {
            true => Err(Error::AdapterExists { name: name.into() }),
            false => Ok(()),
        }
    }

    fn unknown(&self, name: &str) -> Error {
        let names: Vec<&str> = self.names().collect();
        Error::NoSuchAdapter {
            name: name.into(),
            nearest: nearest(name, names.iter().copied()),
            names: names.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn ten_adapters_have_one_copy_of_what_is_frozen_and_the_last_frees_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/tiny-bert");
        let pretrained = Pretrained::from_folder(&folder).unwrap();
        let mut adapters = Adapters::new(&pretrained).precision(Precision::Bf16);
        for index in 0..10 {
            let options = ModelOptions { precision: Precision::Bf16, ..ModelOptions::new(Method::lora(1 + index), 2) };
            adapters.add_adapter(&index.to_string(), &options).unwrap();
            // Six linear layers in each of two layers, and the pooler.
            assert_eq!(pretrained.shared.len(), 13);
        }
        for model in adapters.models.values() {
            assert_eq!(model.adapted().len(), 4);
            for layer in model.adapted() {
                let weight = layer.base.weight.tensor();
                let own = pretrained.required(&format!("{}.weight", layer.path), weight.dims()).unwrap();
                assert_eq!(weight.id(), own.id(), "{} is a copy", layer.path);
            }
        }
        for index in 0..10 {
            adapters.delete_adapter(&index.to_string()).unwrap();
        }
        assert!(pretrained.shared.is_empty());
    }
}
