//! Linear algebra that candle lacks: decompositions of matrices, principal components.

mod decomposition;
mod incremental_pca;

pub(crate) use decomposition::{qr, svd};
pub(crate) use incremental_pca::IncrementalPca;
