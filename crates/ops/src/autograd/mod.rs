//! Automatic differentiation: what an operation is, and who records operations for the backward pass, candle's graph or a tape.

mod graph;
pub(crate) mod operation;
pub(crate) mod tape;

pub(crate) use graph::apply;
pub(crate) use operation::{Backward, Gradient, InputGradient, Operation, Output, View};
