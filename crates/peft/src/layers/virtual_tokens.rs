//! Virtual tokens: trained vectors before every sequence, as rows of a table or as what a small network makes of them.

use candle_core::Tensor;
use ops::{Activation, Weight};

use crate::error::Result;

/// The vectors of virtual tokens: rows of a table, or what linear layers with an activation between them make of the rows. A clone
/// shares its tensors.
#[derive(Clone)]
pub(crate) struct VirtualTokens {
    pub embedding: Tensor, // (virtual tokens, columns)
    pub layers: Vec<(Weight, Tensor)>,
    /// Between two layers.
    pub activation: Activation,
}

impl VirtualTokens {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.embedding.dims()[0]
    }

    /// The virtual tokens, `(virtual tokens, columns)`.
    pub(crate) fn forward(&self) -> Result<Tensor> {
        let mut vectors = self.embedding.clone();
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            if index > 0 {
                vectors = ops::activation(&vectors, self.activation)?;
            }
            vectors = ops::linear(&vectors, weight, Some(bias))?;
        }
        Ok(vectors)
    }
}

/// The keys and values that one layer has before those of its tokens.
pub(crate) struct Prefix {
    pub key: Tensor,   // (virtual tokens, hidden)
    pub value: Tensor, // (virtual tokens, hidden)
}

impl Prefix {
    /// That of a layer, from the virtual tokens of all: `(virtual tokens, layers * 2 * hidden)`, of which each layer has a key
    /// and then a value.
    pub(crate) fn of_layer(all: &Tensor, index: usize, hidden: usize) -> Result<Self> {
        let part = |part: usize| ops::narrow_columns(all, part * hidden..(part + 1) * hidden);
        Ok(Self { key: part(2 * index)?, value: part(2 * index + 1)? })
    }

    pub(crate) fn virtual_tokens(&self) -> usize {
        self.key.dims()[0]
    }
}
