//! AdaLoRA (Zhang et al. 2023): branches in the form of a singular value decomposition, `P Λ Q`, and a budget of ranks that training
//! divides among them.

mod adapter;
mod allocator;
mod config;
mod tuner;

pub use allocator::RankAllocator;
pub use config::AdaLora;
