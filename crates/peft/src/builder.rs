//! Builds the layers of a model. At each parameter, linear layer and sublayer the [`Builder`] asks the [`Tuner`], by module path,
//! what is trained and what is put there.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use ops::Precision;
use rand::RngExt;

use crate::architectures::Config;
use crate::error::{Error, Result};
use crate::layers::{
    AdaptedLayer, BaseLayer, LayerNorm, Linear, LinearAdapter, Sublayer, SublayerAdapter, VirtualTokens,
};
use crate::parameters::{Initializer, Modules, POOLER, Parameters, generator, is_head};
use crate::pretrained::Pretrained;
use crate::sizes::Allowance;

/// What a fine-tuning method decides as a model is built. Modules that are trained whole, the head among them, are not asked
/// about. What is not said here is: nothing is trained, nothing is adapted.
pub(crate) trait Tuner: Send + Sync {
    /// Whether the parameter `{module}.{name}` of the pretrained model is trained.
    fn trains(&self, _module: &str, _name: &str) -> bool {
        false
    }

    /// Whether the parameter `name` of a layer that has an adapter is trained besides.
    fn trains_beside_adapter(&self, _name: &str) -> bool {
        false
    }

    /// Whether layer norms are trained besides.
    fn trains_layer_norms(&self) -> bool {
        false
    }

    /// Whether PEFT has this method: it trains copies of modules, and keeps the frozen originals (`utils/other.py`,
    /// `ModulesToSaveWrapper`).
    fn is_in_peft(&self) -> bool {
        true
    }

    /// What PEFT's files have between a module that this method trains a copy of and its parameters' names.
    fn part(&self, _module: &str) -> Option<&'static str> {
        None
    }

    /// The adapter of a linear layer, if it gets one, and the weight `(out, in)` that it stands beside: the layer's own, or one that
    /// replaces it.
    fn linear(
        &self,
        _builder: &mut Builder,
        _path: &str,
        weight: Tensor,
    ) -> Result<(Option<Box<dyn LinearAdapter>>, Tensor)> {
        Ok((None, weight))
    }

    /// The adapter of a sublayer whose last linear layer has that path, in an encoder of that width.
    fn sublayer(
        &self,
        _builder: &mut Builder,
        _sublayer: Sublayer,
        _linear: &str,
        _hidden: usize,
    ) -> Result<Option<Arc<dyn SublayerAdapter>>> {
        Ok(None)
    }

    /// Virtual tokens before the embeddings of a sequence's words, of which this is the table, `(vocabulary, width)`.
    fn prompt(&self, _builder: &mut Builder, _words: &Tensor) -> Result<Option<VirtualTokens>> {
        Ok(None)
    }

    /// Virtual tokens before the keys and values of every layer, `(virtual tokens, layers * 2 * hidden)`.
    fn prefix(&self, _builder: &mut Builder, _config: &Config) -> Result<Option<VirtualTokens>> {
        Ok(None)
    }

    /// Fails where a target names nothing: less would be trained than was asked for, silently.
    fn check_targets(&self, _modules: &Modules) -> Result<()> {
        Ok(())
    }

    /// Frozen tensors that the adapters of all layers share, if they do.
    fn shared_tensors(&self) -> Option<&dyn SharedTensors> {
        None
    }
}

/// Frozen tensors that the adapters of all layers share. Either they are drawn from a key, or a file brings them.
pub(crate) trait SharedTensors: Send + Sync {
    /// Their names in a file and their shapes, which are known once all layers are there.
    fn shapes(&self) -> Vec<(&'static str, [usize; 2])>;

    /// Their values, in the same order.
    fn values(&self) -> Result<Vec<Tensor>>;

    /// Draws them from a key, for a model whose numbers are of that type and place.
    fn draw(&self, key: u64, dtype: DType, device: &Device) -> Result<()>;

    /// Takes the values of a file in their place.
    fn set(&self, values: Vec<Tensor>, dtype: DType, device: &Device) -> Result<()>;

    /// Whether they are those that a key gives.
    fn are_drawn_from(&self, key: u64) -> bool;
}

/// Hands out a model's layers and parameters as the tuner decides.
pub(crate) struct Builder<'a> {
    pub pretrained: &'a Pretrained,
    pub tuner: Arc<dyn Tuner>,
    /// The ends of the paths of modules that are trained whole besides the head.
    pub modules_to_save: &'a [String],
    /// Whether the pooler is trained whole, whatever the method.
    pub train_pooler: bool,
    /// Whether names that match no module are passed over.
    pub passes_over_names: bool,
    pub dtype: DType,
    /// Of the linear layers' products.
    pub precision: Precision,
    pub device: &'a Device,
    pub seed: u64,
    /// How many numbers may be new.
    pub allowance: Allowance,
    pub parameters: Parameters,
    /// The modules so far.
    pub modules: Modules,
    /// The linear layers so far that have an adapter.
    pub adapted: Vec<AdaptedLayer>,
    /// The linear layers so far that the checkpoint lacks, besides the head. They are trained whole: frozen, they would stay at random
    /// numbers that no adapter's file holds.
    pub new_layers: BTreeSet<String>,
}

impl Builder<'_> {
    /// A linear layer from `inputs` to `outputs`. `initializer` is for a weight that the checkpoint lacks.
    pub(crate) fn linear(
        &mut self,
        path: &str,
        inputs: usize,
        outputs: usize,
        has_bias: bool,
        initializer: Initializer,
    ) -> Result<Linear> {
        if initializer != Initializer::Pretrained && !is_head(path) && !self.pretrained.has(&format!("{path}.weight")) {
            self.new_layers.insert(path.into());
        }
        if !self.trains(path, "weight") {
            self.modules.linear_layers.insert(path.into());
        }
        // A GPU that rounds a frozen weight keeps nothing else of it.
        let stays = self.device.is_cuda() && self.precision == Precision::Bf16;
        let weight = self.parameter_at(path, "weight", &[outputs, inputs], initializer, stays)?;
        // Modules that are trained whole get nothing (PEFT: `modules_to_save` wins).
        let (adapter, weight) = match self.trains_whole(path) {
            true => (None, weight),
            false => self.tuner.clone().linear(self, path, weight)?,
        };
        // After the adapter, which may have its bias trained.
        let bias = self.bias(path, outputs, has_bias, initializer)?;
        // A frozen weight of the checkpoint's is every model's on it.
        let base = BaseLayer { weight: self.pretrained.shared.weight(weight, self.precision, self.device)?, bias };
        let Some(adapter) = adapter else { return Ok(Linear::Plain(base)) };
        let layer = AdaptedLayer::new(path, base, Arc::from(adapter));
        self.adapted.push(layer.clone());
        Ok(Linear::Adapted(layer))
    }

    /// A layer norm. `initializer` is for a weight that the checkpoint lacks.
    pub(crate) fn layer_norm(
        &mut self,
        path: &str,
        hidden: usize,
        epsilon: f64,
        has_bias: bool,
        initializer: Initializer,
    ) -> Result<LayerNorm> {
        self.modules.layer_norms.insert(path.into());
        let weight = self.parameter(path, "weight", &[hidden], initializer)?;
        let bias = match self.bias(path, hidden, has_bias, initializer)? {
            Some(bias) => bias,
            None => Tensor::zeros(hidden, self.dtype, self.device)?,
        };
        Ok(LayerNorm::new(weight, bias, epsilon))
    }

    /// A module's bias, if it has one. It is in the checkpoint if the weight must be, and begins at zero if not.
    fn bias(&mut self, path: &str, count: usize, has_bias: bool, weight: Initializer) -> Result<Option<Tensor>> {
        let initializer = match weight {
            Initializer::Pretrained => Initializer::Pretrained,
            _ => Initializer::Zeros,
        };
        has_bias.then(|| self.parameter(path, "bias", &[count], initializer)).transpose()
    }

    /// The parameter `{module}.{name}`: the checkpoint's value, or a new one; a variable if it is trained.
    pub(crate) fn parameter(
        &mut self,
        module: &str,
        name: &str,
        shape: &[usize],
        initializer: Initializer,
    ) -> Result<Tensor> {
        self.parameter_at(module, name, shape, initializer, false)
    }

    /// The same; if it is frozen and `stays`, it is not brought to the model's device.
    fn parameter_at(
        &mut self,
        module: &str,
        name: &str,
        shape: &[usize],
        initializer: Initializer,
        stays: bool,
    ) -> Result<Tensor> {
        self.modules.all.insert(module.into());
        if name == "bias" {
            self.modules.biased.insert(module.into());
        }
        let has_adapter = self.parameters.has_adapter(module);
        let trains = self.trains(module, name)
            || (has_adapter && self.tuner.trains_beside_adapter(name))
            || (self.modules.layer_norms.contains(module) && self.tuner.trains_layer_norms());
        let path = format!("{module}.{name}");
        let value = match (self.pretrained.tensor(&path, shape), initializer) {
            (Some(value), _) => value.clone(),
            (None, initializer) if initializer != Initializer::Pretrained && self.may_begin_anew(module, &path) => {
                self.new_values(&path, shape, initializer)?
            }
            (None, _) => self.pretrained.required(&path, shape)?.clone(),
        };
        if trains && self.pretrained.tensor(&path, shape).is_some() {
            self.parameters.pretrained.insert(path.clone(), value.clone());
        }
        let (is_whole, own_part) = (self.trains_whole(module), self.tuner.part(module));
        let part = if has_adapter { Some("base_layer") } else { own_part.filter(|_| !is_whole) };
        if let Some(part) = part.filter(|_| trains) {
            self.parameters.parts.insert(path.clone(), part);
        }
        if self.tuner.is_in_peft() && (is_whole || own_part.is_some()) {
            self.parameters.copied += value.elem_count();
        }
        self.register(path, value, trains, stays)
    }

    /// A parameter of an adapter: new, and trained.
    pub(crate) fn adapter(&mut self, path: String, shape: &[usize], initializer: Initializer) -> Result<Tensor> {
        let value = self.new_values(&path, shape, initializer)?;
        self.register_adapter(path, value)
    }

    /// A parameter of an adapter that starts from a value worked out from the checkpoint's.
    pub(crate) fn adapter_from(&mut self, path: String, value: Tensor) -> Result<Tensor> {
        self.allowance.take(&path, value.dims())?;
        self.parameters.new.push(path.clone());
        self.register_adapter(path, value)
    }

    /// A parameter of an adapter that holds no number: one of its dimensions is 0.
    pub(crate) fn empty_adapter(&mut self, path: String, shape: &[usize]) {
        self.parameters.of_adapters.insert(path.clone());
        self.parameters.empty.insert(path, shape.to_vec());
    }

    /// Counts what PEFT keeps among its parameters, and this crate does not.
    pub(crate) fn count_as_peft(&mut self, count: usize) {
        self.parameters.copied += count;
    }

    /// So many numbers below `end`, drawn for the parameter of that path.
    pub(crate) fn random_ids(&self, path: &str, end: usize, count: usize) -> Vec<u32> {
        let mut generator = generator(path, self.seed);
        (0..count).map(|_| generator.random_range(0..end) as u32).collect()
    }

    /// Fails if a target of the method names nothing so far.
    pub(crate) fn check_targets(&self) -> Result<()> {
        // As in PEFT some name has to match.
        let trains_something = || self.parameters.trainable.keys().any(|name| !is_head(name));
        match self.tuner.check_targets(&self.modules) {
            Err(Error::NoTarget { .. }) if self.passes_over_names && trains_something() => Ok(()),
            checked => checked,
        }
    }

    /// Whether a parameter that may be new is: the checkpoint lacks it, or it is of an output layer for other labels.
    fn may_begin_anew(&self, module: &str, path: &str) -> bool {
        !self.pretrained.has(path) || module == self.pretrained.layout.head.output
    }

    fn trains(&self, module: &str, name: &str) -> bool {
        self.trains_whole(module) || self.tuner.trains(module, name)
    }

    /// Whether a module is trained whole beside what the method adapts: the head always is, and so is what the checkpoint lacks.
    pub(crate) fn trains_whole(&self, module: &str) -> bool {
        is_head(module)
            || self.new_layers.contains(module)
            || (self.train_pooler && module == POOLER)
            || lies_in(module, self.modules_to_save)
    }

    fn register_adapter(&mut self, path: String, value: Tensor) -> Result<Tensor> {
        self.parameters.of_adapters.insert(path.clone());
        self.register(path, value, true, false)
    }

    fn register(&mut self, path: String, value: Tensor, trains: bool, stays: bool) -> Result<Tensor> {
        let value = value.to_dtype(self.dtype)?;
        let value = if stays && !trains { value } else { ops::to_device(&value, self.device)? };
        self.parameters.total += value.elem_count();
        self.parameters.shapes.push((path.clone(), value.dims().to_vec()));
        if !trains {
            return Ok(value);
        }
        // A variable owns its storage, so that training never writes into the checkpoint's tensors.
        let variable = Var::from_tensor(&value.copy()?)?;
        let tensor = variable.as_tensor().clone();
        self.parameters.trainable.insert(path, variable);
        Ok(tensor)
    }

    fn new_values(&mut self, path: &str, shape: &[usize], initializer: Initializer) -> Result<Tensor> {
        self.allowance.take(path, shape)?;
        self.parameters.new.push(path.into());
        Ok(initializer.values(path, shape, self.seed)?)
    }
}

/// Whether a module, or one that it is part of, ends in one of `names` (PEFT `utils/other.py`, `_set_trainable`).
pub(crate) fn lies_in(module: &str, names: &[String]) -> bool {
    let mut ancestors = std::iter::successors(Some(module), |path| path.rsplit_once('.').map(|(parent, _)| parent));
    ancestors.any(|path| names.iter().any(|name| path.ends_with(name.as_str())))
}
