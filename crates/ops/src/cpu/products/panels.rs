//! Sums of matrix products whose right side lies in the order in which the inner loop reads it, in f32 or rounded to bf16.
//!
//! What is gained over a general product: a frozen weight is ordered once and not at every step, a left side in f32 is read
//! where it lies, and the bias and a LoRA branch's second product join the sums while they are in registers.
//!
//! bf16 is f32 without its lower 16 bits: the same range, 8 bits of precision. Processors with AMX or AVX-512 BF16 multiply such
//! numbers in pairs. Others run the same loop in portable code, more slowly.

use std::cell::Cell;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::cpu::products::gemm::{Cores, Matrix};
use crate::cpu::products::tiles::{Job, LANES, MOST_ROWS, Number, Ready, Stream, TERMS, Target, Tile, WIDTH};
use crate::cpu::products::transpose::transpose;

/// Rows of a task that a thread takes at a time.
const TASK_ROWS: usize = 64;
/// A left side of no more rows reads a right side once or twice: then ordering it does not pay.
const FEW_ROWS: usize = 16;
/// A left side whose neighbors along the inner dimension are further apart is first brought together: memory is fetched ahead in
/// order only.
const FAR: usize = 256;

/// Words that begin at a cache line, so that no vector lies across two.
#[derive(Debug, Default)]
struct Words(Vec<Line>);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u32; LANES]);

impl Words {
    /// At least that many; what is new is 0.
    fn resize(&mut self, words: usize) {
        self.0.resize(words.div_ceil(LANES), Line([0; LANES]));
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: a line is that many words, and no more.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LANES) }
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LANES) }
    }
}

/// The bits of f32 numbers.
fn words(values: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 are of one size and alignment, and every bit pattern is a u32.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// The nearest bf16, ties to even, as the low 16 bits.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding up could carry a NaN's bits into its sign.
    if value.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

/// Two neighbors along the inner dimension: what one instruction multiplies by another pair, and adds.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    round(first) | round(second) << 16
}

/// A right-hand matrix `(inner, columns)` as panels of [`WIDTH`] columns, in each the steps along the inner dimension, in each
/// the columns' words. The last panel of f32 is only as wide as it must be, in whole vectors.
#[derive(Debug)]
pub(crate) struct Panels {
    words: Words,
    number: Number,
    inner: usize,
    columns: usize,
}

impl Panels {
    pub(crate) fn pack(b: Matrix<f32>, number: Number, cores: Cores) -> Self {
        Self::pack_into(Words::default(), b, number, cores)
    }

    /// Packs into words that something else has left: what fills the last panel up may be anything.
    fn pack_into(mut words: Words, b: Matrix<f32>, number: Number, cores: Cores) -> Self {
        let columns = b.columns.next_multiple_of(match number {
            Number::F32 => LANES,
            Number::Bf16 => WIDTH,
        });
        words.resize(number.steps(b.rows) * columns);
        let mut panels = Self { words, number, inner: b.rows, columns: b.columns };
        let size = panels.size();
        let fill = |(index, panel): (usize, &mut [u32])| fill(panel, index, &b, number);
        match cores {
            Cores::All => panels.words.par_chunks_mut(size).enumerate().for_each(fill),
            Cores::One => panels.words.chunks_mut(size).enumerate().for_each(fill),
        }
        panels
    }

    /// Words of a panel of whole width.
    fn size(&self) -> usize {
        (self.number.steps(self.inner) * WIDTH).max(1)
    }

    /// A panel's columns, those that fill the last one up included.
    fn width(&self, index: usize) -> usize {
        match self.number {
            Number::F32 => WIDTH.min(self.columns.next_multiple_of(LANES) - index * WIDTH),
            Number::Bf16 => WIDTH,
        }
    }

    /// A panel's words, and the distance from step to step.
    fn panel(&self, index: usize) -> (&[u32], usize) {
        let rest = &self.words[index * self.size()..];
        (&rest[..rest.len().min(self.size())], self.width(index))
    }
}

/// Orders the panel's part of `b`.
fn fill(panel: &mut [u32], index: usize, b: &Matrix<f32>, number: Number) {
    let width = panel.len() / number.steps(b.rows).max(1);
    let columns = index * WIDTH..b.columns.min((index + 1) * WIDTH);
    match (number, b.column_stride == 1) {
        (Number::Bf16, true) => interleave_rows(panel, width, b, columns),
        (Number::F32, true) => copy_rows(panel, width, b, columns),
        (_, false) => turn_columns(panel, width, b, columns, number),
    }
}

fn copy_rows(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>) {
    for (row, target) in panel.chunks_exact_mut(width).enumerate() {
        let source = &b.data[row * b.row_stride + columns.start..row * b.row_stride + columns.end];
        target[..columns.len()].copy_from_slice(words(source));
    }
}

/// For a matrix whose rows are contiguous.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn interleave_rows(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>) {
    for (index, pairs) in panel.chunks_exact_mut(width).enumerate() {
        let row = |k: usize| &b.data[k * b.row_stride + columns.start..k * b.row_stride + columns.end];
        let first = row(2 * index);
        if 2 * index + 1 < b.rows {
            for ((target, &low), &high) in pairs.iter_mut().zip(first).zip(row(2 * index + 1)) {
                *target = pair(low, high);
            }
        } else {
            for (target, &low) in pairs.iter_mut().zip(first) {
                *target = pair(low, 0.0);
            }
        }
    }
}

/// For a matrix whose columns are contiguous: block by block.
fn turn_columns(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>, number: Number) {
    let first_value = |step: usize| number.first_value(step).min(b.rows);
    for (offset, first) in columns.clone().step_by(LANES).enumerate() {
        for (index, rows) in panel.chunks_mut(LANES * width).enumerate() {
            let values = first_value(index * LANES)..first_value((index + 1) * LANES);
            let mut block = [[0; LANES]; LANES]; // (columns, steps)
            for (words, column) in block.iter_mut().zip(first..columns.end) {
                let values = &b.data[column * b.column_stride..][values.clone()];
                match (number, self::words(values).first_chunk()) {
                    (Number::F32, Some(all)) => *words = *all,
                    (Number::F32, None) => words[..values.len()].copy_from_slice(self::words(values)),
                    (Number::Bf16, _) => pack_row(words, values),
                }
            }
            for (row, words) in rows.chunks_exact_mut(width).zip(transpose(&block)) {
                row[offset * LANES..][..LANES].copy_from_slice(&words);
            }
        }
    }
}

/// A product's right side.
#[derive(Clone)]
pub(crate) enum Right<'a> {
    Panels(Arc<Panels>),
    /// A row-major matrix where it lies, of whole vectors.
    Rows(Matrix<'a, f32>),
}

impl<'a> Right<'a> {
    /// Ordered for a left side of `rows`, unless that does not pay.
    pub(crate) fn new(b: Matrix<'a, f32>, number: Number, rows: usize) -> Self {
        let few = number == Number::F32 && rows <= FEW_ROWS;
        Self::in_place(b).filter(|_| few).unwrap_or_else(|| Self::Panels(Arc::new(Panels::pack(b, number, Cores::All))))
    }

    /// Where it lies, if it can be read there.
    fn in_place(b: Matrix<'a, f32>) -> Option<Self> {
        (b.column_stride == 1 && b.columns.is_multiple_of(LANES)).then_some(Self::Rows(b))
    }

    fn number(&self) -> Number {
        match self {
            Self::Panels(panels) => panels.number,
            Self::Rows(_) => Number::F32,
        }
    }

    /// Inner dimension and columns.
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Panels(panels) => (panels.inner, panels.columns),
            Self::Rows(matrix) => (matrix.rows, matrix.columns),
        }
    }

    /// The panel that begins at column `WIDTH * index`: its words, and the distance from step to step.
    fn panel(&self, index: usize) -> (&[u32], usize) {
        match self {
            Self::Panels(panels) => panels.panel(index),
            Self::Rows(matrix) => (&words(matrix.data)[index * WIDTH..], matrix.row_stride),
        }
    }
}

/// A left-hand matrix: f32 where it lies, or rows of words along the inner dimension.
enum Left<'a> {
    InPlace(Matrix<'a, f32>),
    Packed { words: Words, stride: usize },
}

thread_local! {
    /// The last product's packed left side: the next one's takes its place, without being cleared.
    static BUFFER: Cell<Words> = const { Cell::new(Words(Vec::new())) };
    /// The same for the right side of a small product.
    static RIGHT_BUFFER: Cell<Words> = const { Cell::new(Words(Vec::new())) };
}

impl<'a> Left<'a> {
    fn new(a: Matrix<'a, f32>, number: Number) -> Self {
        if number == Number::F32 && a.column_stride <= FAR {
            return Self::InPlace(a);
        }
        // An odd number of cache lines, so that neighboring rows are kept in different parts of the cache.
        let stride = (number.steps(a.columns).div_ceil(LANES) | 1) * LANES;
        let mut words = BUFFER.take();
        words.resize(stride * a.rows.next_multiple_of(MOST_ROWS));
        words.par_chunks_mut(TASK_ROWS * stride).enumerate().for_each(|(task, words)| {
            let rows = task * TASK_ROWS..a.rows.min((task + 1) * TASK_ROWS);
            if a.column_stride == 1 {
                for (row, pairs) in rows.zip(words.chunks_exact_mut(stride)) {
                    pack_row(pairs, &a.data[row * a.row_stride..][..a.columns]);
                }
            } else {
                pack_columns(words, stride, &a.t(), rows, number);
            }
        });
        Self::Packed { words, stride }
    }

    /// The rows from `row` on: their words, and the distances from row to row and from step to step.
    fn rows(&self, row: usize) -> (&[u32], usize, usize) {
        match self {
            Self::InPlace(a) => (&words(a.data)[row * a.row_stride..], a.row_stride, a.column_stride),
            Self::Packed { words, stride } => (&words[row * stride..], *stride, 1),
        }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if let Self::Packed { words, .. } = self {
            BUFFER.set(std::mem::take(words));
        }
    }
}

/// The pairs of a row.
fn pack_row(target: &mut [u32], values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the processor has the instructions.
        return unsafe { pack_row_avx512_bf16(target, values) };
    }
    pack_row_portable(target, values);
}

/// By the processor's own rounding, which takes what is below the smallest normal number for 0, as its products do.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pack_row_avx512_bf16(target: &mut [u32], values: &[f32]) {
    use std::arch::x86_64::*;
    let (whole, rest) = values.as_chunks::<{ 2 * LANES }>();
    let (targets, _) = target.as_chunks_mut::<LANES>();
    for (target, values) in targets.iter_mut().zip(whole) {
        // SAFETY: there are two vectors of numbers, and one of their pairs.
        unsafe {
            let first = _mm512_loadu_ps(values.as_ptr());
            let second = _mm512_loadu_ps(values.as_ptr().add(LANES));
            let pairs = _mm512_cvtne2ps_pbh(second, first);
            *target = std::mem::transmute::<__m512bh, [u32; LANES]>(pairs);
        }
    }
    pack_row_portable(&mut target[LANES * whole.len()..], rest);
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn pack_row_portable(target: &mut [u32], values: &[f32]) {
    let (whole, rest) = values.as_chunks::<2>();
    for (word, &[low, high]) in target.iter_mut().zip(whole) {
        *word = pair(low, high);
    }
    if let &[last] = rest {
        target[whole.len()] = pair(last, 0.0);
    }
}

/// Rows of words, `stride` apart, of the columns of a matrix whose rows are contiguous: block by block, each read and written in
/// order.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn pack_columns(target: &mut [u32], stride: usize, b: &Matrix<f32>, columns: Range<usize>, number: Number) {
    let steps = number.steps(b.rows);
    for (target, first) in target.chunks_mut(LANES * stride).zip(columns.clone().step_by(LANES)) {
        let columns = first..columns.end.min(first + LANES);
        let row = |k: usize| &b.data[k * b.row_stride + columns.start..k * b.row_stride + columns.end];
        for first_step in (0..steps).step_by(LANES) {
            let steps = LANES.min(steps - first_step);
            let mut block = [[0; LANES]; LANES]; // (steps, columns)
            for (index, block) in block.iter_mut().enumerate().take(steps) {
                let step = first_step + index;
                match number {
                    Number::F32 => block[..columns.len()].copy_from_slice(words(row(step))),
                    Number::Bf16 if 2 * step + 1 < b.rows => {
                        let factors = row(2 * step).iter().zip(row(2 * step + 1));
                        block.iter_mut().zip(factors).for_each(|(word, (&low, &high))| *word = pair(low, high));
                    }
                    Number::Bf16 => {
                        block.iter_mut().zip(row(2 * step)).for_each(|(word, &low)| *word = pair(low, 0.0));
                    }
                }
            }
            for (target, words) in target.chunks_mut(stride).zip(transpose(&block)).take(columns.len()) {
                target[first_step..first_step + steps].copy_from_slice(&words[..steps]);
            }
        }
    }
}

/// A matrix that tasks write to, each its own rows and columns.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: the tasks of one product write to elements that no other task reads or writes.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// A sum of products that is being taken.
struct Sum<'a> {
    lefts: Vec<Left<'a>>,
    rights: Vec<Right<'a>>,
    scale: f32,
    bias: Option<&'a [f32]>,
    columns: usize,
    output: Output,
    stride: usize,
    tile: Tile,
}

impl<'a> Sum<'a> {
    /// # Safety
    /// `output` must have the rows of the left sides, `stride` apart, and the columns of the right sides.
    unsafe fn new(
        terms: &[(Matrix<'a, f32>, Right<'a>)],
        scale: f32,
        bias: Option<&'a [f32]>,
        output: *mut f32,
        stride: usize,
    ) -> Self {
        let (rows, (_, columns)) = (terms[0].0.rows, terms[0].1.size());
        assert!(terms.len() <= TERMS, "too many products");
        assert!(
            terms.iter().all(|(a, b)| b.size() == (a.columns, columns) && a.rows == rows),
            "the products' sizes differ"
        );
        assert!(bias.is_none_or(|bias| bias.len() == columns), "the bias has another size than the columns");
        Self {
            lefts: terms.iter().map(|(a, b)| Left::new(*a, b.number())).collect(),
            rights: terms.iter().map(|(_, b)| b.clone()).collect(),
            tile: Tile::best(terms[0].1.number()),
            output: Output(output),
            scale,
            bias,
            columns,
            stride,
        }
    }

    /// A term's part in some rows and one panel. Inline, so that nothing is copied: see [`Job`].
    #[inline(always)]
    fn stream(&self, term: usize, row: usize, panel: usize) -> Stream<'_> {
        let Some(right) = self.rights.get(term) else { return Stream::EMPTY };
        let (left, row_stride, step_stride) = self.lefts[term].rows(row);
        let (panel, panel_stride) = right.panel(panel);
        let (number, steps) = (right.number(), right.number().steps(right.size().0));
        Stream { number, steps, left, row_stride, step_stride, panel, panel_stride, first_step: 0 }
    }

    /// Works out some rows of the columns of one panel.
    ///
    /// # Safety
    /// The rows must be there, and nobody else may read or write them in these columns.
    unsafe fn take(&self, tile: &Ready, rows: Range<usize>, panel: usize) {
        let first = panel * WIDTH;
        let columns = WIDTH.min(self.columns - first);
        let data = self.output.0.wrapping_add(rows.start * self.stride + first);
        let mut job = Job {
            streams: [self.stream(0, rows.start, panel), self.stream(1, rows.start, panel)],
            scale: self.scale,
            bias: self.bias.map(|bias| &bias[first..first + columns]),
            target: Target { data, stride: self.stride, rows: rows.len(), columns },
        };
        // SAFETY: these rows and columns are within the output, and no other task's. A left side in pairs has whole tiles of rows,
        // and its steps lie side by side.
        unsafe { tile.run(&mut job) };
    }
}

/// `scale` times the sum of the products `a b` of one or two terms, plus a bias `(columns)` in each row if there is one, as a new
/// row-major matrix, on all cores. Of two terms in different numbers the one in bf16 comes first.
///
/// Every element is one sum in order of the terms and of their inner dimensions, whatever the number of threads.
pub(crate) fn sum_of_products(scale: f32, terms: &[(Matrix<f32>, Right)], bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, (_, columns)) = (terms[0].0.rows, terms[0].1.size());
    let mut values = Vec::with_capacity(rows * columns);
    // SAFETY: that is the size of the values.
    let sum = unsafe { Sum::new(terms, scale, bias, values.as_mut_ptr(), columns) };
    let tasks_down = rows.div_ceil(TASK_ROWS);
    // Neighboring tasks share a panel, which then stays in the cache of the core that takes them.
    (0..tasks_down * columns.div_ceil(WIDTH)).into_par_iter().for_each_init(
        || sum.tile.ready(),
        |tile, task| {
            let (panel, down) = (task / tasks_down, task % tasks_down);
            // SAFETY: each task has rows and columns of its own.
            unsafe { sum.take(tile, down * TASK_ROWS..rows.min((down + 1) * TASK_ROWS), panel) };
        },
    );
    drop(sum);
    // SAFETY: the capacity is there, and the tasks have written every element.
    unsafe { values.set_len(rows * columns) };
    values
}

/// `scale * a b`, written to rows of `output` that begin `stride` elements apart, on the calling thread: for small products of which
/// there are many.
///
/// # Safety
/// `output` must have the rows of `a` and the columns of `b`, and nobody else may read or write them. They need not be initialized.
pub(crate) unsafe fn write_product(output: *mut f32, stride: usize, scale: f32, a: Matrix<f32>, b: Matrix<f32>) {
    assert_eq!(a.columns, b.rows, "inner dimensions differ");
    let (inner, columns) = (a.columns, b.columns);
    let right = Right::in_place(b)
        .unwrap_or_else(|| Right::Panels(Arc::new(Panels::pack_into(RIGHT_BUFFER.take(), b, Number::F32, Cores::One))));
    let tile = Tile::best(Number::F32).ready();
    for panel in (0..columns.div_ceil(WIDTH)).filter(|_| a.rows > 0) {
        let first = panel * WIDTH;
        let (panel, panel_stride) = right.panel(panel);
        let (left, row_stride, step_stride) = (words(a.data), a.row_stride, a.column_stride);
        let (number, steps, first_step) = (Number::F32, inner, 0);
        let stream = Stream { number, steps, left, row_stride, step_stride, panel, panel_stride, first_step };
        let columns = WIDTH.min(columns - first);
        let target = Target { data: output.wrapping_add(first), stride, rows: a.rows, columns };
        // SAFETY: these are columns of the output.
        unsafe { tile.run(&mut Job { streams: [stream, Stream::EMPTY], scale, bias: None, target }) };
    }
    if let Right::Panels(panels) = right
        && let Ok(panels) = Arc::try_unwrap(panels)
    {
        RIGHT_BUFFER.set(panels.words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::products::tiles::values;

    /// Numbers between -1 and 1.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mix = |i: u32| i.wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
        (0..count as u32).map(|i| mix(mix(i ^ seed)) as f32 / 2f32.powi(31) - 1.0).collect()
    }

    fn rounded(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| f64::from(values_of(round(value)))).collect()
    }

    fn values_of(low: u32) -> f32 {
        values(low).0
    }

    #[test]
    fn rounding_takes_the_nearest_and_the_even_one_of_two() {
        let of = |value: f32| values_of(round(value));
        assert_eq!(of(1.0 + 1.0 / 256.0), 1.0); // halfway between 1 and 1 + 1/128
        assert_eq!(of(1.0 + 3.0 / 256.0), 1.0 + 2.0 / 128.0);
        assert_eq!(of(1.0 + 1.01 / 256.0), 1.0 + 1.0 / 128.0);
        assert_eq!(of(f32::INFINITY), f32::INFINITY);
        assert_eq!(of(f32::MAX), f32::INFINITY);
        assert!(of(f32::NAN).is_nan() && of(f32::from_bits(0x7fff_ffff)).is_nan());
    }

    #[test]
    fn the_processors_rounding_is_the_portable_one() {
        let mut values: Vec<f32> = numbers(203, 7).iter().map(|x| x * x * x * 1e9).collect();
        values.extend([0.0, -0.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
        let (mut found, mut expected) = (vec![0; 105], vec![0; 105]);
        pack_row(&mut found, &values);
        pack_row_portable(&mut expected, &values);
        assert_eq!(found, expected);
        let mut pairs = [0; LANES];
        pack_row(&mut pairs, &[f32::NAN; 2 * LANES]);
        assert!(pairs.iter().all(|&pair| values_of(pair).is_nan()));
    }

    /// Every way a product is taken, against the sum of the numbers' products in f64, of the rounded numbers for bf16.
    #[test]
    fn sums_of_products_equal_those_in_f64_whatever_the_shape_the_number_and_the_order_in_memory() {
        for (m, k, n) in
            [(1, 1, 1), (8, 2, 16), (7, 3, 5), (9, 33, 49), (130, 64, 96), (65, 384, 100), (3, 5, 47), (9, 20, 112)]
        {
            let (a, b, c, d) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * 3, 3), numbers(3 * n, 4));
            let bias = numbers(n, 5);
            let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..rows * columns).map(|i| x[(i % rows) * columns + i / rows]).collect()
            };
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            let lefts = [Matrix::new(&a, m, k), Matrix::new(&at, k, m).t()];
            let rights = [Matrix::new(&b, k, n), Matrix::new(&bt, n, k).t()];
            let branch = (Matrix::new(&c, m, 3), Right::new(Matrix::new(&d, 3, n), Number::F32, m));
            for number in [Number::F32, Number::Bf16] {
                let factors = |x: &[f32]| match number {
                    Number::F32 => x.iter().map(|&x| f64::from(x)).collect(),
                    Number::Bf16 => rounded(x),
                };
                let (fa, fb) = (factors(&a), factors(&b));
                for (left, right) in lefts.into_iter().flat_map(|l| rights.map(|r| (l, r))) {
                    let term = (left, Right::new(right, number, m));
                    let plain = sum_of_products(2.0, std::slice::from_ref(&term), None);
                    let biased = sum_of_products(2.0, &[term, branch.clone()], Some(&bias));
                    for i in 0..m * n {
                        let (row, column) = (i / n, i % n);
                        let product: f64 = (0..k).map(|j| fa[row * k + j] * fb[j * n + column]).sum();
                        let other: f64 = (0..3).map(|j| f64::from(c[row * 3 + j]) * f64::from(d[j * n + column])).sum();
                        // Each of k + 4 sums of terms below 1 is rounded to f32, and doubled.
                        let bound = 2.0 * (k as f64 + 4.0).powi(2) * f64::from(f32::EPSILON);
                        let expected = [2.0 * product, 2.0 * (product + other) + f64::from(bias[column])];
                        for (found, expected) in [plain[i], biased[i]].into_iter().zip(expected) {
                            let error = (f64::from(found) - expected).abs();
                            assert!(error <= bound, "{m} x {k} x {n} {number:?}: {found}, expected {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_small_product_is_the_large_ones_and_leaves_what_lies_between_its_rows() {
        for (m, k, n) in [(1, 1, 1), (9, 32, 64), (37, 32, 37), (37, 37, 32)] {
            let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
            let a = Matrix::new(&a, m, k);
            for b in [Matrix::new(&b, k, n), Matrix::new(&b, n, k).t()] {
                let expected = sum_of_products(0.5, &[(a, Right::new(b, Number::F32, m))], None);
                let mut output = vec![7.0; m * (n + 3)];
                // SAFETY: the output has these rows and columns.
                unsafe { write_product(output.as_mut_ptr(), n + 3, 0.5, a, b) };
                for (row, expected) in output.chunks(n + 3).zip(expected.chunks(n)) {
                    assert_eq!((&row[..n], &row[n..]), (expected, &[7.0; 3][..]));
                }
            }
        }
    }

    #[test]
    fn every_tile_that_the_processor_has_gives_what_the_portable_one_gives() {
        let (rows, inner, columns) = (2 * MOST_ROWS, 150, 41);
        let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
        for number in [Number::F32, Number::Bf16] {
            let right = Right::new(Matrix::new(&b, inner, columns), number, rows);
            let left = Left::new(Matrix::new(&a, rows, inner), number);
            let run = |tile: Tile| {
                let mut output = vec![f32::NAN; rows * columns];
                let (left, row_stride, step_stride) = left.rows(0);
                let (panel, panel_stride) = right.panel(0);
                let steps = number.steps(inner);
                let first_step = 0;
                let stream = Stream { number, steps, left, row_stride, step_stride, panel, panel_stride, first_step };
                let target = Target { data: output.as_mut_ptr(), stride: columns, rows, columns };
                // SAFETY: the output has the rows and columns that are asked for, and the left side whole tiles of rows.
                unsafe {
                    tile.ready().run(&mut Job { streams: [stream, Stream::EMPTY], scale: 1.0, bias: None, target })
                };
                output
            };
            let portable = run(Tile::Portable);
            for &tile in Tile::ALL.iter().filter(|tile| tile.takes(number)) {
                // Both add at most `inner` terms below 1, in another order.
                let bound = (inner * inner) as f32 * f32::EPSILON;
                let found = run(tile);
                assert!(portable.iter().zip(&found).all(|(x, y)| (x - y).abs() <= bound), "{tile:?}");
            }
        }
    }
}
