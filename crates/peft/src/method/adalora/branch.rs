//! The branch itself: its parameters, their start, and the formula.

use candle_core::Tensor;

use crate::error::Result;
use crate::layers::{Adapter, BaseLayer, Pass};
use crate::method::lora::beside;
use crate::parameters::{Builder, Start};

/// The names of a branch's parameters, behind its module's path.
pub(crate) struct Names {
    pub a: &'static str,
    pub b: &'static str,
    pub e: &'static str,
}

pub(crate) const NAMES: Names = Names { a: "lora_A", b: "lora_B", e: "lora_E" };

/// What one linear layer's branch is made from.
pub(crate) struct SvdBranch {
    pub(super) r: usize,
    pub(super) scaling: f64,
    pub(super) dropout: f64,
    /// It begins as nothing.
    pub(super) is_started: bool,
}

impl SvdBranch {
    /// The branch of a layer with that weight, `(out, in)`.
    pub fn build(self, builder: &mut Builder, path: &str, weight: &Tensor) -> Result<Box<dyn Adapter>> {
        let (outputs, inputs) = weight.dims2()?;
        let Self { r, scaling, dropout, is_started } = self;
        builder.count_as_peft(1); // `ranknum`, which no file holds
        let shapes = [(NAMES.a, [r, inputs]), (NAMES.b, [outputs, r]), (NAMES.e, [r, 1])];
        if r == 0 {
            shapes.iter().for_each(|(name, shape)| builder.empty_adapter(format!("{path}.{name}"), shape));
            return Ok(Box::new(Nothing));
        }
        // PEFT `tuners/adalora/layer.py`, `update_layer` and `reset_lora_parameters`.
        let normal = |standard_deviation| Start::Normal { standard_deviation };
        let vectors = normal(if is_started { 0.02 } else { 1.0 });
        let values = if is_started { Start::Zeros } else { normal(1.0) };
        let mut parameter =
            |(name, shape): (&str, [usize; 2]), start| builder.adapter(format!("{path}.{name}"), &shape, start);
        let [a, b, e] = shapes;
        let (a, b, e) = (parameter(a, vectors)?, parameter(b, vectors)?, parameter(e, values)?);
        Ok(Box::new(SvdLayer { a, b, e, scaling, dropout }))
    }
}

/// A branch of which no value is left. Its layer's bias may be trained all the same.
struct Nothing;

impl Adapter for Nothing {
    fn forward(&self, base: &BaseLayer, x: &Tensor, _pass: &Pass) -> Result<Tensor> {
        Ok(ops::linear(x, &base.weight, base.bias.as_ref())?)
    }

    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        Ok(base)
    }
}

struct SvdLayer {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    e: Tensor, // (r, 1)
    scaling: f64,
    dropout: f64,
}

impl Adapter for SvdLayer {
    /// `x Wᵀ + b + scaling * dropout(x) Aᵀ (B ∘ Eᵀ)ᵀ`: the values on B's columns, where PEFT has them on A's rows, which is the same.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let b = ops::scale_columns(&self.b, &self.e, None)?; // (out, r)
        let dropout = pass.dropout(self.dropout);
        beside(base, x, ops::Lora { a: &self.a, b: &b, scaling: self.scaling, dropout })
    }

    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let b = self.b.detach().broadcast_mul(&self.e.detach().t()?)?;
        let branch = ops::Lora { a: &self.a, b: &b, scaling: self.scaling, dropout: None };
        Ok(BaseLayer { weight: base.weight.merge(&branch)?, ..base })
    }
}
