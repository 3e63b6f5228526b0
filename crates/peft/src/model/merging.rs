//! Adapters merged into the weights that they stand beside, for inference, and taken out again.

use super::{Model, Network};
use crate::error::{Error, Result};
use crate::tuners::Method;

impl Model {
    /// Merges each adapter into its layer's weight, LoRA's as `W + scaling * B A`, so that a pass costs what it costs without (Hu et
    /// al. 2021, section 4.1; PEFT's `merge_adapter`). The logits are the same but for rounding; in bf16 that is more, since merged
    /// weights are rounded and branches never are. A model without adapters stays as it is, and so does one that is merged.
    ///
    /// It is for inference: until [`Model::unmerge_adapter`] the model cannot be trained, and values set in its parameters do not
    /// reach what is merged.
    ///
    /// # Errors
    /// When an adapter is none that a weight could hold, such as a prompt. The model is then as it was.
    pub fn merge_adapter(&mut self) -> Result<()> {
        if !self.is_merged() && self.parameters.has_adapters() {
            let merged = self.merged_network()?;
            self.unmerged = Some(std::mem::replace(&mut self.network, merged));
        }
        Ok(())
    }

    /// Takes the adapters out of the weights again (PEFT's `unmerge_adapter`). The weights are those from before, to the bit:
    /// they were kept, where PEFT subtracts what it has added.
    pub fn unmerge_adapter(&mut self) {
        if let Some(network) = self.unmerged.take() {
            self.network = network;
        }
    }

    /// Whether its adapters are merged, and can be unmerged.
    pub fn is_merged(&self) -> bool {
        self.unmerged.is_some()
    }

    /// Merges as [`Model::merge_adapter`], for good: the adapters and the weights from before are given up (PEFT's
    /// `merge_and_unload`).
    ///
    /// What belonged to adapters, such as LoRA's A and B, are then no parameters any more, and the method is [`Method::Head`](crate::Method::Head);
    /// modules and biases that were trained besides stay as they are. The merged weights are frozen: what was trained is loaded
    /// before merging, and saved before merging. A model without adapters stays as it is.
    ///
    /// # Errors
    /// As [`Model::merge_adapter`].
    pub fn merge_and_unload(self) -> Result<Self> {
        if !self.parameters.has_adapters() {
            return Ok(self);
        }
        let network = if self.is_merged() { self.network } else { self.merged_network()? };
        Ok(Self {
            network,
            unmerged: None,
            method: Method::default(),
            parameters: self.parameters.without_adapters(),
            adapted: Vec::new(),
            unloaded: true,
            ..self
        })
    }

    fn merged_network(&self) -> Result<Network> {
        self.check_mergeable()?;
        self.network.clone().merge()
    }

    /// Fails if a trained parameter of an adapter stands beside no linear layer: no weight could hold it.
    pub(crate) fn check_mergeable(&self) -> Result<()> {
        let is_beside = |name: &str| {
            self.adapted.iter().any(|layer| name.strip_prefix(&layer.path).is_some_and(|rest| rest.starts_with('.')))
        };
        match self.parameters.of_adapters().find(|name| !is_beside(name)) {
            Some(name) => Err(Error::NotMergeable { method: self.method.to_string(), name: name.into() }),
            None => Ok(()),
        }
    }
}
