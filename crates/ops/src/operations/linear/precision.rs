//! What products of linear layers are rounded to.

use serde::{Deserialize, Serialize};

use crate::cpu::products::tiles::Number;

/// What the numbers of a linear layer's products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Precision {
    /// Nothing: products in the tensors' own type, which is f32 for all training.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// bf16, the sums in f32. Parameters, gradients and all other operations stay in f32.
    #[serde(rename = "bf16")]
    Bf16,
    /// TF32 on a GPU: 10 bits of an f32's 23 behind the point, with its exponent, the sums in f32 (CUDA programming guide, "Alternate
    /// Floating Point"). As torch's `allow_tf32` it is of the products of all linear layers, adapters' among them, and does nothing
    /// where the device has no such products: on the CPU it is f32.
    #[serde(rename = "tf32")]
    Tf32,
}

impl Precision {
    /// bf16 where the processor has an instruction for its products (AVX-512 BF16), else f32.
    pub fn fastest() -> Self {
        if Number::Bf16.is_native() { Self::Bf16 } else { Self::F32 }
    }

    /// That of what stays f32 beside products of bf16: adapters' own layers, and the classifier.
    pub fn of_f32(self) -> Self {
        if self == Self::Bf16 { Self::F32 } else { self }
    }
}
