//! What makes virtual tokens: a table, and maybe a network behind it.

use candle_core::Tensor;
use ops::{Activation, Weight};

use crate::error::Result;
use crate::parameters::{Builder, Start};

/// PEFT's name for what makes virtual tokens, and the first part of its parameters' paths.
const PATH: &str = "prompt_encoder";

/// Whether a parameter is one of what makes virtual tokens, by its path.
pub(crate) fn is_of_prompt(name: &str) -> bool {
    name.split('.').next() == Some(PATH)
}

/// The vectors of virtual tokens: rows of a table, or what a network makes of them. A clone shares its tensors.
#[derive(Clone)]
pub(crate) struct PromptEncoder {
    embedding: Tensor, // (virtual tokens, columns)
    layers: Vec<(Weight, Tensor)>,
    /// Between two layers.
    activation: Activation,
}

impl PromptEncoder {
    /// A table of `rows` and `columns`.
    pub fn table(builder: &mut Builder, rows: usize, columns: usize, start: Start) -> Result<Self> {
        let embedding = builder.adapter(format!("{PATH}.embedding.weight"), &[rows, columns], start)?;
        Ok(Self::of(embedding))
    }

    /// A table that starts with these values, `(virtual tokens, columns)`.
    pub fn table_from(builder: &mut Builder, values: impl FnOnce(&Builder, &str) -> Result<Tensor>) -> Result<Self> {
        let path = format!("{PATH}.embedding.weight");
        let values = values(builder, &path)?;
        Ok(Self::of(builder.adapter_from(path, values)?))
    }

    fn of(embedding: Tensor) -> Self {
        Self { embedding, layers: Vec::new(), activation: Activation::Tanh }
    }

    /// The same under a network of linear layers with an activation between them. Layer i, from the width before it to `widths[i]`,
    /// is `{name}.{2 i}`, as in torch's `Sequential`, and starts as torch's `Linear` does: uniform in `±1 / sqrt(inputs)`; the last
    /// one as zeros where that is asked for.
    pub fn under(
        self,
        builder: &mut Builder,
        name: &str,
        widths: &[usize],
        activation: Activation,
        ends_in_zeros: bool,
    ) -> Result<Self> {
        let (mut inputs, precision) = (self.embedding.dim(1)?, builder.precision.of_f32());
        let mut layers = Vec::with_capacity(widths.len());
        for (index, &outputs) in widths.iter().enumerate() {
            let is_last = index + 1 == widths.len();
            let start = if ends_in_zeros && is_last { Start::Zeros } else { Start::KaimingUniform { inputs } };
            let mut parameter = |part: &str, shape: &[usize]| {
                builder.adapter(format!("{PATH}.{name}.{}.{part}", 2 * index), shape, start)
            };
            let (weight, bias) = (parameter("weight", &[outputs, inputs])?, parameter("bias", &[outputs])?);
            layers.push((Weight::new(weight, precision)?, bias));
            inputs = outputs;
        }
        Ok(Self { layers, activation, ..self })
    }

    /// The virtual tokens, `(virtual tokens, columns)`.
    pub fn forward(&self) -> Result<Tensor> {
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
    pub fn of_layer(all: &Tensor, index: usize, hidden: usize) -> Result<Self> {
        let part = |part: usize| ops::narrow_columns(all, part * hidden..(part + 1) * hidden);
        Ok(Self { key: part(2 * index)?, value: part(2 * index + 1)? })
    }

    pub fn virtual_tokens(&self) -> usize {
        self.key.dims()[0]
    }
}
