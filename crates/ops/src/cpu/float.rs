//! The two number types the kernels are written for, and the functions the processor has no instruction for.

use candle_core::WithDType;

/// f32 or f64.
pub(crate) trait Float:
    WithDType + num_traits::Float + std::iter::Sum + std::ops::AddAssign + std::ops::MulAssign
{
    /// `e^x`.
    fn exponential(self) -> Self;
    /// The error function, `2/sqrt(pi) * integral of e^(-t^2) from 0 to x`.
    fn error_function(self) -> Self;
    fn of(value: f64) -> Self;
    /// The values as they are, if they are f32.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
    /// f32 values in this type.
    fn from_f32(values: Vec<f32>) -> Vec<Self>;
}

/// The sum of `term` over the values, in sixteen running sums.
#[inline(always)]
pub(crate) fn sum<T: Float>(values: &[T], term: impl Fn(usize, T) -> T) -> T {
    let mut sums = [T::zero(); 16];
    let (pieces, rest) = values.as_chunks::<16>();
    for (index, piece) in pieces.iter().enumerate() {
        for (lane, (sum, &x)) in sums.iter_mut().zip(piece).enumerate() {
            *sum += term(16 * index + lane, x);
        }
    }
    let begin = 16 * pieces.len();
    let rest: T = rest.iter().enumerate().map(|(index, &x)| term(begin + index, x)).sum();
    sums.iter().copied().sum::<T>() + rest
}

/// The highest value, as [`sum`] is taken; minus infinity of none.
#[inline(always)]
pub(crate) fn highest<T: Float>(values: &[T]) -> T {
    let higher = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [T::neg_infinity(); 16];
    let (pieces, rest) = values.as_chunks::<16>();
    for piece in pieces {
        lanes.iter_mut().zip(piece).for_each(|(lane, &x)| *lane = higher(*lane, x));
    }
    lanes.iter().chain(rest).copied().fold(T::neg_infinity(), higher)
}

impl Float for f64 {
    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn error_function(self) -> Self {
        libm::erf(self)
    }

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn from_f32(values: Vec<f32>) -> Vec<Self> {
        values.into_iter().map(f64::from).collect()
    }
}

impl Float for f32 {
    /// Cephes' `expf` without branches, so that a loop over it becomes vector code; within 2 units in the last place.
    #[inline(always)]
    fn exponential(self) -> Self {
        let x = self.clamp(-87.0, 88.0);
        // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
        let shifted = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
        let n = shifted - 12_582_912.0;
        let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x)); // x - n ln 2, in two parts
        let p = 1.987_569_2e-4f32;
        let p = p.mul_add(r, 1.398_199_9e-3);
        let p = p.mul_add(r, 8.333_452e-3);
        let p = p.mul_add(r, 4.166_579_6e-2);
        let p = p.mul_add(r, 1.666_666_5e-1);
        let p = p.mul_add(r, 5e-1);
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000)); // 2^n
        (p * r).mul_add(r, r + 1.0) * power
    }

    /// The rational approximation that XLA uses for f32 (`xla/hlo/builder/lib/math.cc`, `ErfImpl32`): no branch, no
    /// exponential, within 3e-7 of the exact value.
    #[inline(always)]
    fn error_function(self) -> Self {
        let x = self.clamp(-3.743_921_3, 3.743_921_3);
        let t = x * x;
        let a = 0.000_229_050_66f32;
        let a = a.mul_add(t, 0.003_408_291);
        let a = a.mul_add(t, 0.050_955_694);
        let a = a.mul_add(t, 0.185_208_32);
        let a = a.mul_add(t, std::f32::consts::FRAC_2_SQRT_PI);
        let b = -1.179_160_3e-7f32;
        let b = b.mul_add(t, 2.354_796_6e-5);
        let b = b.mul_add(t, 0.001_017_962_5);
        let b = b.mul_add(t, 0.014_070_47);
        let b = b.mul_add(t, 0.110_985_05);
        let b = b.mul_add(t, 0.497_469_25);
        let b = b.mul_add(t, 1.0);
        x * a / b
    }

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    fn from_f32(values: Vec<f32>) -> Vec<Self> {
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_f32_exponential_is_the_standard_librarys_within_three_units_in_the_last_place() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = (x as f64).exp();
            let error = (x.exponential() as f64 - exact).abs() / exact;
            assert!(error < 3.0 * f32::EPSILON as f64, "exp({x}): relative error {error}");
        }
        assert_eq!(f32::exponential(f32::NEG_INFINITY), f32::exponential(-87.0));
    }

    #[test]
    fn the_f32_error_function_is_the_exact_one_within_five_units_in_the_last_place_of_one() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let error = (x.error_function() as f64 - (x as f64).error_function()).abs();
            assert!(error < 5.0 * f32::EPSILON as f64, "erf({x}): error {error}");
        }
    }
}
