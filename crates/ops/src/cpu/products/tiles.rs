//! The inner loops of matrix products: some rows of a left side times a panel of a right side, the sums in registers.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use std::mem::MaybeUninit;

use multiversion::multiversion;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::cpu::products::amx;

/// Columns of a vector.
pub(crate) const LANES: usize = 16;
/// Vectors of a panel, and rows of a vector tile: 3 x 8 sums of 32 registers.
const VECTORS: usize = 3;
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 8;
/// Columns of a panel.
pub(crate) const WIDTH: usize = VECTORS * LANES;
/// The most rows of any tile. A left side in pairs can be read up to a multiple of it.
pub(crate) const MOST_ROWS: usize = 32;
/// The most products that are added up.
pub(crate) const TERMS: usize = 2;

/// How factors are written: a 32-bit word holds one f32, or two neighbors along the inner dimension as bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    F32,
    Bf16,
}

impl Number {
    /// Words along an inner dimension.
    pub(crate) fn steps(self, inner: usize) -> usize {
        match self {
            Self::F32 => inner,
            Self::Bf16 => inner.div_ceil(2),
        }
    }

    /// Where along the inner dimension a step begins.
    pub(crate) fn first_value(self, step: usize) -> usize {
        match self {
            Self::F32 => step,
            Self::Bf16 => 2 * step,
        }
    }

    /// Whether this processor has an instruction for products of such numbers, sixteen sums at a time.
    pub(crate) fn is_native(self) -> bool {
        Tile::best(self) != Tile::Portable
    }
}

/// Some rows of a left side, and a panel of a right side.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a> {
    pub number: Number,
    pub steps: usize,
    pub left: &'a [u32],
    pub row_stride: usize,
    pub step_stride: usize,
    pub panel: &'a [u32],
    pub panel_stride: usize,
    /// The first step that is still to be taken.
    pub first_step: usize,
}

impl Stream<'_> {
    pub(crate) const EMPTY: Self = Stream {
        number: Number::F32,
        steps: 0,
        left: &[],
        row_stride: 0,
        step_stride: 0,
        panel: &[],
        panel_stride: 0,
        first_step: 0,
    };

    /// Goes on to the rows from `rows` on.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn skip_rows(&mut self, rows: usize) {
        self.left = self.left.get(rows * self.row_stride..).unwrap_or_default();
    }

    /// Whether no step is left.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn is_taken(&self) -> bool {
        self.first_step >= self.steps
    }

    /// Fails if that many rows and vectors reach beyond the slices.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn check(&self, rows: usize, vectors: usize) {
        if let Some(last) = self.steps.checked_sub(1) {
            assert!(self.left.len() > (rows - 1) * self.row_stride + last * self.step_stride);
            assert!(self.panel.len() >= last * self.panel_stride + vectors * LANES);
        }
    }
}

/// Some rows of what a product works out, over one panel: `scale * (the sum of the streams' products) + bias`.
pub(crate) struct Job<'a> {
    pub streams: [Stream<'a>; TERMS],
    pub scale: f32,
    /// As many as the target has columns.
    pub bias: Option<&'a [f32]>,
    pub target: Target,
}

/// Where results go: rows `stride` apart, of which the first `columns` are written.
pub(crate) struct Target {
    pub data: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

#[cfg(target_arch = "x86_64")]
impl Job<'_> {
    /// Goes on to the rows from `rows` on. Only pointers change: a job or a stream that is copied is read back wider than it was
    /// written, which waits for every store before it, those of the last tile's results, too.
    #[inline(always)]
    fn skip_rows(&mut self, rows: usize) {
        self.streams.iter_mut().for_each(|stream| stream.skip_rows(rows));
        self.target.data = self.target.data.wrapping_add(rows * self.target.stride);
    }
}

impl Target {
    fn vectors(&self) -> usize {
        self.columns.div_ceil(LANES)
    }
}

/// Takes the job's next rows with the tiles that were compiled for their number and for the target's vectors.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($tile:ident, $job:ident, $rows:expr, $before:expr) => {{
        let (rows, before): (usize, Option<&[f32; MOST_ROWS * WIDTH]>) = ($rows, $before);
        let mut done = 0;
        while done < rows {
            let before = before.map(|before| &before[done * WIDTH..]);
            let some = ROWS.min(rows - done);
            by_rows!($tile, $job, some, before, 1 2 3 4 5 6 7 8);
            $job.skip_rows(some);
            done += some;
        }
    }};
    ($tile:ident, $job:ident, $rows:expr, $before:expr, $($height:literal)*) => {
        match ($rows, $job.target.vectors()) {
            $(
                ($height, 1) => $tile::<$height, 1>($job, $before),
                ($height, 2) => $tile::<$height, 2>($job, $before),
                ($height, 3) => $tile::<$height, 3>($job, $before),
            )*
            (rows, vectors) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
        }
    };
}

/// An inner loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tile {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
}

impl Tile {
    /// The fastest last.
    pub(crate) const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Self::Amx,
    ];

    /// Whether it takes sums of which the first product is of such numbers, on this processor.
    pub(crate) fn takes(self, first: Number) -> bool {
        match self {
            Self::Portable => matches!(first, Number::F32 | Number::Bf16),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => first == Number::F32 && is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => first == Number::Bf16 && is_x86_feature_detected!("avx512bf16"),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Self::Avx512Bf16.takes(first) && amx::is_there(),
        }
    }

    /// The fastest that takes them.
    pub(crate) fn best(first: Number) -> Self {
        Self::ALL.iter().copied().rfind(|tile| tile.takes(first)).unwrap_or(Self::Portable)
    }

    /// This loop, ready to run on the calling thread.
    pub(crate) fn ready(self) -> Ready {
        Ready {
            tile: self,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: `takes` asked for the unit before it chose this tile.
            amx: (self == Self::Amx).then(|| unsafe { amx::Unit::take() }),
        }
    }
}

/// An inner loop that can run on this thread.
pub(crate) struct Ready {
    tile: Tile,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    amx: Option<amx::Unit>,
}

impl Ready {
    /// # Safety
    /// The job's target must point at rows that may be written. For [`Tile::Amx`] the first stream's left side must be
    /// readable up to a multiple of [`MOST_ROWS`] rows, and its steps must lie side by side.
    pub(crate) unsafe fn run(&self, job: &mut Job) {
        match self.tile {
            Tile::Portable => {
                for row in 0..job.target.rows {
                    let mut sums = [0.0; WIDTH];
                    for stream in &job.streams {
                        portable_row(&mut sums, stream, row, job.target.vectors() * LANES);
                    }
                    for (column, sum) in sums.into_iter().enumerate().take(job.target.columns) {
                        let value = job.scale * sum + job.bias.map_or(0.0, |bias| bias[column]);
                        // SAFETY: as the caller promises.
                        unsafe { *job.target.data.add(row * job.target.stride + column) = value };
                    }
                }
            }
            // SAFETY: the processor has the instructions (`takes` asked it), the rest as the caller promises.
            #[cfg(target_arch = "x86_64")]
            Tile::Avx512 => unsafe { by_rows!(avx512, job, job.target.rows, None) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Tile::Avx512Bf16 => unsafe { by_rows!(avx512_bf16, job, job.target.rows, None) },
            // SAFETY: as above.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Tile::Amx => unsafe {
                let steps = amx::whole_steps(&job.streams[0]);
                let Some(amx) = self.amx.as_ref().filter(|_| steps > 0) else {
                    by_rows!(avx512_bf16, job, job.target.rows, None);
                    return;
                };
                job.streams[0].first_step = steps;
                let bias = job.bias.map_or(Some(&[0.0; WIDTH]), |bias| bias.first_chunk());
                let bias = bias.filter(|_| job.scale == 1.0 && job.streams.iter().all(Stream::is_taken));
                for row in (0..job.target.rows).step_by(MOST_ROWS) {
                    let rows = MOST_ROWS.min(job.target.rows - row);
                    match bias {
                        // Nothing is left to be done.
                        Some(bias) if rows == MOST_ROWS && job.target.columns == WIDTH => {
                            amx.multiply(&job.streams[0], bias, job.target.data, job.target.stride);
                            job.skip_rows(MOST_ROWS);
                        }
                        _ => {
                            let mut sums = MaybeUninit::<[f32; MOST_ROWS * WIDTH]>::uninit();
                            amx.multiply(&job.streams[0], &[0.0; WIDTH], sums.as_mut_ptr().cast(), WIDTH);
                            by_rows!(avx512_bf16, job, rows, Some(sums.assume_init_ref()));
                        }
                    }
                }
            },
        }
    }
}

/// The two numbers of a pair.
#[inline(always)]
pub(crate) fn values(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+fma", "x86_64+avx2+fma"))]
fn portable_row(sums: &mut [f32; WIDTH], stream: &Stream, row: usize, width: usize) {
    for step in stream.first_step..stream.steps {
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
/// kind of number that the processor has instructions for. The sums begin at `before`, rows [`WIDTH`] apart, or at 0.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_tile {
    ($name:ident, $features:literal, $($number:pat => $multiply_add:expr),+) => {
        /// # Safety
        /// As [`Tile::run`] for the first `R` rows of a target of `V` vectors, on a processor with these features.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const V: usize>(job: &Job, before: Option<&[f32]>) {
            use std::arch::x86_64::*;
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            if let Some(before) = before {
                assert!(before.len() >= (R - 1) * WIDTH + V * LANES);
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: the slice is long enough.
                        *sum = unsafe { _mm512_loadu_ps(before.as_ptr().add(row * WIDTH + v * LANES)) };
                    }
                }
            }
            for stream in &job.streams {
                stream.check(R, V);
                let (left, panel) = (stream.left.as_ptr(), stream.panel.as_ptr());
                match stream.number {
                    $($number => {
                        let multiply_add = $multiply_add;
                        for step in stream.first_step..stream.steps {
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
            let scale = _mm512_set1_ps(job.scale);
            for v in 0..V {
                let column = v * LANES;
                let mask = match job.target.columns - column {
                    rest if rest < LANES => (1u16 << rest) - 1,
                    _ => !0,
                };
                // SAFETY: the mask leaves out what lies beyond the row's last column, and the bias' with it.
                unsafe {
                    let bias = match job.bias {
                        Some(bias) => _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(column)),
                        None => _mm512_setzero_ps(),
                    };
                    for (row, sums) in sums.iter().enumerate() {
                        let target = job.target.data.add(row * job.target.stride + column);
                        _mm512_mask_storeu_ps(target, mask, _mm512_fmadd_ps(scale, sums[v], bias));
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
