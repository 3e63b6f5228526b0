//! The parameters of a model as it is built: which are trained, which are frozen, which are new.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};
use ops::{Precision, Weight};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, Uniform};

use crate::error::Result;
use crate::layers::AdaptedLayer;
use crate::method::{Modules, Tuner};
use crate::pretrained::Pretrained;

/// The parameters of a model. Only those that are trained exist as variables; a frozen one has no gradient, no optimiser
/// state and no copy.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    trainable: BTreeMap<String, Var>,
    new: Vec<String>,
    /// The trained parameters that belong to adapters.
    of_adapters: BTreeSet<String>,
    /// What PEFT's files have between a trained parameter's module and its name, by the parameter's path.
    parts: BTreeMap<String, &'static str>,
    /// Every parameter's name and shape, in the order in which the model is built.
    shapes: Vec<(String, Vec<usize>)>,
    /// Numbers that PEFT counts besides: those of modules that it trains a copy of, and what it keeps beside AdaLoRA's branches.
    copied: usize,
    /// The parameters of adapters that have nothing left, which hold no number, with their shapes.
    empty: BTreeMap<String, Vec<usize>>,
    total: usize,
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
    fn has_adapter(&self, module: &str) -> bool {
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

/// The first names of what stands on an encoder. The encoder's own paths begin with its prefix, such as `bert`.
const HEAD: [&str; 4] = [crate::method::CLASSIFIER, "pre_classifier", "pooler", "head"];

/// Whether a module or a parameter belongs to the head, by its path.
pub fn is_head(path: &str) -> bool {
    path.split('.').next().is_some_and(|first| HEAD.contains(&first))
}

/// How a parameter that the checkpoint lacks begins.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// It must be in the checkpoint.
    Pretrained,
    Zeros,
    Ones,
    /// A normal distribution around 0.
    Normal {
        standard_deviation: f64,
    },
    /// Kaiming-uniform with a = sqrt(5) over `inputs`, which is uniform in `±1 / sqrt(inputs)`: PEFT's start of `lora_A`
    /// (`tuners/lora/layer.py`, `reset_lora_parameters`).
    KaimingUniform {
        inputs: usize,
    },
}

/// A generator of a name's own.
pub(crate) fn generator(name: &str, seed: u64) -> ChaCha8Rng {
    let name_hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
    });
    ChaCha8Rng::seed_from_u64(name_hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Hands out a model's parameters as the tuner decides.
pub(crate) struct Builder<'a> {
    pub pretrained: &'a Pretrained,
    pub tuner: Tuner,
    pub dtype: DType,
    /// Of the linear layers' products.
    pub precision: Precision,
    pub device: &'a Device,
    pub seed: u64,
    pub parameters: Parameters,
    /// The modules so far.
    pub modules: Modules,
    /// The linear layers so far that have an adapter.
    pub adapted: Vec<AdaptedLayer>,
}

impl Builder<'_> {
    /// The parameter `{module}.{name}`: the checkpoint's value, or a new one; a variable if the tuner trains it.
    pub fn parameter(&mut self, module: &str, name: &str, shape: &[usize], start: Start) -> Result<Tensor> {
        self.modules.all.insert(module.into());
        if name == "bias" {
            self.modules.biased.insert(module.into());
        }
        let trains = self.tuner.trains(module, name)
            || (self.parameters.has_adapter(module) && self.tuner.trains_beside_adapter(name))
            || (self.modules.layer_norms.contains(module) && self.tuner.trains_layer_norms());
        let path = format!("{module}.{name}");
        let value = match (self.pretrained.tensor(&path, shape), start) {
            (Some(value), _) => value.clone(),
            (None, Start::Pretrained) => self.pretrained.required(&path, shape)?.clone(),
            (None, start) => self.start(&path, shape, start)?,
        };
        let part = if self.parameters.has_adapter(module) { Some("base_layer") } else { self.tuner.part(module) };
        if let Some(part) = part.filter(|_| trains) {
            self.parameters.parts.insert(path.clone(), part);
        }
        if self.tuner.copies(module) {
            self.parameters.copied += value.elem_count();
        }
        self.register(path, value, trains)
    }

    /// A parameter of an adapter: new, and trained.
    pub fn adapter(&mut self, path: String, shape: &[usize], start: Start) -> Result<Tensor> {
        let value = self.start(&path, shape, start)?;
        self.register_adapter(path, value)
    }

    /// A parameter of an adapter that starts from a value worked out from the checkpoint's.
    pub fn adapter_from(&mut self, path: String, value: Tensor) -> Result<Tensor> {
        self.parameters.new.push(path.clone());
        self.register_adapter(path, value)
    }

    /// A linear layer's weight; a frozen one of the checkpoint's is every model's on it.
    pub fn weight(&self, weight: Tensor) -> Result<Weight> {
        Ok(self.pretrained.shared.weight(weight, self.precision)?)
    }

    /// A parameter of an adapter that holds no number: one of its dimensions is 0.
    pub fn empty_adapter(&mut self, path: String, shape: &[usize]) {
        self.parameters.of_adapters.insert(path.clone());
        self.parameters.empty.insert(path, shape.to_vec());
    }

    /// Counts what PEFT keeps among its parameters, and this crate does not.
    pub fn count_as_peft(&mut self, count: usize) {
        self.parameters.copied += count;
    }

    fn register_adapter(&mut self, path: String, value: Tensor) -> Result<Tensor> {
        self.parameters.of_adapters.insert(path.clone());
        self.register(path, value, true)
    }

    /// Fails if a target of the method names nothing so far.
    pub fn check_targets(&self) -> Result<()> {
        self.tuner.check_targets(&self.modules)
    }

    fn register(&mut self, path: String, value: Tensor, trains: bool) -> Result<Tensor> {
        let value = value.to_dtype(self.dtype)?.to_device(self.device)?;
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

    /// So many numbers below `end`, drawn for the parameter of that path.
    pub fn random_ids(&self, path: &str, end: usize, count: usize) -> Vec<u32> {
        let mut generator = generator(path, self.seed);
        (0..count).map(|_| generator.random_range(0..end) as u32).collect()
    }

    /// New values, drawn from a generator of the parameter's own: they depend on the seed and the name, not on the order in
    /// which a model is built.
    fn start(&mut self, path: &str, shape: &[usize], start: Start) -> Result<Tensor> {
        self.parameters.new.push(path.into());
        let mut generator = generator(path, self.seed);
        let count = shape.iter().product();
        let invalid = |e: &dyn std::fmt::Display| candle_core::Error::Msg(format!("{path}: {e}"));
        let values: Vec<f64> = match start {
            Start::Pretrained | Start::Zeros => vec![0.0; count],
            Start::Ones => vec![1.0; count],
            Start::Normal { standard_deviation } => {
                let normal = Normal::new(0.0, standard_deviation).map_err(|e| invalid(&e))?;
                normal.sample_iter(&mut generator).take(count).collect()
            }
            Start::KaimingUniform { inputs } => {
                let bound = 1.0 / (inputs as f64).sqrt();
                let uniform = Uniform::new_inclusive(-bound, bound).map_err(|e| invalid(&e))?;
                uniform.sample_iter(&mut generator).take(count).collect()
            }
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}
