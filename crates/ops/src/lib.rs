//! Differentiable operations that candle lacks, on packed sequences.
//!
//! candle's fused layer norm and softmax cut the gradient without an error, and its matmul computes a gradient for a frozen
//! weight too. The operations here have a backward pass of their own, and it computes only what a trainable parameter needs:
//! an argument that no [`candle_core::Var`] stands behind gets no gradient, and costs nothing.
//!
//! A batch is *packed*: hidden states are one `(tokens, hidden)` matrix over all sequences of the batch, and [`Segments`] says
//! where each sequence begins. There is no padding. Only [`attention`], [`relative_attention`],
//! [`rotary`], [`prepend`], [`segment_mean`] and [`first_tokens`] look at the segments.
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
//! let weight = ops::Weight::new(frozen.clone(), ops::Precision::Exact)?;
//! let bias = Var::zeros(4, candle_core::DType::F32, &device)?; // trainable
//! let segments = ops::Segments::from_lengths(&[2, 3]);
//! let output = ops::linear(&hidden, &weight, Some(&bias))?;
//! let gradients = ops::segment_mean(&output, &segments)?.sum_all()?.backward()?;
//! assert!(gradients.get(&bias).is_some() && gradients.get(&frozen).is_none());
//! # Ok(())
//! # }
//! ```

mod activation;
mod adamw;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
mod block_product;
mod bounded_rows;
mod cayley;
mod cayley_neumann;
mod columns;
mod concatenation;
mod conversion;
#[cfg(feature = "cuda")]
mod cuda;
mod dropout;
mod embedding;
mod float;
mod gate;
mod linear;
mod loss;
mod matrix;
mod matrix_product;
mod memory;
mod normalization;
mod operation;
mod orthogonality;
mod panels;
mod prefix;
mod product;
mod relative_attention;
mod rotary;
mod segments;
mod shared_weights;
mod skew_symmetric;
mod tape;
mod tiles;
mod transpose;

pub use activation::{Activation, activation};
pub use adamw::{
    AdamWSettings, AdamWSlot, AdamWStep, ClipFactor, Moments, ParameterMoments, adamw, adamw_step, squared_norm,
};
pub use attention::attention;
pub use block_product::block_product;
pub use bounded_rows::bounded_rows;
pub use cayley::cayley;
pub use cayley_neumann::cayley_neumann;
pub use columns::{add_bias, scale_columns};
pub use concatenation::{concatenate_columns, narrow_columns};
pub use conversion::{to_exact, to_precision};
#[cfg(feature = "cuda")]
pub use cuda::{Communicators, card, card_memory, card_peak_memory, cuda_device, cuda_devices, cuda_stream};
pub use dropout::{Dropout, add_dropout, dropout};
pub use embedding::embedding_sum;
pub use gate::gate;
pub use linear::{Lora, Precision, Weight, linear, lora_linear};
pub use loss::{cross_entropy, mean_squared_error};
pub use matrix::{on_workers, threads};
pub use matrix_product::{kronecker, matrix_product};
pub use memory::keep_freed_memory;
pub use normalization::{add_norm, layer_norm};
pub use orthogonality::{Orthonormal, orthogonality};
pub use prefix::prepend;
pub use relative_attention::{Relative, RelativeRows, relative_attention};
pub use rotary::rotary;
pub use segments::{Segments, first_tokens, segment_mean};
pub use shared_weights::SharedWeights;
pub use skew_symmetric::skew_symmetric;
pub use tape::{Gradients, Recorded, record, without_gradients};
