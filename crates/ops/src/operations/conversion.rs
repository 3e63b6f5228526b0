//! The type of hidden states.

use candle_core::{DType, Result, Tensor};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::operations::linear::Precision;

/// Hidden states as the layers of that precision take them: with bf16 products on a GPU, rounded to bf16. On the CPU they are
/// f32 whatever the products, and this is the tensor itself.
pub fn to_precision(x: &Tensor, precision: Precision) -> Result<Tensor> {
    match precision {
        Precision::Bf16 if x.device().is_cuda() && x.dtype() == DType::F32 => apply(Conversion, &[x]),
        _ => Ok(x.clone()),
    }
}

/// Hidden states in f32, as the classifier takes them; of any type but bf16 the tensor itself.
pub fn to_f32(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::BF16 { apply(Conversion, &[x]) } else { Ok(x.clone()) }
}

/// To the other one of the two types that a GPU knows; on the CPU there is one only.
pub(crate) struct Conversion;

impl Operation for Conversion {
    const NAME: &'static str = "conversion";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        Ok(Output::new(inputs[0].data.to_vec(), inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { .. } = pass;
        Ok(vec![Gradient::Upstream])
    }
}
