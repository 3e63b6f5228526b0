//! torch's random generator on the CPU.

/// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded and read as `torch.Generator` does, so that a key gives the
/// numbers here that it gives there.
pub(super) struct TorchGenerator {
    state: [u32; SIZE],
    next: usize,
}

const SIZE: usize = 624;
const MIDDLE: usize = 397;

impl TorchGenerator {
    /// `torch.Generator().manual_seed(seed)`, which keeps the seed's lower half (ATen `core/MT19937RNGEngine.h`).
    pub(super) fn new(seed: u64) -> Self {
        let mut state = [seed as u32; SIZE];
        for index in 1..SIZE {
            let last = state[index - 1];
            state[index] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(index as u32);
        }
        Self { state, next: SIZE }
    }

    fn number(&mut self) -> u32 {
        if self.next == SIZE {
            for index in 0..SIZE {
                let mixed = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % SIZE] & 0x7fff_ffff);
                let twist = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[index] = self.state[(index + MIDDLE) % SIZE] ^ (mixed >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut number = self.state[self.next];
        self.next += 1;
        number ^= number >> 11;
        number ^= (number << 7) & 0x9d2c_5680;
        number ^= (number << 15) & 0xefc6_0000;
        number ^ (number >> 18)
    }

    /// The next number of `Tensor.uniform_(from, to)` in f32: 24 bits, scaled in one rounding (ATen `core/TransformationHelper.h`,
    /// `uniform_real`, which compilers turn into one instruction).
    pub(super) fn uniform(&mut self, from: f64, to: f64) -> f32 {
        let (from, to) = (from as f32, to as f32);
        let share = (self.number() & 0x00ff_ffff) as f32 / (1u32 << 24) as f32;
        share.mul_add(to - from, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the authors' own `init_genrand(5489)`, and the ten thousandth, which the C++ standard gives
    /// (`[rand.predef]`).
    #[test]
    fn the_numbers_are_those_of_the_mersenne_twister() {
        let mut generator = TorchGenerator::new(5489);
        assert_eq!([0; 3].map(|_| generator.number()), [3_499_211_612, 581_869_302, 3_890_346_734]);
        assert_eq!((3..10_000).map(|_| generator.number()).last(), Some(4_123_659_995));
    }
}
