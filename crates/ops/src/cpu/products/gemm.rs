//! Matrix products over slices, by the `gemm` crate.

use gemm::Parallelism;

use crate::cpu::float::Float;

/// A strided matrix over a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows begin `row_stride` elements apart.
    pub(crate) fn strided(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(spans(data.len(), rows, columns, row_stride), "matrix reaches beyond its slice");
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

impl<'a, T: Float> Matrix<'a, T> {
    /// The matrix as it is, if its numbers are f32.
    pub(crate) fn as_f32(self) -> Option<Matrix<'a, f32>> {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        T::as_f32(data).map(|data| Matrix { data, rows, columns, row_stride, column_stride })
    }
}

fn spans(length: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= length
}

/// Which cores a product may use: all of them, or only the one that calls, when the caller is parallel itself.
#[derive(Clone, Copy)]
pub(crate) enum Cores {
    All,
    One,
}

/// Where a product goes: over what is there, or on top of it.
#[derive(Clone, Copy)]
pub(crate) enum Into {
    Overwrite,
    Add,
}

/// `output = scale * a b`, or `output += scale * a b`. The rows of `output` begin `row_stride` elements apart.
pub(crate) fn multiply<T: Float>(
    output: &mut [T],
    row_stride: usize,
    into: Into,
    scale: f64,
    a: Matrix<T>,
    b: Matrix<T>,
    cores: Cores,
) {
    assert!(spans(output.len(), a.rows, b.columns, row_stride), "product reaches beyond its slice");
    // SAFETY: the rows and columns lie within the slice, which is borrowed mutably.
    unsafe { write_product(output.as_mut_ptr(), row_stride, into, scale, a, b, cores) };
}

/// [`multiply`] by a pointer.
///
/// # Safety
/// `output` must have the rows of `a`, `row_stride` elements apart, and the columns of `b`, and nobody else may read or write them. To
/// be overwritten they need not be initialized.
pub(crate) unsafe fn write_product<T: Float>(
    output: *mut T,
    row_stride: usize,
    into: Into,
    scale: f64,
    a: Matrix<T>,
    b: Matrix<T>,
    cores: Cores,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner dimensions differ");
    let parallelism = match cores {
        Cores::All if rayon::current_num_threads() > 1 => Parallelism::Rayon(rayon::current_num_threads()),
        _ => Parallelism::None,
    };
    // SAFETY: both factors lie within their slices (asserted in `Matrix::strided`), the output is as the caller promises.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            output,
            1,
            row_stride as isize,
            matches!(into, Into::Add),
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::one(),
            T::of(scale),
            false,
            false,
            false,
            parallelism,
        );
    }
}
