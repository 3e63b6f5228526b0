//! The layers that encoders are made of, and the places in them that a tuner may fill: beside a linear layer
//! ([`LinearAdapter`]), at the end of a sublayer ([`SublayerAdapter`]), before a sequence ([`VirtualTokens`]).

mod forward_pass;
mod layer_norm;
mod linear;
mod sublayer;
mod virtual_tokens;

pub use forward_pass::ForwardPass;
pub(crate) use layer_norm::LayerNorm;
pub(crate) use linear::{AdaptedLayer, BaseLayer, Linear, LinearAdapter, LowRankBranch};
pub(crate) use sublayer::{Sublayer, SublayerAdapter, SublayerOutput};
pub(crate) use virtual_tokens::{Prefix, VirtualTokens};
