//! The tuner of methods that put an adapter on the linear layers that are chosen, and train nothing else but biases.

use std::sync::Arc;

use candle_core::Tensor;

use super::config::Bias;
use super::selection::{Fields, Selection};
use crate::builder::{Builder, SharedTensors, Tuner};
use crate::error::Result;
use crate::layers::LinearAdapter;
use crate::parameters::Modules;

/// An adapter on each chosen linear layer. `adapter` makes it of the layer's path and weight `(out, in)`, and gives the weight that it
/// stands beside.
pub(super) struct SelectedLayers<F> {
    method: String,
    selection: Selection,
    bias: Bias,
    adapter: F,
    shared: Option<Arc<dyn SharedTensors>>,
    check: Option<Check>,
}

type Check = Box<dyn Fn(&Modules) -> Result<()> + Send + Sync>;

impl<F> SelectedLayers<F>
where
    F: Fn(&mut Builder, &str, Tensor) -> Result<(Box<dyn LinearAdapter>, Tensor)> + Send + Sync,
{
    /// `method` is its name in messages.
    pub(super) fn new(method: String, fields: &Fields, bias: Bias, adapter: F) -> Result<Self> {
        Ok(Self { method, selection: Selection::new(fields)?, bias, adapter, shared: None, check: None })
    }

    /// With tensors that all adapters share.
    pub(super) fn sharing(self, tensors: Arc<dyn SharedTensors>) -> Self {
        Self { shared: Some(tensors), ..self }
    }

    /// With a check of its own behind that of the targets.
    pub(super) fn checking(self, check: impl Fn(&Modules) -> Result<()> + Send + Sync + 'static) -> Self {
        Self { check: Some(Box::new(check)), ..self }
    }
}

impl<F> Tuner for SelectedLayers<F>
where
    F: Fn(&mut Builder, &str, Tensor) -> Result<(Box<dyn LinearAdapter>, Tensor)> + Send + Sync,
{
    fn trains(&self, _module: &str, name: &str) -> bool {
        name == "bias" && self.bias == Bias::All
    }

    fn trains_beside_adapter(&self, name: &str) -> bool {
        name == "bias" && self.bias != Bias::None
    }

    fn linear(
        &self,
        builder: &mut Builder,
        path: &str,
        weight: Tensor,
    ) -> Result<(Option<Box<dyn LinearAdapter>>, Tensor)> {
        if !self.selection.adapts(path) {
            return Ok((None, weight));
        }
        let (adapter, weight) = (self.adapter)(builder, path, weight)?;
        Ok((Some(adapter), weight))
    }

    fn check_targets(&self, modules: &Modules) -> Result<()> {
        self.selection.check_targets(&self.method, modules)?;
        self.check.as_ref().map_or(Ok(()), |check| check(modules))
    }

    fn shared_tensors(&self) -> Option<&dyn SharedTensors> {
        self.shared.as_deref()
    }
}
