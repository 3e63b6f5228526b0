//! An adapter's network: its parameters, their start, and where in a layer it stands.

use candle_core::Tensor;
use ops::{Activation, Dropout, Weight};

use super::{AdapterStyle, InitWeights};
use crate::error::Result;
use crate::layers::{LayerNorm, Pass};
use crate::parameters::{Builder, Start};

/// A part of a transformer layer that ends in a sum with a residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sublayer {
    Attention,
    FeedForward,
}

/// What flows through a sublayer, each `(tokens, hidden)`.
pub(crate) struct Flow<'a> {
    pub input: &'a Tensor,
    pub output: &'a Tensor,
    /// On the output, before the sum.
    pub dropout: Option<Dropout>,
    pub residual: &'a Tensor,
    /// What norms the sum; `None` where norms come first.
    pub norm: Option<&'a LayerNorm>,
}

impl Flow<'_> {
    /// `residual + dropout(output)`, and what an adapter adds to it, normed if there is a norm; `(tokens, hidden)`.
    pub fn end(&self, adapter: Option<&BottleneckAdapter>, pass: &Pass) -> Result<Tensor> {
        let sum = |x: &Tensor, residual: &Tensor, dropout| match self.norm {
            Some(norm) => norm.of_sum(x, residual, dropout),
            None => Ok(ops::add_dropout(x, residual, dropout)?),
        };
        match adapter {
            Some(adapter) => {
                let (branch, residual) = adapter.terms(self)?;
                sum(&branch, &residual, pass.dropout(adapter.dropout))
            }
            None => sum(self.output, self.residual, self.dropout),
        }
    }
}

/// `A(x) = scaling * (f(x Dᵀ + d) Uᵀ + u)`.
#[derive(Clone)]
pub(crate) struct BottleneckAdapter {
    style: AdapterStyle,
    down: (Weight, Tensor), // D (bottleneck, hidden), d (bottleneck)
    up: (Weight, Tensor),   // U (hidden, bottleneck), u (hidden)
    non_linearity: Activation,
    scaling: Option<Tensor>, // (hidden), all equal; None: 1
    dropout: f64,
}

impl BottleneckAdapter {
    /// The adapter of a sublayer whose last linear layer has that path, if the method puts one there. Its parameters are those of
    /// the module that the linear layer lies in, such as `bert.encoder.layer.0.output.adapter_down.weight`.
    pub fn new(builder: &mut Builder, sublayer: Sublayer, linear: &str, hidden: usize) -> Result<Option<Self>> {
        let Some(bottleneck) = builder.tuner.bottleneck(sublayer).cloned() else { return Ok(None) };
        let module = linear.rsplit_once('.').map_or(linear, |(module, _)| module);
        let size = bottleneck.size(hidden);
        let (down, up) = match bottleneck.init_weights {
            InitWeights::Bert => (NEAR_ZERO, NEAR_ZERO),
            InitWeights::MamAdapter => (Start::KaimingUniform { inputs: hidden }, Start::Zeros),
        };
        let precision = builder.precision.of_f32();
        let mut linear = |name: &str, inputs: usize, outputs: usize, start| {
            let weight = builder.adapter(format!("{module}.{name}.weight"), &[outputs, inputs], start)?;
            let bias = builder.adapter(format!("{module}.{name}.bias"), &[outputs], Start::Zeros)?;
            // Thin matrices that are trained: never rounded to bf16.
            Ok::<_, crate::Error>((Weight::new(weight, precision)?, bias))
        };
        let (down, up) = (linear("adapter_down", hidden, size, down)?, linear("adapter_up", size, hidden, up)?);
        let ones = || Tensor::ones(hidden, builder.dtype, builder.device);
        let scaling = (bottleneck.scaling != 1.0).then(|| ones()? * bottleneck.scaling).transpose()?;
        let (style, non_linearity, dropout) = (bottleneck.adapter_style, bottleneck.non_linearity, bottleneck.dropout);
        Ok(Some(Self { style, down, up, non_linearity, scaling, dropout }))
    }

    /// `A(x)`, where the style says what x is, and `residual + dropout(output)`, which it is added to; `(tokens, hidden)` each.
    fn terms(&self, flow: &Flow) -> Result<(Tensor, Tensor)> {
        let output = ops::dropout(flow.output, flow.dropout)?;
        let sum = ops::add_dropout(&output, flow.residual, None)?;
        let branch = match (self.style, flow.norm) {
            (AdapterStyle::Houlsby, _) => self.branch(&output)?,
            (AdapterStyle::Pfeiffer, Some(norm)) => self.branch(&norm.forward(&sum)?)?,
            (AdapterStyle::Pfeiffer, None) => self.branch(&sum)?,
            (AdapterStyle::Parallel, _) => self.branch(flow.input)?,
        };
        Ok((branch, sum))
    }

    fn branch(&self, x: &Tensor) -> Result<Tensor> {
        let [(down, down_bias), (up, up_bias)] = [&self.down, &self.up];
        let inner = ops::activation(&ops::linear(x, down, Some(down_bias))?, self.non_linearity)?; // (tokens, bottleneck)
        let outer = ops::linear(&inner, up, Some(up_bias))?; // (tokens, hidden)
        match &self.scaling {
            Some(scaling) => Ok(ops::scale_columns(&outer, scaling, None)?),
            None => Ok(outer),
        }
    }
}

/// BERT's start of linear layers.
const NEAR_ZERO: Start = Start::Normal { standard_deviation: 0.02 };
