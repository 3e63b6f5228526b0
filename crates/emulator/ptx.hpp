// The instructions of ../kernels/cuda/ptx.cuh, by the names that it gives them, and with the operands that the PTX manual describes.
#pragma once

namespace emulator {

struct Matrices {
    const __nv_bfloat16* row;
    unsigned* registers;
};

inline __nv_bfloat16 half_of(unsigned word, unsigned half) {
    __nv_bfloat16 number;
    number.__x = uint16_t(word >> 16 * half);
    return number;
}

// ldmatrix: lane 8 i + r has the address of row r of matrix i. Each lane gets two neighbors of a row of each matrix, or of a column.
template <bool Transposed> void answer_matrices(void* const messages[WARP]) {
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!messages[lane]) fail("ldmatrix without lane %u", lane);
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        unsigned* registers = static_cast<const Matrices*>(messages[lane])->registers;
        for (unsigned matrix = 0; matrix < 4; matrix++) {
            uint16_t numbers[2];
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = lane / 4, column = lane % 4 * 2 + i;
                if (Transposed) std::swap(row, column);
                numbers[i] = static_cast<const Matrices*>(messages[8 * matrix + row])->row[column].__x;
            }
            registers[matrix] = numbers[0] | unsigned(numbers[1]) << 16;
        }
    }
}

template <bool Transposed> void load_matrices(unsigned registers[4], const __nv_bfloat16* row) {
    check_shared("ldmatrix", row, 8 * sizeof *row);
    Matrices message{row, registers};
    meet("ldmatrix", 0xffffffffu, &message, &answer_matrices<Transposed>);
}

struct Multiplication {
    float* sums;
    const unsigned *a, *b;
};

// sums += a * b, 16 x 16 each: of a and of the sums a lane has four pairs of neighbors in a row, at the places of `tile_row` and
// `tile_column`; of b pairs in a column, at those of the transpose but for the order of the middle two.
inline void answer_multiplication(void* const messages[WARP]) {
    float a[TILE][TILE], b[TILE][TILE], d[TILE][TILE];
    for (unsigned lane = 0; lane < WARP; lane++) {
        auto* own = static_cast<const Multiplication*>(messages[lane]);
        if (!own) fail("mma without lane %u", lane);
        for (unsigned i = 0; i < 8; i++) {
            a[tile_row(lane, i)][tile_column(lane, i)] = half_of(own->a[i / 2], i % 2);
            b[lane % 4 * 2 + i % 2 + (i & 2 ? 8 : 0)][lane / 4 + (i & 4 ? 8 : 0)] = half_of(own->b[i / 2], i % 2);
            d[tile_row(lane, i)][tile_column(lane, i)] = own->sums[i];
        }
    }
    for (unsigned row = 0; row < TILE; row++) {
        for (unsigned k = 0; k < TILE; k++) {
            for (unsigned column = 0; column < TILE; column++) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        float* sums = static_cast<const Multiplication*>(messages[lane])->sums;
        for (unsigned i = 0; i < 8; i++) sums[i] = d[tile_row(lane, i)][tile_column(lane, i)];
    }
}

} // namespace emulator

inline void load_matrices(unsigned registers[4], const __nv_bfloat16* row) { emulator::load_matrices<false>(registers, row); }
inline void load_transposed_matrices(unsigned registers[4], const __nv_bfloat16* row) { emulator::load_matrices<true>(registers, row); }

inline void multiply_add(float sums[8], const unsigned a[4], const unsigned b[4]) {
    emulator::Multiplication message{sums, a, b};
    emulator::meet("mma", 0xffffffffu, &message, &emulator::answer_multiplication);
}

inline void copy_async(__nv_bfloat16* to, const __nv_bfloat16* from, bool there) { emulator::copy_later(to, from, there ? 16 : 0); }
inline void commit_copies() { emulator::commit_copies(); }
template <unsigned GroupsLeft> void wait_for_copies() { emulator::wait_for_copies(GroupsLeft); }

inline float exp2_approximate(float x) { return exp2f(x); }
