//! OFT's rotation of a layer's input, `y = (x R) Wᵀ + b`: the blocks of R, their bound, merging.

use candle_core::{Tensor, Var};
use ops::{Precision, Weight};

use super::Oft;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::layers::{BaseLayer, ForwardPass, LinearAdapter};
use crate::parameters::Initializer;

/// The block-diagonal R of one layer.
pub(super) struct Rotation {
    vectors: Tensor,      // (blocks, size (size - 1) / 2): what is above the diagonal of each block's Q
    terms: Option<usize>, // of the series in Q; None: the exact transform
    bound: Option<f64>,   // of each vector's norm
    precision: Precision,
}

impl Rotation {
    /// That of a layer of so many inputs.
    pub(super) fn build(builder: &mut Builder, path: &str, inputs: usize, oft: &Oft) -> Result<Box<dyn LinearAdapter>> {
        let size = oft.block_size_of(inputs);
        if size < 2 {
            let (field, found, expected) = ("oft_block_size", size.to_string(), "at least 2, or nothing is rotated");
            return Err(Error::Adapter { method: "OFT", field, found, expected });
        }
        let blocks = if oft.block_share { 1 } else { inputs / size };
        let start = Initializer::Normal { standard_deviation: if oft.init_weights { 0.0 } else { 0.1 } };
        Ok(Box::new(Self {
            vectors: builder.adapter(format!("{path}.oft_R.weight"), &[blocks, size * (size - 1) / 2], start)?,
            terms: oft.use_cayley_neumann.then_some(oft.num_cayley_neumann_terms),
            // Each number of a vector stands in Q twice.
            bound: oft.coft.then(|| oft.eps / (2.0 * blocks as f64).sqrt()),
            precision: builder.precision,
        }))
    }

    /// The blocks of R, `(blocks, size, size)`.
    fn blocks(&self, is_training: bool) -> Result<Tensor> {
        let mut vectors = self.vectors.clone();
        if let Some(bound) = self.bound {
            vectors = ops::bounded_rows(&vectors, bound)?;
            if is_training {
                // The optimizer goes on from there, as in PEFT (`tuners/oft/layer.py`, `OFTRotationModule.forward`).
                Var::from_tensor(&self.vectors)?.set(&vectors)?;
            }
        }
        let skew = ops::skew_symmetric(&vectors)?;
        Ok(self.terms.map_or_else(|| ops::cayley(&skew), |terms| ops::cayley_neumann(&skew, terms))?)
    }
}

impl LinearAdapter for Rotation {
    /// `(x R) Wᵀ + b`.
    fn forward(&self, base: &BaseLayer, x: &Tensor, pass: &ForwardPass) -> Result<Tensor> {
        base.forward(&ops::block_product(x, &self.blocks(pass.is_training())?)?)
    }

    /// `W Rᵀ`.
    fn merge(&self, base: BaseLayer) -> Result<BaseLayer> {
        let weight = ops::block_product(&base.weight.unrounded()?, &self.blocks(false)?.detach().t()?)?;
        Ok(BaseLayer { weight: Weight::new(weight, self.precision)?, ..base })
    }
}
