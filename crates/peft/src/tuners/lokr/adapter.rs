//! LoKr's change of a weight, `ΔW = s C ⊗ D`: factors, their shapes and initial values.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::LoKr;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::parameters::Initializer;
use crate::tuners::lycoris::{Place, WeightChange};

/// How LoKr's C and D start (PEFT's `init_weights`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false or \"lycoris\"")]
pub enum InitLoKrWeights {
    /// `true`: C zero and D Kaiming-uniform. `false`: both Kaiming-uniform, which serves tests.
    Switch(bool),
    /// D zero and C Kaiming-uniform.
    Named(LycorisInit),
}

/// The start of LyCORIS's own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LycorisInit {
    /// `"lycoris"`.
    Lycoris,
}

/// The matrices of one layer.
pub(super) struct Kronecker {
    left: Side,  // C (out₁, in₁)
    right: Side, // D (out₂, in₂)
    scaling: f64,
}

/// One matrix, whole or as a product of two.
enum Side {
    Whole(Tensor),
    Product(Tensor, Tensor), // (rows, r), (r, columns)
}

impl Side {
    fn matrix(&self) -> Result<Tensor> {
        match self {
            Self::Whole(matrix) => Ok(matrix.clone()),
            Self::Product(a, b) => Ok(ops::matrix_product(a, b, 1.0)?),
        }
    }
}

impl Kronecker {
    /// Of a layer of shape `(out₁ out₂, in₁ in₂)`.
    pub(super) fn new(builder: &mut Builder, place: &Place, lokr: &LoKr) -> Result<Self> {
        let &Place { path, outputs, inputs, r, scaling } = place;
        let (rows, columns) = (factors(outputs, lokr.decompose_factor), factors(inputs, lokr.decompose_factor));
        let mut parameter = |name: &str, shape: [usize; 2], is_zero: bool| {
            let start = if is_zero { Initializer::Zeros } else { Initializer::KaimingUniform { inputs: shape[1] } };
            builder.adapter(format!("{path}.{name}"), &shape, start)
        };
        // Twice the rank is below it, said so that no rank is too large to double.
        let is_low = |rows: usize, columns: usize| r < rows.max(columns).div_ceil(2);
        // Which of a product's two factors is zero, or else the whole.
        let mut side = |name: &str, [rows, columns]: [usize; 2], is_product: bool, zero: [bool; 2]| {
            if !is_product {
                return Ok(Side::Whole(parameter(name, [rows, columns], zero.contains(&true))?));
            }
            let a = parameter(&format!("{name}_a"), [rows, r], zero[0])?;
            Ok::<_, Error>(Side::Product(a, parameter(&format!("{name}_b"), [r, columns], zero[1])?))
        };
        let is_left_zero = lokr.init_weights == InitLoKrWeights::Switch(true);
        let is_right_zero = lokr.init_weights == InitLoKrWeights::Named(LycorisInit::Lycoris);
        let is_product = lokr.decompose_both && is_low(rows.0, columns.0);
        let left = side("lokr_w1", [rows.0, columns.0], is_product, [is_left_zero, false])?;
        let right = side("lokr_w2", [rows.1, columns.1], is_low(rows.1, columns.1), [false, is_right_zero])?;
        Ok(Self { left, right, scaling })
    }
}

impl WeightChange for Kronecker {
    fn weight(&self) -> Result<Tensor> {
        Ok(ops::kronecker(&self.left.matrix()?, &self.right.matrix()?, self.scaling)?)
    }
}

/// Two factors of `dimension`: `factor` and the rest where it divides, else the two nearest to each other of which the lower is at most
/// `factor`; -1: no bound (PEFT `tuners/lokr/layer.py`, `factorization`).
fn factors(dimension: usize, factor: i64) -> (usize, usize) {
    let bound = usize::try_from(factor).unwrap_or(dimension);
    if factor > 0 && dimension.is_multiple_of(bound) {
        return (bound, dimension / bound);
    }
    let lower = (1..=bound.max(1)).take_while(|lower| lower * lower <= dimension);
    let lower = lower.filter(|lower| dimension.is_multiple_of(*lower)).last().unwrap_or(1);
    (lower, dimension / lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of PEFT's docstring (`tuners/lokr/layer.py`, `factorization`), and what it gives for the others.
    #[test]
    fn two_factors_of_a_width_are_those_that_peft_finds() {
        for (dimension, factor, expected) in [
            (256, -1, (16, 16)),
            (128, -1, (8, 16)),
            (127, -1, (1, 127)),
            (128, 4, (4, 32)),
            (768, -1, (24, 32)),
            (3072, -1, (48, 64)),
            (6, 4, (2, 3)),
            (12, 5, (3, 4)),
            (30, 4, (3, 10)),
            (32, 5, (4, 8)),
            (64, 16, (16, 4)),
            (100, 64, (10, 10)),
            (2, -1, (1, 2)),
            (1, -1, (1, 1)),
        ] {
            assert_eq!(factors(dimension, factor), expected, "{dimension} by {factor}");
        }
    }
}
