//! The models of this crate against independent sources: transformers and PEFT, candle-transformers, the same encoder in
//! candle's basic operations, finite differences, and the counts of the papers.

#![cfg(test)] // clippy then knows the helpers, too, for tests

mod adapters;
mod allocation;
mod bad_adapters;
mod behavior;
mod bottleneck;
mod checkpoints;
mod configuration;
mod counts;
mod encoders;
mod files;
mod gradients;
mod logits;
mod merging;
mod prompts;
mod properties;
mod python;
mod reference;
mod releases;
mod several;
mod support;
mod tree;
