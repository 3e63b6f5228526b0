//! Fuzzing in the process: files of the repository's oracles, changed, are given to every reader of files.
//!
//! An input follows from a seed, its target and its number, so that each can be made again. There is no coverage to steer by; the changes
//! know JSON, safetensors, npz and tables instead. `make fuzz` runs it, and `cargo test` the inputs below `fuzz/seeds`.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A tool for developers: it prints.

pub mod allocator;
pub mod input;
pub mod mutation;
pub mod targets;
mod values;
pub mod worker;

pub use input::Input;
pub use targets::{Outcome, Target, all};
