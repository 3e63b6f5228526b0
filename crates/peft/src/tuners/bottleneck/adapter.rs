//! The network of a bottleneck adapter, `A(x) = s (f(x Dᵀ + d) Uᵀ + u)`: parameters, initial values, and what it is added to.

use candle_core::Tensor;
use ops::{Activation, Weight};

use super::{AdapterStyle, Bottleneck, InitWeights};
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{SublayerAdapter, SublayerOutput};
use crate::parameters::Initializer;

/// One of the two layers of an adapter.
pub(in crate::tuners) trait Projection: Send + Sync {
    /// `(tokens, outputs)`, of x `(tokens, inputs)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}

/// `A(x) = scaling * up(f(down(x)))`.
pub(in crate::tuners) struct BottleneckAdapter<P> {
    style: AdapterStyle,
    down: P, // from hidden to bottleneck
    up: P,   // from bottleneck to hidden
    non_linearity: Activation,
    scaling: Option<Tensor>, // (hidden), all equal; None: 1
    dropout: f64,
}

impl<P: Projection> BottleneckAdapter<P> {
    /// The adapter of these two layers, down and up.
    pub(crate) fn new(builder: &Builder, bottleneck: &Bottleneck, hidden: usize, [down, up]: [P; 2]) -> Result<Self> {
        let ones = || Tensor::ones(hidden, builder.dtype, builder.device);
        let scaling = (bottleneck.scaling != 1.0).then(|| ones()? * bottleneck.scaling).transpose()?;
        let (style, non_linearity, dropout) = (bottleneck.adapter_style, bottleneck.non_linearity, bottleneck.dropout);
        Ok(Self { style, down, up, non_linearity, scaling, dropout })
    }

    fn branch(&self, x: &Tensor) -> Result<Tensor> {
        let inner = ops::activation(&self.down.forward(x)?, self.non_linearity)?; // (tokens, bottleneck)
        let outer = self.up.forward(&inner)?; // (tokens, hidden)
        match &self.scaling {
            Some(scaling) => Ok(ops::scale_columns(&outer, scaling, None)?),
            None => Ok(outer),
        }
    }
}

impl<P: Projection> SublayerAdapter for BottleneckAdapter<P> {
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

/// `x Wᵀ + b`.
pub(super) struct Dense {
    weight: Weight, // (outputs, inputs)
    bias: Tensor,   // (outputs)
}

impl Dense {
    /// The two layers of the adapter of a sublayer whose last linear layer has that path.
    pub(super) fn pair(
        builder: &mut Builder,
        bottleneck: &Bottleneck,
        linear: &str,
        hidden: usize,
    ) -> Result<[Self; 2]> {
        let (module, size) = (module_of(linear), bottleneck.size(hidden));
        let (down, up) = match bottleneck.init_weights {
            InitWeights::Bert => (NEAR_ZERO, NEAR_ZERO),
            InitWeights::MamAdapter => (Initializer::KaimingUniform { inputs: hidden }, Initializer::Zeros),
        };
        let precision = builder.precision.of_f32();
        let mut layer = |name: &str, inputs: usize, outputs: usize, start| {
            let weight = builder.adapter(format!("{module}.{name}.weight"), &[outputs, inputs], start)?;
            let bias = builder.adapter(format!("{module}.{name}.bias"), &[outputs], Initializer::Zeros)?;
            // Thin matrices that are trained: never rounded to bf16.
            Ok::<_, crate::Error>(Self { weight: Weight::new(weight, precision)?, bias })
        };
        Ok([layer("adapter_down", hidden, size, down)?, layer("adapter_up", size, hidden, up)?])
    }
}

impl Projection for Dense {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, Some(&self.bias))?)
    }
}

/// The module that a sublayer's last linear layer lies in, of which the adapter's parameters are, such as
/// `bert.encoder.layer.0.output.adapter_down.weight`.
pub(in crate::tuners) fn module_of(linear: &str) -> &str {
    linear.rsplit_once('.').map_or(linear, |(module, _)| module)
}

/// BERT's initial values of linear layers.
const NEAR_ZERO: Initializer = Initializer::Normal { standard_deviation: 0.02 };
