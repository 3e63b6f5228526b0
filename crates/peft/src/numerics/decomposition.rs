//! Decompositions of a weight, for adapters that start from it. In f64, whatever the weight's type, by the crate faer.

use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef};

use crate::error::Result;

/// The `r` largest singular values of a matrix `(m, n)`: U `(m, r)`, s `(r)` and Vᵀ `(r, n)` of `U diag(s) Vᵀ`.
pub(crate) fn svd(matrix: &Tensor, r: usize) -> Result<(Tensor, Tensor, Tensor)> {
    let svd = read(matrix)?.thin_svd().map_err(|error| candle_core::Error::Msg(format!("svd: {error:?}")))?;
    let (u, v, s) = (svd.U(), svd.V(), svd.S().column_vector());
    let singular_values: Vec<f64> = (0..r).map(|index| s[index]).collect();
    Ok((
        write(u.subcols(0, r))?,
        Tensor::from_vec(singular_values, r, &Device::Cpu)?,
        write(v.subcols(0, r).transpose())?,
    ))
}

/// The first `r` columns of Q `(m, r)` and rows of R `(r, n)` of a matrix `Q R`, `(m, n)`.
pub(crate) fn qr(matrix: &Tensor, r: usize) -> Result<(Tensor, Tensor)> {
    let qr = read(matrix)?.qr();
    Ok((write(qr.compute_thin_Q().as_ref().subcols(0, r))?, write(qr.thin_R().subrows(0, r))?))
}

fn read(matrix: &Tensor) -> Result<Mat<f64>> {
    let (rows, columns) = matrix.dims2()?;
    let values: Vec<f64> = matrix.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(MatRef::from_row_major_slice(&values, rows, columns).to_owned())
}

fn write(matrix: MatRef<f64>) -> Result<Tensor> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let values: Vec<f64> = (0..rows).flat_map(|row| (0..columns).map(move |column| matrix[(row, column)])).collect();
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Tensor {
        let values: Vec<f64> = (0..rows * columns).map(|i| (i as f64 * 1.7).sin()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn largest(tensor: &Tensor) -> f64 {
        tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    fn departs_from_identity(product: &Tensor) -> f64 {
        let n = product.dims()[0];
        largest(&(product - Tensor::eye(n, DType::F64, &Device::Cpu).unwrap()).unwrap())
    }

    /// The definitions, to the rounding of sums of seven products of numbers up to 10.
    #[test]
    fn a_decomposition_has_orthonormal_factors_whose_product_is_the_matrix() {
        for (rows, columns) in [(7, 4), (4, 7), (5, 5)] {
            let (matrix, k) = (matrix(rows, columns), rows.min(columns));
            let (u, s, vt) = svd(&matrix, k).unwrap();
            let product = u.broadcast_mul(&s.reshape((1, k)).unwrap()).unwrap().matmul(&vt).unwrap();
            assert!(largest(&(product - &matrix).unwrap()) < 1e-14);
            assert!(departs_from_identity(&u.t().unwrap().matmul(&u).unwrap()) < 1e-14);
            assert!(departs_from_identity(&vt.matmul(&vt.t().unwrap()).unwrap()) < 1e-14);
            let s = s.to_vec1::<f64>().unwrap();
            assert!(s.windows(2).all(|pair| pair[0] >= pair[1]) && s[k - 1] >= 0.0, "{s:?}");

            let (q, r) = qr(&matrix, k).unwrap();
            assert!(largest(&(q.matmul(&r).unwrap() - &matrix).unwrap()) < 1e-14);
            assert!(departs_from_identity(&q.t().unwrap().matmul(&q).unwrap()) < 1e-14);
            let r = r.to_vec2::<f64>().unwrap();
            assert!((0..k).all(|row| r[row][..row].iter().all(|&value| value == 0.0)), "R is not triangular: {r:?}");
        }
    }
}
