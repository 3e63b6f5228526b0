//! The CUDA kernels of the crate `peft-glue-ops`, compiled.
//!
//! Without the feature `cuda` the crate is empty, and needs no compiler but Rust's.

/// The kernels of `cuda/*.cu`, a fat binary for every card that they are built for, as `cuModuleLoadData` takes it.
#[cfg(feature = "cuda")]
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));
