//! What candle lacks: decompositions of matrices, principal components, whether numbers are finite.

mod decomposition;
mod finite;
mod incremental_pca;

pub(crate) use decomposition::{qr, svd};
pub(crate) use finite::is_finite;
pub(crate) use incremental_pca::IncrementalPca;
