//! How far a matrix is from having orthonormal rows or columns.

use candle_core::{Result, Tensor};

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::cpu::float::Float;
use crate::cpu::products::gemm::Matrix;
use crate::cpu::products::{Packing, Term, sum_of_products};

/// What of a matrix is to be orthonormal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orthonormal {
    /// Its rows.
    Rows,
    /// Its columns.
    Columns,
}

/// `scale * ‖P Pᵀ - I‖`, the root of the sum of squares, for rows; `scale * ‖Pᵀ P - I‖` for columns: a scalar, 0 if what is said to
/// be is orthonormal (Zhang et al. 2023, equation 4, under the root that PEFT takes, `tuners/adalora/model.py`).
///
/// # Errors
/// When it is no matrix.
pub fn orthogonality(matrix: &Tensor, of: Orthonormal, scale: f64) -> Result<Tensor> {
    matrix.dims2()?;
    apply(Orthogonality { of, scale }, &[matrix])
}

struct Orthogonality {
    of: Orthonormal,
    scale: f64,
}

impl Orthogonality {
    /// The matrix whose rows are to be orthonormal, `(r, n)`.
    fn rows<'a, T: Float>(&self, input: &View<'a, T>) -> Matrix<'a, T> {
        let (rows, columns) = input.matrix();
        let matrix = Matrix::new(input.data, rows, columns);
        match self.of {
            Orthonormal::Rows => matrix,
            Orthonormal::Columns => matrix.t(),
        }
    }

    /// `P Pᵀ - I`, `(r, r)`, and its norm.
    fn excess<T: Float>(p: Matrix<T>) -> (Vec<T>, T) {
        let mut excess = sum_of_products(1.0, &[Term { a: p, b: p.t(), packing: Packing::None }], None);
        excess.iter_mut().step_by(p.rows + 1).for_each(|value| *value += -T::one());
        let norm = excess.iter().map(|&value| value * value).sum::<T>().sqrt();
        (excess, norm)
    }
}

impl Operation for Orthogonality {
    const NAME: &'static str = "orthogonality";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let (_, norm) = Self::excess(self.rows(&inputs[0]));
        Ok(Output::new(vec![T::of(self.scale) * norm], Vec::new()))
    }

    /// `2 scale / ‖C‖ * C P` with `C = P Pᵀ - I`, which is symmetric; nothing where the norm is 0, as in torch.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, gradient, .. } = pass;
        let p = self.rows(&inputs[0]);
        let (excess, norm) = Self::excess(p);
        if norm == T::zero() {
            return Ok(vec![Gradient::Values(vec![T::zero(); inputs[0].data.len()])]);
        }
        let excess = Matrix::new(&excess, p.rows, p.rows);
        let product = match self.of {
            Orthonormal::Rows => Term { a: excess, b: p, packing: Packing::None },
            Orthonormal::Columns => Term { a: p.t(), b: excess, packing: Packing::None },
        }; // of the input's shape
        let factor = T::of(2.0 * self.scale) * gradient.data[0] / norm;
        let mut values = sum_of_products(1.0, &[product], None);
        values.iter_mut().for_each(|value| *value *= factor);
        Ok(vec![Gradient::Values(values)])
    }
}
