//! The network of a bottleneck adapter, `A(x) = s (f(x Dᵀ + d) Uᵀ + u)`: parameters, initial values, and what it is added to.

use candle_core::Tensor;
use ops::{Activation, Weight};

use super::{AdapterStyle, Bottleneck, InitWeights};
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{SublayerAdapter, SublayerOutput};
use crate::parameters::Initializer;

/// `A(x) = scaling * (f(x Dᵀ + d) Uᵀ + u)`.
pub(super) struct BottleneckAdapter {
    style: AdapterStyle,
    down: (Weight, Tensor), // D (bottleneck, hidden), d (bottleneck)
    up: (Weight, Tensor),   // U (hidden, bottleneck), u (hidden)
    non_linearity: Activation,
    scaling: Option<Tensor>, // (hidden), all equal; None: 1
    dropout: f64,
}

impl BottleneckAdapter {
    /// The adapter of a sublayer whose last linear layer has that path. Its parameters are those of the module that the linear layer
    /// lies in, such as `bert.encoder.layer.0.output.adapter_down.weight`.
    pub fn new(builder: &mut Builder, bottleneck: &Bottleneck, linear: &str, hidden: usize) -> Result<Self> {
        let module = linear.rsplit_once('.').map_or(linear, |(module, _)| module);
        let size = bottleneck.size(hidden);
        let (down, up) = match bottleneck.init_weights {
            InitWeights::Bert => (NEAR_ZERO, NEAR_ZERO),
            InitWeights::MamAdapter => (Initializer::KaimingUniform { inputs: hidden }, Initializer::Zeros),
        };
        let precision = builder.precision.of_f32();
        let mut linear = |name: &str, inputs: usize, outputs: usize, start| {
            let weight = builder.adapter(format!("{module}.{name}.weight"), &[outputs, inputs], start)?;
            let bias = builder.adapter(format!("{module}.{name}.bias"), &[outputs], Initializer::Zeros)?;
            // Thin matrices that are trained: never rounded to bf16.
            Ok::<_, crate::Error>((Weight::new(weight, precision)?, bias))
        };
        let (down, up) = (linear("adapter_down", hidden, size, down)?, linear("adapter_up", size, hidden, up)?);
        let ones = || Tensor::ones(hidden, builder.dtype, builder.device);
        let scaling = (bottleneck.scaling != 1.0).then(|| ones()? * bottleneck.scaling).transpose()?;
        let (style, non_linearity, dropout) = (bottleneck.adapter_style, bottleneck.non_linearity, bottleneck.dropout);
        Ok(Self { style, down, up, non_linearity, scaling, dropout })
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

impl SublayerAdapter for BottleneckAdapter {
    /// `A(x)`, where the style says what x is, and `residual + dropout(output)`, which it is added to; `(tokens, hidden)` each.
    fn terms(&self, flow: &SublayerOutput) -> Result<(Tensor, Tensor)> {
        let output = ops::dropout(flow.output, flow.dropout)?;
        let sum = ops::add(&output, flow.residual)?;
        let branch = match (self.style, flow.norm) {
            (AdapterStyle::Houlsby, _) => self.branch(&output)?,
            (AdapterStyle::Pfeiffer, Some(norm)) => self.branch(&norm.forward(&sum)?)?,
            (AdapterStyle::Pfeiffer, None) => self.branch(&sum)?,
            (AdapterStyle::Parallel, _) => self.branch(flow.input)?,
        };
        Ok((branch, sum))
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }
}

/// BERT's initial values of linear layers.
const NEAR_ZERO: Initializer = Initializer::Normal { standard_deviation: 0.02 };
