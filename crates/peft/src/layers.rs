//! The layers encoders are made of. Each asks the builder for its parameters, and so, through it, the tuner.

use std::sync::Arc;

use candle_core::Tensor;
use ops::{Dropout, Segments, Weight};

use crate::error::Result;
use crate::method::Adaptation;
use crate::parameters::{Builder, Start};

/// What one pass through a model needs besides its input: where sequences end, and the dropout of a training step.
pub struct Pass<'a> {
    /// The sequences of the batch.
    pub segments: &'a Segments,
    step_seed: Option<u64>,
    applications: std::cell::Cell<u64>,
    /// Is told what flows into each layer that has an adapter, by its path.
    observer: Option<&'a Observer<'a>>,
}

pub(crate) type Observer<'a> = dyn Fn(&str, &Tensor) + 'a;

impl<'a> Pass<'a> {
    /// A pass without dropout.
    pub fn evaluation(segments: &'a Segments) -> Self {
        Self { segments, step_seed: None, applications: 0.into(), observer: None }
    }

    /// A pass with dropout, whose masks follow from `step_seed`: give each step of a run a seed of its own.
    pub fn training(segments: &'a Segments, step_seed: u64) -> Self {
        Self { segments, step_seed: Some(step_seed), applications: 0.into(), observer: None }
    }

    /// A pass without dropout, in which `observer` is told what flows into each layer that has an adapter, by its path.
    pub(crate) fn observed(segments: &'a Segments, observer: &'a Observer<'a>) -> Self {
        Self { observer: Some(observer), ..Self::evaluation(segments) }
    }

    /// Whether it is one of training.
    pub(crate) fn is_training(&self) -> bool {
        self.step_seed.is_some()
    }

    /// The same pass over other segments: those of hidden states that virtual tokens are among.
    pub(crate) fn over<'b>(&'b self, segments: &'b Segments) -> Pass<'b> {
        let Self { step_seed, observer, .. } = *self;
        Pass { segments, step_seed, applications: self.applications.clone(), observer }
    }

    /// The mask for the next application of dropout.
    pub(crate) fn dropout(&self, probability: f64) -> Option<Dropout> {
        let application = self.applications.get();
        self.applications.set(application + 1);
        Dropout::new(
            probability,
            split_mix(self.step_seed?.wrapping_add(application.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        )
    }
}

/// SplitMix64's output function (Steele et al. 2014): neighbouring inputs give unrelated outputs.
fn split_mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `x Wᵀ + b`, and what the method makes of it.
#[derive(Clone)]
pub(crate) struct Linear {
    path: String,
    base: BaseLayer,
    adapter: Option<Arc<dyn Adapter>>,
}

/// The linear layer itself, in PEFT's word.
#[derive(Clone)]
pub(crate) struct BaseLayer {
    pub weight: Weight,       // (out, in)
    pub bias: Option<Tensor>, // (out)
}

/// What a method puts beside or around a linear layer.
pub(crate) trait Adapter: Send + Sync {
    /// The adapted layer's output, `(tokens, out)`, of x `(tokens, in)`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &Pass) -> Result<Tensor>;

    /// A linear layer, frozen, that computes the same without dropout.
    fn merge(&self, base: BaseLayer) -> Result<BaseLayer>;
}

impl Linear {
    /// `start` is how a weight begins that the checkpoint lacks.
    pub fn new(
        builder: &mut Builder,
        path: &str,
        inputs: usize,
        outputs: usize,
        has_bias: bool,
        start: Start,
    ) -> Result<Self> {
        if !builder.tuner.trains(path, "weight") {
            builder.modules.linear_layers.insert(path.into());
        }
        let weight = builder.parameter(path, "weight", &[outputs, inputs], start)?;
        let (adapter, weight) = match builder.tuner.adaptation(path) {
            Some(Adaptation::Lora(branch)) => {
                let (adapter, weight) = branch.build(builder, path, weight)?;
                (Some(adapter), weight)
            }
            Some(Adaptation::Ia3(vector)) => (Some(vector.build(builder, path, &weight)?), weight),
            Some(Adaptation::Vera(branch)) => (Some(branch.build(builder, path, &weight)?), weight),
            Some(Adaptation::AdaLora(branch)) => (Some(branch.build(builder, path, &weight)?), weight),
            None => (None, weight),
        };
        // After the adapter, which may have its bias trained.
        let bias = bias(builder, path, outputs, has_bias, start)?;
        let base = BaseLayer { weight: builder.weight(weight)?, bias };
        let adapter: Option<Arc<dyn Adapter>> = adapter.map(Arc::from);
        if let Some(adapter) = &adapter {
            builder.adapted.push(AdaptedLayer { path: path.into(), base: base.clone(), adapter: adapter.clone() });
        }
        Ok(Self { path: path.into(), base, adapter })
    }

    /// The layer with its adapter merged into its weight, if it has one.
    pub fn merge(self) -> Result<Self> {
        match self.adapter {
            Some(adapter) => Ok(Self { base: adapter.merge(self.base)?, adapter: None, ..self }),
            None => Ok(self),
        }
    }

    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        if let (Some(observer), true) = (pass.observer, self.adapter.is_some()) {
            observer(&self.path, x);
        }
        match &self.adapter {
            Some(adapter) => adapter.forward(&self.base, x, pass),
            None => Ok(ops::linear(x, &self.base.weight, self.base.bias.as_ref())?),
        }
    }
}

/// A linear layer that has an adapter, by its path.
pub(crate) struct AdaptedLayer {
    pub path: String,
    pub base: BaseLayer,
    adapter: Arc<dyn Adapter>,
}

impl AdaptedLayer {
    /// What layer and adapter compute together.
    pub fn merged(&self) -> Result<BaseLayer> {
        self.adapter.merge(self.base.clone())
    }
}

/// A module's bias, if it has one. It is in the checkpoint if the weight must be, and begins at zero if not.
fn bias(builder: &mut Builder, path: &str, count: usize, has_bias: bool, weight: Start) -> Result<Option<Tensor>> {
    let start = if matches!(weight, Start::Pretrained) { Start::Pretrained } else { Start::Zeros };
    has_bias.then(|| builder.parameter(path, "bias", &[count], start)).transpose()
}

/// Layer normalisation over the hidden dimension.
#[derive(Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor, // (hidden)
    bias: Tensor,   // (hidden); zeros, and no parameter, where the norm has none
    epsilon: f64,
}

impl LayerNorm {
    /// `weight` is how a weight begins that the checkpoint lacks.
    pub fn new(
        builder: &mut Builder,
        path: &str,
        hidden: usize,
        epsilon: f64,
        has_bias: bool,
        weight: Start,
    ) -> Result<Self> {
        builder.modules.layer_norms.insert(path.into());
        let start = weight;
        let weight = builder.parameter(path, "weight", &[hidden], start)?;
        let bias = match bias(builder, path, hidden, has_bias, start)? {
            Some(bias) => bias,
            None => Tensor::zeros(hidden, builder.dtype, builder.device)?,
        };
        Ok(Self { weight, bias, epsilon })
    }

    /// Whether training changes it.
    pub fn is_trained(&self) -> bool {
        self.weight.track_op() || self.bias.track_op()
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, &self.bias, self.epsilon)?)
    }

    /// Of `dropout(x) + residual`.
    pub fn of_sum(&self, x: &Tensor, residual: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        Ok(ops::add_norm(x, residual, dropout, &self.weight, &self.bias, self.epsilon)?)
    }
}
