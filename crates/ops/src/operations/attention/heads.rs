//! The heads of a batch's sequences, and what each reads and writes.

use std::ops::Range;

use crate::autograd::View;
use crate::cpu::float::Float;
use crate::cpu::products::gemm::{self, Cores, Into, Matrix};
use crate::cpu::products::tiles::LANES;
use crate::cpu::products::write_product;

/// One head of one sequence.
pub(super) struct Head {
    /// Which sequence, and which of its heads.
    pub sequence: usize,
    pub index: usize,
    /// Rows of the queries' and the keys' tensors.
    pub queries: Range<usize>,
    pub keys: Range<usize>,
    /// The head's columns.
    pub first_column: usize,
    pub width: usize,
    /// The position of the head's first probability among all of the batch: what dropout counts by.
    pub first_probability: u32,
}

impl Head {
    /// This head's columns of some rows, `(rows, head_dim)`.
    pub(super) fn of<'a, T>(&self, (data, stride): (&'a [T], usize), rows: &Range<usize>) -> Matrix<'a, T> {
        Matrix::strided(&data[rows.start * stride + self.first_column..], rows.len(), self.width, stride)
    }

    /// The distance between rows of scores.
    pub(super) fn stride(&self) -> usize {
        self.queries.len().next_multiple_of(LANES)
    }

    /// `scale * a bᵀ` as scores, `(rows of a, queries)`: b has a row for each query.
    pub(super) fn scores<'a, T: Float>(
        &self,
        buffer: &'a mut Vec<T>,
        scale: f64,
        a: Matrix<T>,
        b: Matrix<T>,
    ) -> &'a mut [T] {
        assert_eq!(b.rows, self.queries.len(), "a row for each query");
        let size = a.rows * self.stride();
        buffer.resize(buffer.len().max(size), T::zero());
        let scores = &mut buffer[..size];
        // SAFETY: the scores have these rows and columns.
        unsafe { write_product(scores.as_mut_ptr(), self.stride(), scale, a, b.t()) };
        scores
    }

    /// Scores as a matrix, `(rows, queries)`.
    pub(super) fn matrix<'a, T>(&self, scores: &'a [T]) -> Matrix<'a, T> {
        Matrix::strided(scores, scores.len() / self.stride(), self.queries.len(), self.stride())
    }
}

/// The matrices that are attended with, each with the distance between its rows.
pub(super) struct Inputs<'a, T> {
    pub query: (&'a [T], usize), // (queries, hidden)
    pub key: (&'a [T], usize),   // (keys, hidden)
    pub value: (&'a [T], usize), // (keys, hidden)
    pub table: Option<View<'a, T>>,
}

impl<'a, T: Float> Inputs<'a, T> {
    /// Of query, key and value, or of query and the keys with the values behind them in each row; then the table, if there is one.
    pub(super) fn new(inputs: &[View<'a, T>]) -> Self {
        let (_, hidden) = inputs[0].matrix();
        let query = (inputs[0].data, hidden);
        if is_joined(inputs) {
            let joined = inputs[1].data;
            let value = (joined.get(hidden..).unwrap_or_default(), 2 * hidden);
            return Self { query, key: (joined, 2 * hidden), value, table: inputs.get(2).copied() };
        }
        Self { query, key: (inputs[1].data, hidden), value: (inputs[2].data, hidden), table: inputs.get(3).copied() }
    }
}

/// Whether the values stand behind the keys in each row.
pub(super) fn is_joined<T>(inputs: &[View<T>]) -> bool {
    inputs[1].matrix().1 == 2 * inputs[0].matrix().1
}

/// A new matrix, of which each head writes its own columns.
pub(super) struct Columns<T> {
    values: Vec<T>,
    length: usize,
    begin: *mut T,
    stride: usize,
}

// SAFETY: the heads write to elements that no other head reads or writes.
unsafe impl<T: Send> Sync for Columns<T> {}

impl<T: Float> Columns<T> {
    /// As many numbers as that tensor has, in such rows.
    pub(super) fn like(tensor: &View<T>) -> Self {
        let mut values = Vec::with_capacity(tensor.data.len());
        Self { begin: values.as_mut_ptr(), length: tensor.data.len(), stride: tensor.matrix().1, values }
    }

    fn at(&self, rows: &Range<usize>, column: usize) -> *mut T {
        self.begin.wrapping_add(rows.start * self.stride + column)
    }

    /// `scale * a b` in some rows from that column on.
    ///
    /// # Safety
    /// They must be there, as many as `a` and `b` have, and the head's own.
    pub(super) unsafe fn write(&self, rows: &Range<usize>, column: usize, scale: f64, a: Matrix<T>, b: Matrix<T>) {
        // SAFETY: as the caller promises.
        unsafe { write_product(self.at(rows, column), self.stride, scale, a, b) };
    }

    /// Adds `scale * a b` to what has been written there.
    ///
    /// # Safety
    /// As [`Columns::write`], after it.
    pub(super) unsafe fn add(&self, rows: &Range<usize>, column: usize, scale: f64, a: Matrix<T>, b: Matrix<T>) {
        // SAFETY: as the caller promises.
        unsafe { gemm::write_product(self.at(rows, column), self.stride, Into::Add, scale, a, b, Cores::One) };
    }

    /// # Safety
    /// Every head of every sequence must have written its columns.
    pub(super) unsafe fn written(mut self) -> Vec<T> {
        // SAFETY: as the caller promises; the capacity is there.
        unsafe { self.values.set_len(self.length) };
        self.values
    }
}
