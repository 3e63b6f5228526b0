//! AdaLoRA's branch, `y += scaling P Λ Q dropout(x)`: parameters, initial values, merging.

use candle_core::Tensor;

use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{BaseLayer, ForwardPass, LinearAdapter};
use crate::parameters::Initializer;

/// The names of a branch's parameters, behind its module's path.
pub(super) struct Names {
    pub a: &'static str,
    pub b: &'static str,
    pub e: &'static str,
}

pub(super) const NAMES: Names = Names { a: "lora_A", b: "lora_B", e: "lora_E" };

/// What one linear layer's branch is made from.
pub(super) struct SvdBranch {
    pub(super) r: usize,
    pub(super) scaling: f64,
    pub(super) dropout: f64,
    pub(super) begins_as_nothing: bool,
}

impl SvdBranch {
    /// The branch of a layer with that weight, `(out, in)`.
    pub(super) fn build(self, builder: &mut Builder, path: &str, weight: &Tensor) -> Result<Box<dyn LinearAdapter>> {
        let (outputs, inputs) = weight.dims2()?;
        let Self { r, scaling, dropout, begins_as_nothing } = self;
        builder.count_as_peft(1); // `ranknum`, which no file holds
        let shapes = [(NAMES.a, [r, inputs]), (NAMES.b, [outputs, r]), (NAMES.e, [r, 1])];
        if r == 0 {
            shapes.iter().for_each(|(name, shape)| builder.empty_adapter(format!("{path}.{name}"), shape));
            return Ok(Box::new(Nothing));
        }
        // PEFT `tuners/adalora/layer.py`, `update_layer` and `reset_lora_parameters`.
        let normal = |standard_deviation| Initializer::Normal { standard_deviation };
        let vectors = normal(if begins_as_nothing { 0.02 } else { 1.0 });
        let values = if begins_as_nothing { Initializer::Zeros } else { normal(1.0) };
        let mut parameter =
            |(name, shape): (&str, [usize; 2]), start| builder.adapter(format!("{path}.{name}"), &shape, start);
        let [a, b, e] = shapes;
        let (a, b, e) = (parameter(a, vectors)?, parameter(b, vectors)?, parameter(e, values)?);
        Ok(Box::new(SvdLayer { a, b, e, scaling, dropout }))
    }
}

/// A branch of which no value is left. Its layer's bias may be trained all the same.
struct Nothing;

impl LinearAdapter for Nothing {
    fn forward(&self, base: &BaseLayer, x: &Tensor, _pass: &ForwardPass) -> Result<Tensor> {
        base.forward(x)
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

impl LinearAdapter for SvdLayer {
    /// `x Wᵀ + b + scaling * dropout(x) Aᵀ (B ∘ Eᵀ)ᵀ`: the values on B's columns, where PEFT has them on A's rows, which is the same.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        let b = ops::scale_columns(&self.b, &self.e, None)?; // (out, r)
        let dropout = pass.dropout(self.dropout);
        base.forward_with_branch(x, ops::Lora { a: &self.a, b: &b, scaling: self.scaling, dropout })
    }

    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let b = self.b.detach().broadcast_mul(&self.e.detach().t()?)?;
        let branch = ops::Lora { a: &self.a, b: &b, scaling: self.scaling, dropout: None };
        Ok(BaseLayer { weight: base.weight.merge(&branch)?, ..base })
    }
}
