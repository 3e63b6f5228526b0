//! What the methods of prompt learning share: virtual tokens are made of a table of new parameters, and maybe a network behind it.
//!
//! Virtual tokens have the first positions, of type 0, and a sequence's tokens those after them, as in PEFT (`peft_model.py`,
//! `PeftModelForSequenceClassification`), where also the head reads the vector of the first virtual token if they stand at the
//! input. What knows of distances counts virtual tokens, too.

use candle_core::Tensor;
use ops::{Activation, Weight};

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::layers::VirtualTokens;
use crate::parameters::{Initializer, PROMPT_ENCODER};

/// A table of `rows` and `columns`.
pub(super) fn table(
    builder: &mut Builder,
    rows: usize,
    columns: usize,
    initializer: Initializer,
) -> Result<VirtualTokens> {
    Ok(plain(builder.adapter(path(), &[rows, columns], initializer)?))
}

/// A table that starts with these values, `(virtual tokens, columns)`; they are asked for with the table's path.
pub(super) fn table_from(
    builder: &mut Builder,
    [rows, columns]: [usize; 2],
    values: impl FnOnce(&Builder, &str) -> Result<Tensor>,
) -> Result<VirtualTokens> {
    builder.allowance.check(&path(), &[rows, columns])?;
    let values = values(builder, &path())?;
    Ok(plain(builder.adapter_from(path(), values)?))
}

fn path() -> String {
    format!("{PROMPT_ENCODER}.embedding.weight")
}

fn plain(embedding: Tensor) -> VirtualTokens {
    VirtualTokens { embedding, layers: Vec::new(), activation: Activation::Tanh }
}

/// A table under a network of linear layers with an activation between them. Layer i, from the width before it to `widths[i]`,
/// is `{name}.{2 i}`, as in torch's `Sequential`, and starts as torch's `Linear` does: uniform in `±1 / sqrt(inputs)`; the last
/// one as zeros where that is asked for.
pub(super) fn with_network(
    table: VirtualTokens,
    builder: &mut Builder,
    name: &str,
    widths: &[usize],
    activation: Activation,
    ends_in_zeros: bool,
) -> Result<VirtualTokens> {
    let (mut inputs, precision) = (table.embedding.dim(1)?, builder.precision.of_f32());
    let mut layers = Vec::with_capacity(widths.len());
    for (index, &outputs) in widths.iter().enumerate() {
        let is_last = index + 1 == widths.len();
        let initializer =
            if ends_in_zeros && is_last { Initializer::Zeros } else { Initializer::KaimingUniform { inputs } };
        let mut parameter = |part: &str, shape: &[usize]| {
            builder.adapter(format!("{PROMPT_ENCODER}.{name}.{}.{part}", 2 * index), shape, initializer)
        };
        let (weight, bias) = (parameter("weight", &[outputs, inputs])?, parameter("bias", &[outputs])?);
        layers.push((Weight::new(weight, precision)?, bias));
        inputs = outputs;
    }
    Ok(VirtualTokens { layers, activation, ..table })
}

/// Fields of a base model's sizes, in the files of every method of prompt learning.
pub(super) const SIZES: [&str; 4] = ["token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"];

/// Fails where `found`, the field of a method, is 0.
pub(super) fn at_least_one(method: &'static str, field: &'static str, found: usize) -> Result<()> {
    match found {
        0 => Err(Error::Adapter { method, field, found: "0".into(), expected: "at least 1" }),
        _ => Ok(()),
    }
}
