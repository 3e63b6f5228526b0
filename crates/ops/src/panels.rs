//! Sums of matrix products whose right side lies in the order in which the inner loop reads it, in f32 or rounded to bf16.
//!
//! What is gained over a general product: a frozen weight is ordered once and not at every step, a left side in f32 is read
//! where it lies, and the bias and a LoRA branch's second product join the sums while they are in registers.
//!
//! bf16 is f32 without its lower 16 bits: the same range, 8 bits of precision. A processor with AVX-512 BF16 multiplies and adds
//! 32 pairs in the time it takes for 16 in f32. Other processors run the same loop in portable code, more slowly.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

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
/// A left side of no more rows reads a right side once or twice: then ordering it does not pay.
const FEW_ROWS: usize = 2 * ROWS;
/// The most products that are added up.
const TERMS: usize = 2;

/// How factors are written: a 32-bit word holds one f32, or two neighbours along the inner dimension as bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    F32,
    Bf16,
}

impl Number {
    /// Words along an inner dimension.
    fn steps(self, inner: usize) -> usize {
        match self {
            Self::F32 => inner,
            Self::Bf16 => inner.div_ceil(2),
        }
    }

    /// Whether this processor has an instruction for products of such numbers, sixteen sums at a time.
    pub fn is_native(self) -> bool {
        Tile::best(self == Self::Bf16) != Tile::Portable
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

/// Two neighbours along the inner dimension: what one instruction multiplies by another pair, and adds.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    round(first) | round(second) << 16
}

/// A right-hand matrix `(inner, columns)` as panels of [`WIDTH`] columns, in each the steps along the inner dimension, in each
/// the columns' words. The last panel is as wide as it must be, in whole vectors.
#[derive(Debug)]
pub(crate) struct Panels {
    data: Vec<u32>,
    number: Number,
    inner: usize,
    columns: usize,
}

impl Panels {
    pub fn pack(b: Matrix<f32>, number: Number) -> Self {
        let (inner, columns) = (b.rows, b.columns);
        let steps = number.steps(inner);
        let mut data = vec![0; steps * columns.next_multiple_of(LANES)];
        data.par_chunks_mut((steps * WIDTH).max(1)).enumerate().for_each(|(panel, data)| {
            let first = panel * WIDTH;
            let width = WIDTH.min(columns.next_multiple_of(LANES) - first);
            let columns = first..columns.min(first + width);
            match (number, b.column_stride == 1) {
                (Number::Bf16, true) => interleave_rows(data, width, &b, columns),
                (Number::Bf16, false) => interleave_columns(data, width, &b, columns),
                (Number::F32, true) => copy_rows(data, width, &b, columns),
                (Number::F32, false) => copy_columns(data, width, &b, columns),
            }
        });
        Self { data, number, inner, columns }
    }
}

fn copy_rows(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>) {
    for (row, target) in panel.chunks_exact_mut(width).enumerate() {
        let source = &b.data[row * b.row_stride + columns.start..row * b.row_stride + columns.end];
        target[..columns.len()].copy_from_slice(words(source));
    }
}

fn copy_columns(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>) {
    for (offset, column) in columns.enumerate() {
        let column = &b.data[column * b.column_stride..][..b.rows];
        panel[offset..].iter_mut().step_by(width).zip(words(column)).for_each(|(target, &word)| *target = word);
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

/// For a matrix whose columns are contiguous.
fn interleave_columns(panel: &mut [u32], width: usize, b: &Matrix<f32>, columns: Range<usize>) {
    for (offset, column) in columns.enumerate() {
        let column = &b.data[column * b.column_stride..][..b.rows];
        for (index, values) in column.chunks(2).enumerate() {
            panel[index * width + offset] = pair(values[0], values.get(1).copied().unwrap_or(0.0));
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
    pub fn new(b: Matrix<'a, f32>, number: Number, rows: usize) -> Self {
        let in_place = number == Number::F32 && b.column_stride == 1 && b.columns.is_multiple_of(LANES);
        if in_place && rows <= FEW_ROWS { Self::Rows(b) } else { Self::Panels(Arc::new(Panels::pack(b, number))) }
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

    /// The panel that begins at column `WIDTH * index`, of that many vectors: its words, and the distance from step to step.
    fn panel(&self, index: usize, vectors: usize) -> (&[u32], usize) {
        match self {
            Self::Panels(panels) => {
                let steps = panels.number.steps(panels.inner);
                (&panels.data[index * steps * WIDTH..][..steps * vectors * LANES], vectors * LANES)
            }
            Self::Rows(matrix) => (&words(matrix.data)[index * WIDTH..], matrix.row_stride),
        }
    }
}

/// A left-hand matrix: f32 where it lies; or bf16, in pairs along the inner dimension. Of the transpose of a row-major matrix,
/// [`ROWS`] rows at a time then lie side by side, so that it is read and written in order.
enum Left<'a> {
    InPlace(Matrix<'a, f32>),
    Pairs { data: Vec<u32>, pairs: usize, transposed: bool },
}

thread_local! {
    /// The last product's packed left side: the next one's takes its place, without being cleared.
    static BUFFER: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

impl<'a> Left<'a> {
    fn new(a: Matrix<'a, f32>, number: Number) -> Self {
        if number == Number::F32 {
            return Self::InPlace(a);
        }
        let (pairs, transposed) = (a.columns.div_ceil(2), a.column_stride != 1);
        let mut data = BUFFER.take();
        data.resize(pairs * if transposed { a.rows.next_multiple_of(ROWS) } else { a.rows }, 0);
        if transposed {
            data.par_chunks_mut((ROWS * pairs).max(1)).enumerate().for_each(|(block, data)| {
                let first = block * ROWS;
                interleave_rows(data, ROWS, &a.t(), first..a.rows.min(first + ROWS));
            });
        } else {
            data.par_chunks_mut((TASK_ROWS * pairs).max(1)).enumerate().for_each(|(task, data)| {
                for (index, pairs) in data.chunks_exact_mut(pairs).enumerate() {
                    let begin = (task * TASK_ROWS + index) * a.row_stride;
                    pack_row(pairs, &a.data[begin..begin + a.columns]);
                }
            });
        }
        Self::Pairs { data, pairs, transposed }
    }

    /// The rows from `row`, a multiple of [`ROWS`], on: their words, and the distances from row to row and from step to step.
    fn rows(&self, row: usize) -> (&[u32], usize, usize) {
        match self {
            Self::InPlace(a) => (&words(a.data)[row * a.row_stride..], a.row_stride, a.column_stride),
            Self::Pairs { data, pairs, transposed: true } => (&data[row * pairs..], 1, ROWS),
            Self::Pairs { data, pairs, transposed: false } => (&data[row * pairs..], *pairs, 1),
        }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        if let Self::Pairs { data, .. } = self {
            BUFFER.set(std::mem::take(data));
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn pack_row(pairs: &mut [u32], values: &[f32]) {
    let (whole, rest) = values.as_chunks::<2>();
    for (target, &[low, high]) in pairs.iter_mut().zip(whole) {
        *target = pair(low, high);
    }
    if let &[last] = rest {
        pairs[whole.len()] = pair(last, 0.0);
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

/// The sum of the products `a b` of one or two terms, plus a bias `(columns)` in each row if there is one, as a new row-major
/// matrix, on all cores.
///
/// Every element is one sum in order of the terms and of their inner dimensions, whatever the number of threads.
pub(crate) fn sum_of_products(terms: &[(Matrix<f32>, Right)], bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, (_, columns)) = (terms[0].0.rows, terms[0].1.size());
    assert!(terms.len() <= TERMS, "too many products");
    assert!(
        terms.iter().all(|(a, b)| b.size() == (a.columns, columns) && a.rows == rows),
        "the products' sizes differ"
    );
    assert!(bias.is_none_or(|bias| bias.len() == columns), "the bias has another size than the columns");
    let lefts: Vec<Left> = terms.iter().map(|(a, b)| Left::new(*a, b.number())).collect();
    let tile = Tile::best(terms.iter().any(|(_, b)| b.number() == Number::Bf16));
    let mut values = Vec::with_capacity(rows * columns);
    let output = Output(values.as_mut_ptr());
    let tasks_down = rows.div_ceil(TASK_ROWS);
    // Neighbouring tasks share a panel, which then stays in the cache of the core that takes them.
    (0..tasks_down * columns.div_ceil(WIDTH)).into_par_iter().for_each(|task| {
        let (panel, down) = (task / tasks_down, task % tasks_down);
        let first = panel * WIDTH;
        let used = WIDTH.min(columns - first);
        let vectors = used.div_ceil(LANES);
        let bias = bias.map(|bias| &bias[first..first + used]);
        for row in (down * TASK_ROWS..rows.min((down + 1) * TASK_ROWS)).step_by(ROWS) {
            let streams = std::array::from_fn(|term| match terms.get(term) {
                Some((a, b)) => {
                    let (left, row_stride, step_stride) = lefts[term].rows(row);
                    let (panel, panel_stride) = b.panel(panel, vectors);
                    let (number, steps) = (b.number(), b.number().steps(a.columns));
                    Stream { number, steps, left, row_stride, step_stride, panel, panel_stride }
                }
                None => Stream::EMPTY,
            });
            let target = Target { data: output.at(row * columns + first), stride: columns, columns: used };
            // SAFETY: the tile writes `ROWS` rows or what is left of them, and `used` columns of each, all within the output,
            // and no other task's.
            unsafe { tile.run(&streams, ROWS.min(rows - row), vectors, target, bias) };
        }
    });
    // SAFETY: the capacity is there, and the tasks have written every element.
    unsafe { values.set_len(rows * columns) };
    values
}

/// Some rows of a left side, and a panel of a right side: what a tile multiplies.
#[derive(Clone, Copy)]
struct Stream<'a> {
    number: Number,
    steps: usize,
    left: &'a [u32],
    row_stride: usize,
    step_stride: usize,
    panel: &'a [u32],
    panel_stride: usize,
}

impl Stream<'_> {
    const EMPTY: Self =
        Stream { number: Number::F32, steps: 0, left: &[], row_stride: 0, step_stride: 0, panel: &[], panel_stride: 0 };

    /// Fails if that many rows and vectors reach beyond the slices.
    #[inline(always)]
    fn check(&self, rows: usize, vectors: usize) {
        if let Some(last) = self.steps.checked_sub(1) {
            assert!(self.left.len() > (rows - 1) * self.row_stride + last * self.step_stride);
            assert!(self.panel.len() >= last * self.panel_stride + vectors * LANES);
        }
    }
}

/// Where a tile's sums go: rows `stride` apart, of which the first `columns` are written.
#[derive(Clone, Copy)]
struct Target {
    data: *mut f32,
    stride: usize,
    columns: usize,
}

/// The inner loop: up to [`ROWS`] rows times a panel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tile {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Tile {
    /// The fastest that this processor has.
    fn best(bf16: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            if !bf16 {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx512bf16") {
                return Self::Avx512Bf16;
            }
        }
        let _ = bf16;
        Self::Portable
    }

    /// # Safety
    /// `target` must point at `height` rows that may be written.
    unsafe fn run(
        self,
        streams: &[Stream; TERMS],
        height: usize,
        vectors: usize,
        target: Target,
        bias: Option<&[f32]>,
    ) {
        #[cfg(target_arch = "x86_64")]
        macro_rules! dispatch {
            ($tile:ident: $($height:literal)*) => {
                match (height, vectors) {
                    $(
                        ($height, 1) => $tile::<$height, 1>(streams, target, bias),
                        ($height, 2) => $tile::<$height, 2>(streams, target, bias),
                        ($height, _) => $tile::<$height, 3>(streams, target, bias),
                    )*
                    _ => {}
                }
            };
        }
        match self {
            Self::Portable => {
                for row in 0..height {
                    let mut sums = [0.0; WIDTH];
                    for stream in streams {
                        portable_row(&mut sums, stream, row, vectors * LANES);
                    }
                    for (column, sum) in sums.into_iter().enumerate().take(target.columns) {
                        // SAFETY: as the caller promises.
                        unsafe {
                            *target.data.add(row * target.stride + column) = sum + bias.map_or(0.0, |b| b[column])
                        };
                    }
                }
            }
            // SAFETY: the processor has the instructions (`best` asked it), the rest as the caller promises.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { dispatch!(avx512: 1 2 3 4 5 6 7 8) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => unsafe { dispatch!(avx512_bf16: 1 2 3 4 5 6 7 8) },
        }
    }
}

/// The two numbers of a pair.
#[inline(always)]
fn values(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn portable_row(sums: &mut [f32; WIDTH], stream: &Stream, row: usize, width: usize) {
    for step in 0..stream.steps {
        let left = stream.left[row * stream.row_stride + step * stream.step_stride];
        let right = &stream.panel[step * stream.panel_stride..][..width];
        match stream.number {
            Number::F32 => {
                let left = f32::from_bits(left);
                sums.iter_mut().zip(right).for_each(|(sum, &right)| *sum += left * f32::from_bits(right));
            }
            Number::Bf16 => {
                let (low, high) = values(left);
                for (sum, &right) in sums.iter_mut().zip(right) {
                    let right = values(right);
                    *sum += low * right.0 + high * right.1;
                }
            }
        }
    }
}

/// Words as the processor's type for pairs of bf16.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn as_pairs(words: std::arch::x86_64::__m512i) -> std::arch::x86_64::__m512bh {
    // SAFETY: both are 64 bytes of which every pattern has a meaning.
    unsafe { std::mem::transmute(words) }
}

/// A tile of AVX-512: `$multiply_add` takes a sum, a vector of the panel and a word of the left side in every lane, for each
/// kind of number that the processor has instructions for.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_tile {
    ($name:ident, $features:literal, $($number:pat => $multiply_add:expr),+) => {
        /// # Safety
        /// As [`Tile::run`] for `R` rows and `V` vectors, on a processor with these features.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const V: usize>(
            streams: &[Stream; TERMS],
            target: Target,
            bias: Option<&[f32]>,
        ) {
            use std::arch::x86_64::*;
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            for stream in streams {
                stream.check(R, V);
                let (left, panel) = (stream.left.as_ptr(), stream.panel.as_ptr());
                match stream.number {
                    $($number => {
                        let multiply_add = $multiply_add;
                        for step in 0..stream.steps {
                            // SAFETY: the slices hold that many steps of that many rows and vectors: `check` asked.
                            unsafe {
                                let right: [__m512i; V] = std::array::from_fn(|v| {
                                    _mm512_loadu_si512(panel.add(step * stream.panel_stride + v * LANES).cast())
                                });
                                for (row, sums) in sums.iter_mut().enumerate() {
                                    let word = *left.add(row * stream.row_stride + step * stream.step_stride);
                                    let word = _mm512_set1_epi32(word as i32);
                                    for (sum, right) in sums.iter_mut().zip(right) {
                                        *sum = multiply_add(*sum, right, word);
                                    }
                                }
                            }
                        }
                    })+
                }
            }
            for v in 0..V {
                let column = v * LANES;
                let mask = match target.columns - column {
                    rest if rest < LANES => (1u16 << rest) - 1,
                    _ => !0,
                };
                // SAFETY: the mask leaves out what lies beyond the row's last column, and the bias' with it.
                unsafe {
                    let bias = match bias {
                        Some(bias) => _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(column)),
                        None => _mm512_setzero_ps(),
                    };
                    for (row, sums) in sums.iter().enumerate() {
                        let target = target.data.add(row * target.stride + column);
                        _mm512_mask_storeu_ps(target, mask, _mm512_add_ps(sums[v], bias));
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
avx512_tile!(avx512, "avx512f", _ => |sum, right, word| {
    _mm512_fmadd_ps(_mm512_castsi512_ps(right), _mm512_castsi512_ps(word), sum)
});

#[cfg(target_arch = "x86_64")]
avx512_tile!(avx512_bf16, "avx512f,avx512bf16",
    Number::F32 => |sum, right, word| _mm512_fmadd_ps(_mm512_castsi512_ps(right), _mm512_castsi512_ps(word), sum),
    Number::Bf16 => |sum, right, word| _mm512_dpbf16_ps(sum, as_pairs(right), as_pairs(word))
);

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
                    let plain = sum_of_products(std::slice::from_ref(&term), None);
                    let biased = sum_of_products(&[term, branch.clone()], Some(&bias));
                    for i in 0..m * n {
                        let (row, column) = (i / n, i % n);
                        let product: f64 = (0..k).map(|j| fa[row * k + j] * fb[j * n + column]).sum();
                        let other: f64 = (0..3).map(|j| f64::from(c[row * 3 + j]) * f64::from(d[j * n + column])).sum();
                        // Each of k + 4 sums of terms below 1 is rounded to f32.
                        let bound = (k as f64 + 4.0).powi(2) * f64::from(f32::EPSILON);
                        let expected = [product, product + other + f64::from(bias[column])];
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
    fn the_portable_tile_gives_what_the_processors_own_gives() {
        let (rows, inner) = (8, 100);
        let (a, b) = (numbers(rows * inner, 1), numbers(inner * 41, 2));
        for number in [Number::F32, Number::Bf16] {
            let right = Right::new(Matrix::new(&b, inner, 41), number, rows);
            let left = Left::new(Matrix::new(&a, rows, inner), number);
            let (words, row_stride, step_stride) = left.rows(0);
            let (panel, panel_stride) = right.panel(0, VECTORS);
            let steps = number.steps(inner);
            let stream = Stream { number, steps, left: words, row_stride, step_stride, panel, panel_stride };
            let run = |tile: Tile| {
                let mut output = vec![f32::NAN; rows * 41];
                let target = Target { data: output.as_mut_ptr(), stride: 41, columns: 41 };
                // SAFETY: the output has the rows and columns that are asked for.
                unsafe { tile.run(&[stream, Stream::EMPTY], rows, VECTORS, target, None) };
                output
            };
            let (portable, best) = (run(Tile::Portable), run(Tile::best(number == Number::Bf16)));
            // Both add at most `inner` terms below 1, in another order.
            let bound = (inner * inner) as f32 * f32::EPSILON;
            assert!(portable.iter().zip(&best).all(|(x, y)| (x - y).abs() <= bound), "{portable:?} {best:?}");
        }
    }
}
