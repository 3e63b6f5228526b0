//! LoHa's change of a weight, `ΔW = s (A₁ B₁) ∘ (A₂ B₂)`: factors and their initial values.

use candle_core::Tensor;

use crate::builder::Builder;
use crate::error::Result;
use crate::parameters::Initializer;
use crate::tuners::lycoris::{Place, WeightChange};

/// The factors of one layer.
pub(super) struct Hadamard {
    first: (Tensor, Tensor),  // A₁ (out, r), B₁ (r, in)
    second: (Tensor, Tensor), // A₂ (out, r), B₂ (r, in)
    scaling: f64,
}

impl Hadamard {
    pub(super) fn new(builder: &mut Builder, place: &Place, begins_as_nothing: bool) -> Result<Self> {
        let &Place { path, outputs, inputs, r, scaling } = place;
        let mut factor = |name: &str, shape: [usize; 2], is_zero: bool| {
            let start = if is_zero { Initializer::Zeros } else { Initializer::KaimingUniform { inputs: shape[1] } };
            builder.adapter(format!("{path}.{name}"), &shape, start)
        };
        let first = (factor("hada_w1_a", [outputs, r], false)?, factor("hada_w1_b", [r, inputs], false)?);
        let second = (factor("hada_w2_a", [outputs, r], false)?, factor("hada_w2_b", [r, inputs], begins_as_nothing)?);
        Ok(Self { first, second, scaling })
    }
}

impl WeightChange for Hadamard {
    fn weight(&self) -> Result<Tensor> {
        let first = ops::matrix_product(&self.first.0, &self.first.1, self.scaling)?; // (out, in)
        let second = ops::matrix_product(&self.second.0, &self.second.1, 1.0)?; // (out, in)
        Ok(ops::gate(&first, &second)?)
    }
}
