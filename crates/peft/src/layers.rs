//! The layers encoders are made of. Each asks the builder for its parameters, and so, through it, the tuner.

use candle_core::Tensor;
use ops::{Dropout, Segments, Weight};

use crate::error::Result;
use crate::parameters::{Builder, Start};

/// What one pass through a model needs besides its input: where sequences end, and the dropout of a training step.
pub struct Pass<'a> {
    /// The sequences of the batch.
    pub segments: &'a Segments,
    step_seed: Option<u64>,
    applications: std::cell::Cell<u64>,
}

impl<'a> Pass<'a> {
    /// A pass without dropout.
    pub fn evaluation(segments: &'a Segments) -> Self {
        Self { segments, step_seed: None, applications: 0.into() }
    }

    /// A pass with dropout, whose masks follow from `step_seed`: give each step of a run a seed of its own.
    pub fn training(segments: &'a Segments, step_seed: u64) -> Self {
        Self { segments, step_seed: Some(step_seed), applications: 0.into() }
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

/// `x Wᵀ + b`, and a LoRA branch where the tuner wants one.
pub(crate) struct Linear {
    weight: Weight,       // (out, in)
    bias: Option<Tensor>, // (out)
    lora: Option<LoraBranch>,
}

struct LoraBranch {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    scaling: f64,
    dropout: f64,
}

impl Linear {
    /// `weight` is how a weight begins that the checkpoint lacks.
    pub fn new(
        builder: &mut Builder,
        path: &str,
        inputs: usize,
        outputs: usize,
        has_bias: bool,
        weight: Start,
    ) -> Result<Self> {
        if !builder.tuner.trains(path, "weight") {
            builder.linear_layers.insert(path.into());
        }
        let lora = match builder.tuner.lora(path).cloned() {
            Some(lora) => Some(LoraBranch {
                a: builder.adapter(
                    format!("{path}.lora_A.weight"),
                    &[lora.r, inputs],
                    Start::KaimingUniform { inputs },
                )?,
                b: builder.adapter(format!("{path}.lora_B.weight"), &[outputs, lora.r], Start::Zeros)?,
                scaling: lora.scaling(),
                dropout: lora.lora_dropout,
            }),
            None => None,
        };
        Ok(Self {
            weight: Weight::new(builder.parameter(path, "weight", &[outputs, inputs], weight)?, builder.precision)?,
            bias: bias(builder, path, outputs, has_bias, weight)?,
            lora,
        })
    }

    /// The layer with its branch merged into its weight, if it has one.
    pub fn merge(self) -> Result<Self> {
        let Some(LoraBranch { a, b, scaling, .. }) = &self.lora else { return Ok(self) };
        let weight = self.weight.merge(&ops::Lora { a, b, scaling: *scaling, dropout: None })?;
        Ok(Self { weight, lora: None, ..self })
    }

    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        Ok(match &self.lora {
            Some(LoraBranch { a, b, scaling, dropout }) => {
                let branch = ops::Lora { a, b, scaling: *scaling, dropout: pass.dropout(*dropout) };
                ops::lora_linear(x, &self.weight, self.bias.as_ref(), branch)?
            }
            None => ops::linear(x, &self.weight, self.bias.as_ref())?,
        })
    }
}

/// A module's bias, if it has one. It is in the checkpoint if the weight must be, and begins at zero if not.
fn bias(builder: &mut Builder, path: &str, count: usize, has_bias: bool, weight: Start) -> Result<Option<Tensor>> {
    let start = if matches!(weight, Start::Pretrained) { Start::Pretrained } else { Start::Zeros };
    has_bias.then(|| builder.parameter(path, "bias", &[count], start)).transpose()
}

/// Layer normalisation over the hidden dimension.
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
        let bias = match bias(builder, path, hidden, has_bias, weight)? {
            Some(bias) => bias,
            None => Tensor::zeros(hidden, builder.dtype, builder.device)?,
        };
        Ok(Self { weight: builder.parameter(path, "weight", &[hidden], weight)?, bias, epsilon })
    }

    /// Whether training changes it.
    pub fn is_trained(&self) -> bool {
        self.weight.track_op() || self.bias.track_op()
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, &self.bias, self.epsilon)?)
    }
}
