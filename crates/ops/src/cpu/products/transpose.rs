//! Blocks of words turned over in registers.

use crate::cpu::products::tiles::LANES;

/// `LANES` rows of as many words.
pub(crate) type Block = [[u32; LANES]; LANES];

/// The transpose of a block.
#[inline]
pub(crate) fn transpose(block: &Block) -> Block {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512(block) };
    }
    portable(block)
}

fn portable(block: &Block) -> Block {
    std::array::from_fn(|row| std::array::from_fn(|column| block[column][row]))
}

/// In four rounds: pairs of words, pairs of pairs, then quarters of registers twice.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(block: &Block) -> Block {
    use std::arch::x86_64::*;
    // SAFETY: a row is one register, and every pattern of bits is a number of words.
    let rows: [__m512i; LANES] = unsafe { std::mem::transmute_copy(block) };
    let mut words = rows;
    for i in (0..LANES).step_by(2) {
        words[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        words[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut pairs = rows;
    for i in (0..LANES).step_by(4) {
        pairs[i] = _mm512_unpacklo_epi64(words[i], words[i + 2]);
        pairs[i + 1] = _mm512_unpackhi_epi64(words[i], words[i + 2]);
        pairs[i + 2] = _mm512_unpacklo_epi64(words[i + 1], words[i + 3]);
        pairs[i + 3] = _mm512_unpackhi_epi64(words[i + 1], words[i + 3]);
    }
    // Quarter q of `pairs[4 g + c]` is column 4 q + c of the rows 4 g to 4 g + 3.
    let mut halves = rows;
    for i in [0, 1, 2, 3, 8, 9, 10, 11] {
        halves[i] = _mm512_shuffle_i32x4::<0x88>(pairs[i], pairs[i + 4]);
        halves[i + 4] = _mm512_shuffle_i32x4::<0xdd>(pairs[i], pairs[i + 4]);
    }
    let mut columns = rows;
    for i in 0..8 {
        columns[i] = _mm512_shuffle_i32x4::<0x88>(halves[i], halves[i + 8]);
        columns[i + 8] = _mm512_shuffle_i32x4::<0xdd>(halves[i], halves[i + 8]);
    }
    // SAFETY: as above.
    unsafe { std::mem::transmute_copy(&columns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_by_every_means() {
        let block: Block = std::array::from_fn(|row| std::array::from_fn(|column| (100 * row + column) as u32));
        for (row, values) in transpose(&block).iter().enumerate() {
            for (column, &value) in values.iter().enumerate() {
                assert_eq!(value, (100 * column + row) as u32);
            }
        }
        assert_eq!(portable(&block), transpose(&block));
    }
}
