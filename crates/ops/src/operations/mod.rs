//! The operations, a file for each: the function, its options, and its passes on the CPU.

pub(crate) mod activation;
pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod block_product;
pub(crate) mod bounded_rows;
pub(crate) mod cayley;
pub(crate) mod cayley_neumann;
pub(crate) mod columns;
pub(crate) mod concatenation;
pub(crate) mod conversion;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gate;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod matrix_product;
pub(crate) mod normalization;
pub(crate) mod orthogonality;
pub(crate) mod pooling;
pub(crate) mod prepend;
pub(crate) mod rotary;
pub(crate) mod skew_symmetric;
