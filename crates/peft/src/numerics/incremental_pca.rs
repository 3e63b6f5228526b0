//! Principal components of data that comes in pieces.

use candle_core::{DType, Device, Tensor};

use super::decomposition::svd;
use crate::error::Result;

/// The directions in which rows vary most, and by how much, after each piece of them: incremental principal component analysis (Ross
/// et al. 2008, as scikit-learn and, after it, PEFT's `utils/incremental_pca.py` have it). In f64.
pub(crate) struct IncrementalPca {
    count: usize,
    found: Option<Found>,
}

struct Found {
    rows: f64,
    mean: Tensor, // (1, columns)
    /// The sum of all rows' squares.
    squares: f64,
    components: Tensor,      // (count, columns): each of length 1, the most varying first
    singular_values: Tensor, // (count)
}

impl IncrementalPca {
    /// For the first `count` components, which must be no more than there are columns.
    pub(crate) fn new(count: usize) -> Self {
        Self { count, found: None }
    }

    /// Takes more rows, `(rows, columns)`, no fewer than there are components. For each component, the cosine of the angle to what
    /// it was before; nothing at first.
    pub(crate) fn fit(&mut self, rows: &Tensor) -> Result<Option<Vec<f64>>> {
        let rows = rows.to_dtype(DType::F64)?.to_device(&Device::Cpu)?;
        let new = rows.dims2()?.0 as f64;
        let new_mean = rows.mean_keepdim(0)?; // (1, columns)
        let new_squares = rows.sqr()?.sum_all()?.to_scalar::<f64>()?;
        let centered = rows.broadcast_sub(&new_mean)?;
        let (stacked, count, mean, squares) = match &self.found {
            None => (centered, new, new_mean, new_squares),
            Some(before) => {
                let count = before.rows + new;
                // What is known of the rows before stands for them, and a row for how far the two means are apart.
                let known = before.components.broadcast_mul(&before.singular_values.unsqueeze(1)?)?;
                let apart = ((&before.mean - &new_mean)? * (before.rows / count * new).sqrt())?;
                let mean = (((&before.mean * before.rows)? + (&new_mean * new)?)? / count)?;
                (Tensor::cat(&[known, centered, apart], 0)?, count, mean, before.squares + new_squares)
            }
        };
        let (_, singular_values, components) = svd(&stacked, self.count)?;
        let components = components.contiguous()?;
        let cosines = match &self.found {
            Some(before) => Some((&components * &before.components)?.sum(1)?.to_vec1::<f64>()?),
            None => None,
        };
        // A direction is the same with either sign, which a decomposition may choose anew each time.
        let cosines = cosines.map(|cosines| cosines.into_iter().map(f64::abs).collect());
        self.found = Some(Found { rows: count, mean, squares, components, singular_values });
        Ok(cosines)
    }

    /// The components, `(count, columns)`, and their singular values, `(count)`; nothing before there are rows.
    pub(crate) fn components(&self) -> Option<(&Tensor, &Tensor)> {
        self.found.as_ref().map(|found| (&found.components, &found.singular_values))
    }

    /// The share of the variance of all rows that lies in each component's direction.
    pub(crate) fn explained_variance_ratio(&self) -> Result<Option<Vec<f64>>> {
        let Some(found) = &self.found else { return Ok(None) };
        let around_mean = found.squares - found.rows * found.mean.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok(Some((found.singular_values.sqr()? / around_mean)?.to_vec1()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reproducible numbers, in columns of different spread.
    fn rows(count: usize, seed: u64) -> Tensor {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        let values: Vec<f64> = (0..count * 5).map(|i| next() * (1 + i % 5) as f64).collect();
        Tensor::from_vec(values, (count, 5), &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// With as many components as columns nothing is left out: the pieces give what all rows give at once, and the shares of the
    /// variance add up to 1.
    #[test]
    fn all_components_of_pieces_are_those_of_the_whole() {
        let pieces = [rows(9, 1), rows(6, 2), rows(13, 3)];
        let (mut one, mut other) = (IncrementalPca::new(5), IncrementalPca::new(5));
        one.fit(&Tensor::cat(&pieces, 0).unwrap()).unwrap();
        pieces.iter().for_each(|piece| drop(other.fit(piece).unwrap()));
        let ((components, values), (others, other_values)) = (one.components().unwrap(), other.components().unwrap());
        let along = flat(&(components * others).unwrap().sum(1).unwrap());
        assert!(along.iter().all(|cosine| (cosine.abs() - 1.0).abs() < 1e-12), "{along:?}");
        assert!(flat(values).iter().zip(flat(other_values)).all(|(a, b)| (a - b).abs() < 1e-12 * a.abs().max(1.0)));
        let shares = other.explained_variance_ratio().unwrap().unwrap();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shares:?}");
    }

    #[test]
    fn rows_that_were_seen_before_leave_the_components_where_they_were() {
        let mut pca = IncrementalPca::new(2);
        assert!(pca.fit(&rows(20, 1)).unwrap().is_none());
        let cosines = pca.fit(&rows(20, 1)).unwrap().unwrap();
        assert!(cosines.iter().all(|cosine| *cosine > 0.99), "{cosines:?}");
    }
}
