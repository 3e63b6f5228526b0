//! Matrix products of numbers rounded to bf16, added up in f32.
//!
//! A processor with AVX-512 BF16 multiplies and adds 32 pairs in the time it takes for 16 in f32. bf16 is f32 without its lower
//! 16 bits: the same range, 8 bits of precision. Other processors run the same loop in portable code, more slowly.

use std::cell::Cell;
use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::matrix::Matrix;

/// Vectors of 16 columns that the inner loop keeps in registers, and rows: 3 x 8 sums of 32 registers.
const VECTORS: usize = 3;
const ROWS: usize = 8;
const LANES: usize = 16;
/// Columns of a panel.
const WIDTH: usize = VECTORS * LANES;
/// Rows of a task that a thread takes at a time.
const TASK_ROWS: usize = 64;

/// The nearest bf16, ties to even, as the low 16 bits.
#[inline(always)]
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding up could carry a NaN's bits into its sign.
    if value.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

/// Two neighbours along the inner dimension: what one instruction multiplies by another pair, and adds.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    round(first) | round(second) << 16
}

/// A right-hand matrix `(inner, columns)`, rounded, in the order in which the inner loop reads it: panels of [`WIDTH`] columns,
/// in each the pairs of rows, in each the columns. The last panel is as wide as it must be, in whole vectors.
#[derive(Debug)]
pub(crate) struct Panels {
    data: Vec<u32>,
    inner: usize,
    columns: usize,
}

impl Panels {
    pub fn pack(b: Matrix<f32>) -> Self {
        let (inner, columns) = (b.rows, b.columns);
        let pairs = inner.div_ceil(2);
        let mut data = vec![0; pairs * columns.next_multiple_of(LANES)];
        data.par_chunks_mut((pairs * WIDTH).max(1)).enumerate().for_each(|(panel, data)| {
            let first = panel * WIDTH;
            let width = WIDTH.min(columns.next_multiple_of(LANES) - first);
            let used = width.min(columns - first);
            if b.column_stride == 1 {
                interleave_rows(data, width, &b, first..first + used, 1.0);
            } else {
                interleave_columns(data, width, &b, first..first + used);
            }
        });
        Self { data, inner, columns }
    }

    /// The panel that begins at column `WIDTH * index`: its data, its vectors per row, its columns.
    fn panel(&self, index: usize) -> (&[u32], usize, usize) {
        let pairs = self.inner.div_ceil(2);
        let columns = WIDTH.min(self.columns - index * WIDTH);
        let vectors = columns.div_ceil(LANES);
        let begin = index * pairs * WIDTH;
        (&self.data[begin..begin + pairs * vectors * LANES], vectors, columns)
    }
}

/// For a matrix whose rows are contiguous.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn interleave_rows(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>, scale: f32) {
    for (index, pairs) in panel.chunks_exact_mut(width).enumerate() {
        let row = |k: usize| &b.data[k * b.row_stride + columns.start..k * b.row_stride + columns.end];
        let first = row(2 * index);
        if 2 * index + 1 < b.rows {
            for ((target, &low), &high) in pairs.iter_mut().zip(first).zip(row(2 * index + 1)) {
                *target = pair(low * scale, high * scale);
            }
        } else {
            for (target, &low) in pairs.iter_mut().zip(first) {
                *target = pair(low * scale, 0.0);
            }
        }
    }
}

/// For a matrix whose columns are contiguous.
fn interleave_columns(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>) {
    for (offset, column) in columns.enumerate() {
        let column = &b.data[column * b.column_stride..][..b.rows];
        for (index, values) in column.chunks(2).enumerate() {
            panel[index * width + offset] = pair(values[0], values.get(1).copied().unwrap_or(0.0));
        }
    }
}

/// A left-hand matrix times a number, rounded, in pairs along the inner dimension. A row-major one stays so. Of the transpose
/// of a row-major one, [`ROWS`] rows at a time lie side by side, so that either is read and written in order.
struct Left {
    data: Vec<u32>,
    pairs: usize,
    transposed: bool,
}

thread_local! {
    /// The last product's packed left side: the next one's takes its place, without being cleared.
    static BUFFER: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

impl Left {
    fn pack(a: Matrix<f32>, scale: f32) -> Self {
        let (pairs, transposed) = (a.columns.div_ceil(2), a.column_stride != 1);
        let mut data = BUFFER.take();
        data.resize(pairs * if transposed { a.rows.next_multiple_of(ROWS) } else { a.rows }, 0);
        if transposed {
            data.par_chunks_mut((ROWS * pairs).max(1)).enumerate().for_each(|(block, data)| {
                let first = block * ROWS;
                interleave_rows(data, ROWS, &a.t(), first..a.rows.min(first + ROWS), scale);
            });
        } else {
            data.par_chunks_mut((TASK_ROWS * pairs).max(1)).enumerate().for_each(|(task, data)| {
                for (index, pairs) in data.chunks_exact_mut(pairs).enumerate() {
                    let begin = (task * TASK_ROWS + index) * a.row_stride;
                    pack_row(pairs, &a.data[begin..begin + a.columns], scale);
                }
            });
        }
        Self { data, pairs, transposed }
    }

    /// The rows from `row`, a multiple of [`ROWS`], on.
    fn rows(&self, row: usize) -> Rows<'_> {
        let (row_stride, pair_stride) = if self.transposed { (1, ROWS) } else { (self.pairs, 1) };
        Rows { data: &self.data[row * self.pairs..], pairs: self.pairs, row_stride, pair_stride }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        BUFFER.set(std::mem::take(&mut self.data));
    }
}

/// Some rows of a left-hand matrix.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [u32],
    pairs: usize,
    row_stride: usize,
    pair_stride: usize,
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn pack_row(pairs: &mut [u32], values: &[f32], scale: f32) {
    let (whole, rest) = values.as_chunks::<2>();
    for (target, &[low, high]) in pairs.iter_mut().zip(whole) {
        *target = pair(low * scale, high * scale);
    }
    if let &[last] = rest {
        pairs[whole.len()] = pair(last * scale, 0.0);
    }
}

/// A matrix that tasks write to, each its own rows and columns.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: the tasks of one product write to elements that no other task reads or writes.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

impl Output {
    // A method, so that closures capture the whole value and not the pointer in it.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// `output += scale * a b` for a row-major `output` of `(a.rows, b.columns)`, on all cores.
///
/// Every element is one sum in order of the inner dimension, whatever the number of threads.
pub(crate) fn multiply_add(output: &mut [f32], scale: f64, a: Matrix<f32>, b: &Panels) {
    assert_eq!(output.len(), a.rows * b.columns, "the product has another size than its slice");
    // SAFETY: the slice has the product's size.
    unsafe { run(Output(output.as_mut_ptr()), Start::Output, scale, a, b) }
}

/// `scale * a b`, plus a bias `(b.columns)` in each row if there is one, as a new row-major matrix.
pub(crate) fn product(scale: f64, a: Matrix<f32>, b: &Panels, bias: Option<&[f32]>) -> Vec<f32> {
    assert!(bias.is_none_or(|bias| bias.len() == b.columns), "the bias has another size than the columns");
    let count = a.rows * b.columns;
    let mut output = Vec::with_capacity(count);
    // SAFETY: there is room for the product, and every element of it is written before the length says that it is there.
    unsafe {
        run(Output(output.as_mut_ptr()), bias.map_or(Start::Zero, Start::Bias), scale, a, b);
        output.set_len(count);
    }
    output
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Start<'a> {
    Zero,
    Output,
    /// The same in each row.
    Bias(&'a [f32]),
}

impl<'a> Start<'a> {
    /// From that column on.
    fn from(self, column: usize) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(&bias[column..]),
            other => other,
        }
    }
}

/// # Safety
/// `output` must have room for `(a.rows, b.columns)` numbers, which nobody else uses, and hold them if they are to be added to.
unsafe fn run(output: Output, start: Start, scale: f64, a: Matrix<f32>, b: &Panels) {
    assert_eq!(a.columns, b.inner, "inner dimensions differ");
    let (rows, columns) = (a.rows, b.columns);
    let left = Left::pack(a, scale as f32);
    let tile = Tile::best();
    let tasks_down = rows.div_ceil(TASK_ROWS);
    // Neighbouring tasks share a panel, which then stays in the cache of the core that takes them.
    (0..tasks_down * columns.div_ceil(WIDTH)).into_par_iter().for_each(|task| {
        let (panel, down) = (task / tasks_down, task % tasks_down);
        let (data, vectors, used) = b.panel(panel);
        let start = start.from(panel * WIDTH);
        for row in (down * TASK_ROWS..rows.min((down + 1) * TASK_ROWS)).step_by(ROWS) {
            let target = output.at(row * columns + panel * WIDTH);
            // SAFETY: the tile writes `ROWS` rows or what is left of them, and `used` columns of each, all within the output,
            // and no other task's.
            unsafe { tile.run(left.rows(row), ROWS.min(rows - row), data, vectors, target, columns, used, start) };
        }
    });
}

/// Whether this processor has an instruction for these products.
pub(crate) fn is_native() -> bool {
    Tile::best() != Tile::Portable
}

/// The inner loop: up to [`ROWS`] rows times a panel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tile {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Tile {
    /// The fastest that this processor has.
    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
            return Self::Avx512;
        }
        Self::Portable
    }

    /// # Safety
    /// `target` must point at `height` rows of `columns` numbers that may be written, `stride` apart, and `left` hold as many.
    #[allow(clippy::too_many_arguments)]
    unsafe fn run(
        self,
        left: Rows,
        height: usize,
        panel: &[u32],
        vectors: usize,
        target: *mut f32,
        stride: usize,
        columns: usize,
        start: Start,
    ) {
        match self {
            Self::Portable => {
                for row in 0..height {
                    let mut sums = [0.0; WIDTH];
                    portable_row(&mut sums, left, row, panel, vectors * LANES);
                    for (column, sum) in sums.into_iter().enumerate().take(columns) {
                        // SAFETY: as the caller promises.
                        unsafe {
                            let target = target.add(row * stride + column);
                            *target = sum
                                + match start {
                                    Start::Zero => 0.0,
                                    Start::Output => *target,
                                    Start::Bias(bias) => bias[column],
                                };
                        }
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                macro_rules! dispatch {
                    ($($height:literal)*) => {
                        match (height, vectors) {
                            $(
                                ($height, 1) => avx512::<$height, 1>(left, panel, target, stride, columns, start),
                                ($height, 2) => avx512::<$height, 2>(left, panel, target, stride, columns, start),
                                ($height, _) => avx512::<$height, 3>(left, panel, target, stride, columns, start),
                            )*
                            _ => {}
                        }
                    };
                }
                // SAFETY: the processor has the instructions (`best` asked it), the rest as the caller promises.
                unsafe { dispatch!(1 2 3 4 5 6 7 8) }
            }
        }
    }
}

/// The two numbers of a pair.
#[inline(always)]
fn values(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn portable_row(sums: &mut [f32; WIDTH], left: Rows, row: usize, panel: &[u32], width: usize) {
    for (index, right) in panel.chunks_exact(width).enumerate() {
        let (low, high) = values(left.data[row * left.row_stride + index * left.pair_stride]);
        for (sum, &right) in sums.iter_mut().zip(right) {
            let right = values(right);
            *sum += low * right.0 + high * right.1;
        }
    }
}

/// # Safety
/// As [`Tile::run`] for `R` rows, on a processor with AVX-512 BF16; `panel` holds `left.pairs` rows of `V` vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512<const R: usize, const V: usize>(
    left: Rows,
    panel: &[u32],
    target: *mut f32,
    stride: usize,
    columns: usize,
    start: Start,
) {
    use std::arch::x86_64::*;
    let Rows { data, pairs, row_stride, pair_stride } = left;
    assert!(panel.len() == pairs * V * LANES && data.len() > (R - 1) * row_stride + (pairs - 1) * pair_stride);
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (data, panel) = (data.as_ptr(), panel.as_ptr());
    for index in 0..pairs {
        // SAFETY: `index` is below `pairs`, and the slices are as long as the assertion says.
        unsafe {
            let right: [__m512bh; V] = std::array::from_fn(|v| {
                std::mem::transmute(_mm512_loadu_si512(panel.add((index * V + v) * LANES).cast()))
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                let pair = *data.add(r * row_stride + index * pair_stride);
                let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair as i32));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm512_dpbf16_ps(*sum, right, pair);
                }
            }
        }
    }
    for v in 0..V {
        let column = v * LANES;
        let mask = match columns - column {
            rest if rest < LANES => (1u16 << rest) - 1,
            _ => !0,
        };
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: the mask leaves out what lies beyond the row's last column, and the bias' with it.
            unsafe {
                let target = target.add(r * stride + column);
                let sum = match start {
                    Start::Zero => sums[v],
                    Start::Output => _mm512_add_ps(sums[v], _mm512_maskz_loadu_ps(mask, target)),
                    Start::Bias(bias) => _mm512_add_ps(sums[v], _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(column))),
                };
                _mm512_mask_storeu_ps(target, mask, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Every way a product is taken, against the sum of the rounded numbers' products in f64.
    #[test]
    fn products_equal_those_of_the_rounded_numbers_whatever_the_shape_and_order_in_memory() {
        for (m, k, n) in [(1, 1, 1), (8, 2, 16), (7, 3, 5), (9, 33, 49), (130, 64, 96), (65, 384, 100), (3, 5, 47)] {
            let (a, b, c) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3));
            let (ra, rb) = (rounded(&a), rounded(&b));
            let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..rows * columns).map(|i| x[(i % rows) * columns + i / rows]).collect()
            };
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            let lefts = [Matrix::new(&a, m, k), Matrix::new(&at, k, m).t()];
            let rights = [Matrix::new(&b, k, n), Matrix::new(&bt, n, k).t()];
            for (left, right) in lefts.into_iter().flat_map(|l| rights.map(|r| (l, r))) {
                let right = Panels::pack(right);
                let mut sum = c.clone();
                multiply_add(&mut sum, 2.0, left, &right);
                let (plain, biased) = (product(2.0, left, &right, None), product(2.0, left, &right, Some(&c[..n])));
                for i in 0..m * n {
                    let products = (0..k).map(|j| ra[i / n * k + j] * rb[j * n + i % n]);
                    let expected = 2.0 * products.sum::<f64>();
                    // Each of k sums of terms below 2 is rounded to f32.
                    let bound = (k as f64 + 2.0) * 2.0 * k as f64 * f64::from(f32::EPSILON);
                    for (found, start) in [(sum[i], c[i]), (plain[i], 0.0), (biased[i], c[i % n])] {
                        let error = (f64::from(found) - f64::from(start) - expected).abs();
                        assert!(error <= bound, "{m} x {k} x {n}: {found}, expected {start} + {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_portable_tile_gives_what_the_processors_own_gives() {
        let (rows, inner) = (8, 100);
        let (a, b) = (numbers(rows * inner, 1), numbers(inner * 41, 2));
        let panels = Panels::pack(Matrix::new(&b, inner, 41));
        let left = Left::pack(Matrix::new(&a, rows, inner), 1.0);
        let (panel, vectors, columns) = panels.panel(0);
        let run = |tile: Tile| {
            let mut output = vec![f32::NAN; rows * 41];
            // SAFETY: the output has the rows and columns that are asked for.
            unsafe { tile.run(left.rows(0), rows, panel, vectors, output.as_mut_ptr(), 41, columns, Start::Zero) };
            output
        };
        let (portable, best) = (run(Tile::Portable), run(Tile::best()));
        // Both add at most `inner` terms below 1, in another order.
        let bound = (inner * inner) as f32 * f32::EPSILON;
        assert!(portable.iter().zip(&best).all(|(x, y)| (x - y).abs() <= bound), "{portable:?} {best:?}");
    }
}
