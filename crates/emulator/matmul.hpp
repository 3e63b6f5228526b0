// D = alpha op(A) op(B) + beta C + bias, as cuBLAS defines it: matrices by columns, sums in float.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

enum class Type { F32, BF16 };

inline size_t size_of(Type type) { return type == Type::F32 ? 4 : 2; }

// Element (row, column) lies at data[row + column * ld]; the next matrix of the batch `stride` elements further.
struct Matrix {
    void* data;
    Type type;
    size_t rows, columns, ld;
    ptrdiff_t stride;
};

enum class Epilogue { NONE, BIAS, SUM_A, SUM_B };

struct Matmul {
    const char* function; // for messages
    float alpha, beta;
    bool transpose_a, transpose_b;
    Matrix a, b, c, d;
    size_t batch = 1;
    bool tf32 = false; // round f32 factors to the 10 bits that tensor cores keep
    // BIAS: what each row of D is added. SUM_A, SUM_B: where the sums of op(A)'s rows or op(B)'s columns go.
    Epilogue epilogue = Epilogue::NONE;
    void* bias = nullptr;
    Type bias_type = Type::F32;
    ptrdiff_t bias_stride = 0;
};

// Multiplies on `stream`. Aborts when a matrix leaves its allocation or is another card's, or D overlaps A or B.
void enqueue_matmul(const Matmul& matmul, void* stream);

} // namespace emulator
