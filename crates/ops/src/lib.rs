//! Differentiable operations that candle lacks, on packed sequences.
//!
//! candle's fused layer norm and softmax cut the gradient without an error, and its matmul computes a gradient for a frozen
//! weight too. The operations here have a backward pass of their own, and it computes only what a trainable parameter needs:
//! an argument that no [`candle_core::Var`] stands behind gets no gradient, and costs nothing.
//!
//! A batch is *packed*: hidden states are one `(tokens, hidden)` matrix over all sequences of the batch, and [`Segments`] says
//! where each sequence begins. There is no padding. Only [`attention`], [`rotary`], [`prepend`], [`segment_mean`] and [`first_tokens`] look at the segments.
//!
//! The operations are part of candle's graph, or, within [`record`], of a tape of their own, which is faster.
//!
//! All operations work in f32 and f64, on the CPU. The same inputs give the same bits: work is split by rows, never by the
//! number of threads, and dropout draws from a counter-based generator ([`Dropout`]).
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//!
//! # fn main() -> candle_core::Result<()> {
//! let device = Device::Cpu;
//! let hidden = Tensor::ones((5, 4), candle_core::DType::F32, &device)?; // (tokens, hidden): a sequence of 2 tokens, one of 3
//! let frozen = Tensor::ones((4, 4), candle_core::DType::F32, &device)?; // no gradient is computed for it
//! let weight = ops::Weight::new(frozen.clone(), ops::Precision::F32)?;
//! let bias = Var::zeros(4, candle_core::DType::F32, &device)?; // trainable
//! let segments = ops::Segments::from_lengths(&[2, 3]);
//! let output = ops::linear(&hidden, &weight, Some(&bias))?;
//! let gradients = ops::segment_mean(&output, &segments)?.sum_all()?.backward()?;
//! assert!(gradients.get(&bias).is_some() && gradients.get(&frozen).is_none());
//! # Ok(())
//! # }
//! ```

mod adamw;
mod autograd;
mod backend;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod interruption;
mod operations;
mod segments;
mod transfer;

pub use adamw::{
    AdamWSettings, AdamWSlot, AdamWStep, ClipFactor, Moments, ParameterMoments, adamw, adamw_step, squared_norm,
};
pub use autograd::tape::{Gradients, Recorded, record, without_gradients};
pub use backend::is_out_of_memory;
pub use cpu::memory::keep_freed_memory;
pub use cpu::threads::{limit_threads, most_threads, on_workers, threads};
#[cfg(feature = "cuda")]
pub use cuda::{
    Communicators, card, card_memory, card_peak_memory, count_launches, cuda_device, cuda_devices, cuda_stream,
    forget_card_peak_memory,
};
pub use interruption::{interruptible, is_interruption, uninterrupted};
pub use operations::activation::{Activation, activation};
pub use operations::add::{add, scale, sub};
pub use operations::attention::{AttentionOptions, RelativeRows, Scores, attention};
pub use operations::block_product::block_product;
pub use operations::bounded_rows::bounded_rows;
pub use operations::cayley::cayley;
pub use operations::cayley_neumann::cayley_neumann;
pub use operations::columns::{add_bias, scale_columns};
pub use operations::concatenation::{concatenate_columns, narrow_columns};
pub use operations::conversion::{to_f32, to_precision};
pub use operations::dropout::{Dropout, add_dropout, dropout};
pub use operations::embedding::embedding_sum;
pub use operations::gate::gate;
pub use operations::linear::{LinearLayer, Lora, Precision, SharedWeights, Weight, linear, linear_layers, lora_linear};
pub use operations::loss::{cross_entropy, mean_squared_error};
pub use operations::matrix_product::{kronecker, matrix_product};
pub use operations::normalization::{add_norm, layer_norm};
pub use operations::orthogonality::{Orthonormal, orthogonality};
pub use operations::pooling::{first_tokens, segment_mean};
pub use operations::prepend::prepend;
pub use operations::rotary::rotary;
pub use operations::skew_symmetric::skew_symmetric;
pub use segments::Segments;
pub use transfer::to_device;
