//! Sums of matrix products, by the fastest means there are.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(crate) mod gemm;
pub(crate) mod panels;
pub(crate) mod tiles;
mod transpose;

use std::sync::Arc;

use crate::cpu::float::Float;
use gemm::{Cores, Into, Matrix, multiply};
use panels::{Panels, Right};
use tiles::Number;

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

/// `scale * a b`, written to rows of `output` that begin `stride` elements apart, on the calling thread: for small products of which
/// there are many.
///
/// # Safety
/// `output` must have the rows of `a` and the columns of `b`, and nobody else may read or write them. They need not be initialized.
pub(crate) unsafe fn write_product<T: Float>(output: *mut T, stride: usize, scale: f64, a: Matrix<T>, b: Matrix<T>) {
    // SAFETY: as the caller promises; a type that lends its numbers as f32 is f32.
    unsafe {
        match (a.as_f32(), b.as_f32()) {
            (Some(a), Some(b)) if Number::F32.is_native() => {
                panels::write_product(output.cast(), stride, scale as f32, a, b);
            }
            _ => gemm::write_product(output, stride, Into::Overwrite, scale, a, b, Cores::One),
        }
    }
}
