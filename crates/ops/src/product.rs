//! Sums of matrix products, by the fastest means there are.

use std::sync::Arc;

use crate::float::Float;
use crate::matrix::{Cores, Into, Matrix, multiply};
use crate::panels::{self, Panels, Right};
use crate::tiles::Number;

/// A product `a b` to be added up.
pub(crate) struct Term<'a, T> {
    pub a: Matrix<'a, T>,
    pub b: Matrix<'a, T>,
    pub packing: Packing,
}

/// How the right side of a product is read.
#[derive(Clone)]
pub(crate) enum Packing {
    /// Where it lies, by the `gemm` crate, which knows every processor and both types.
    None,
    /// As panels of these numbers, made now.
    Now(Number),
    /// As panels that were made before.
    Before(Arc<Panels>),
}

impl<'a, T: Float> Term<'a, T> {
    /// For [`panels::sum_of_products`], if it is a product of f32 that is to be packed.
    fn packed(&self) -> Option<(Matrix<'a, f32>, Right<'a>)> {
        let (a, b) = (self.a.as_f32()?, self.b.as_f32()?);
        let right = match &self.packing {
            Packing::None => return None,
            Packing::Now(number) => Right::new(b, *number, a.rows),
            Packing::Before(panels) => Right::Panels(panels.clone()),
        };
        Some((a, right))
    }
}

/// `scale` times the sum of the terms' products, plus a bias `(columns)` in each row if there is one, as a new row-major matrix, on
/// all cores.
pub(crate) fn sum_of_products<T: Float>(scale: f64, terms: &[Term<T>], bias: Option<&[T]>) -> Vec<T> {
    if let Some(terms) = terms.iter().map(Term::packed).collect::<Option<Vec<_>>>() {
        return T::from_f32(panels::sum_of_products(scale as f32, &terms, bias.and_then(T::as_f32)));
    }
    let (rows, columns) = (terms[0].a.rows, terms[0].b.columns);
    let (mut output, mut into) = match bias {
        Some(bias) => (bias.repeat(rows), Into::Add),
        None => (vec![T::zero(); rows * columns], Into::Overwrite),
    };
    for term in terms {
        multiply(&mut output, columns, into, scale, term.a, term.b, Cores::All);
        into = Into::Add;
    }
    output
}

/// `scale * a b`, written to rows of `output` that begin `stride` elements apart, on the calling thread.
pub(crate) fn multiply_here<T: Float>(output: &mut [T], stride: usize, scale: f64, a: Matrix<T>, b: Matrix<T>) {
    if let (Some(a), Some(b), true) = (a.as_f32(), b.as_f32(), Number::F32.is_native())
        && let Some(output) = T::as_f32_mut(output)
    {
        return panels::multiply_here(output, stride, scale as f32, a, b);
    }
    multiply(output, stride, Into::Overwrite, scale, a, b, Cores::One);
}

/// `scale * a b` as a new row-major matrix, on the calling thread.
pub(crate) fn product_here<T: Float>(scale: f64, a: Matrix<T>, b: Matrix<T>) -> Vec<T> {
    if let (Some(a), Some(b), true) = (a.as_f32(), b.as_f32(), Number::F32.is_native()) {
        return T::from_f32(panels::product_here(scale as f32, a, b));
    }
    let mut output = vec![T::zero(); a.rows * b.columns];
    multiply_here(&mut output, b.columns, scale, a, b);
    output
}
