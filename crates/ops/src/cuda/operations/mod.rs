//! Operations that have kernels: a file for each, of the name of its CPU file.

mod activation;
mod add;
mod attention;
mod columns;
mod concatenation;
pub(crate) mod conversion;
mod dropout;
mod embedding;
mod gate;
pub(crate) mod linear;
pub(crate) mod linear_layers;
mod loss;
mod normalization;
mod pooling;
mod prepend;
mod rotary;

use std::any::Any;

use super::GpuOperation;
use crate::autograd::Operation;
use crate::operations as cpu;

/// The kernels of an operation, if it has such.
pub(crate) fn find(operation: &impl Operation) -> Option<&dyn GpuOperation> {
    let operation: &dyn Any = operation;
    macro_rules! any_of {
        ($($kind:ty),* $(,)?) => {{
            $(if let Some(found) = operation.downcast_ref::<$kind>() {
                return Some(found);
            })*
            None
        }};
    }
    any_of!(
        cpu::activation::Activation,
        cpu::add::AddScaled,
        cpu::add::Scale,
        cpu::attention::Attention,
        cpu::columns::AddBias,
        cpu::columns::ScaleColumns,
        cpu::concatenation::ConcatenateColumns,
        cpu::concatenation::NarrowColumns,
        cpu::conversion::Conversion,
        cpu::dropout::AddDropout,
        cpu::dropout::Mask,
        cpu::embedding::EmbeddingSum,
        cpu::gate::Gate,
        cpu::linear::Linear,
        cpu::linear::lora::LoraLinear,
        cpu::loss::CrossEntropy,
        cpu::loss::MeanSquaredError,
        cpu::normalization::AddNorm,
        cpu::normalization::LayerNorm,
        cpu::pooling::FirstTokens,
        cpu::pooling::SegmentMean,
        cpu::prepend::Prepend,
        cpu::rotary::Rotary,
    )
}
