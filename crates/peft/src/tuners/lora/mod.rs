//! LoRA (Hu et al. 2021): `x Wᵀ + b + (α / r) dropout(x) Aᵀ Bᵀ`, and its variants.

mod adapter;
mod combine;
mod config;
mod conversion;
mod eva;
mod saved_modules;
mod tuner;

pub use config::{InitLoraWeights, Lora};
pub(crate) use conversion::to_lora;
pub use conversion::{ConversionRank, ConvertedLayer};
pub use eva::EvaConfig;
pub(super) use tuner::{NOT_SUPPORTED, WITHOUT_EFFECT};
