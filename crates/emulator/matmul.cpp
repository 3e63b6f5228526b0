#include "matmul.hpp"
#include "block.hpp"
#include "device.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace emulator {
namespace {

float from_bf16(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

float to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    bits = (bits + 0x1000u) & ~0x1fffu;
    memcpy(&x, &bits, sizeof x);
    return x;
}

float read(const void* data, Type type, ptrdiff_t i) {
    return type == Type::F32 ? static_cast<const float*>(data)[i] : from_bf16(static_cast<const uint16_t*>(data)[i]);
}

void write(void* data, Type type, ptrdiff_t i, float value) {
    if (type == Type::F32) static_cast<float*>(data)[i] = value;
    else static_cast<uint16_t*>(data)[i] = to_bf16(value);
}

// op(matrix) as floats, by columns without gaps, or with `by_rows` by rows.
std::vector<float> packed(const Matrix& matrix, bool transpose, bool by_rows, bool tf32, size_t batch) {
    std::vector<float> values(matrix.rows * matrix.columns);
    for (size_t column = 0; column < matrix.columns; column++) {
        for (size_t row = 0; row < matrix.rows; row++) {
            float value = read(matrix.data, matrix.type, ptrdiff_t(row + column * matrix.ld) + ptrdiff_t(batch) * matrix.stride);
            if (tf32 && matrix.type == Type::F32) value = to_tf32(value);
            values[transpose == by_rows ? row + column * matrix.rows : column + row * matrix.columns] = value;
        }
    }
    return values;
}

constexpr size_t ROWS = 64;
constexpr size_t COLUMNS = 4;

// sums (COLUMNS, ROWS) = a (k, ROWS) * b (k, COLUMNS), one number after the other along k.
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#endif
void multiply(float* __restrict__ sums, const float* __restrict__ a, size_t stride_a, const float* __restrict__ b, size_t stride_b, size_t k) {
    for (size_t i = 0; i < ROWS * COLUMNS; i++) sums[i] = 0.0f;
    for (size_t p = 0; p < k; p++) {
        for (size_t column = 0; column < COLUMNS; column++) {
            float factor = b[p * stride_b + column];
            for (size_t row = 0; row < ROWS; row++) sums[column * ROWS + row] += a[p * stride_a + row] * factor;
        }
    }
}

void multiply_one(const Matmul& matmul, size_t batch) {
    const Matrix& d = matmul.d;
    size_t k = matmul.transpose_a ? matmul.a.rows : matmul.a.columns;
    std::vector<float> a = packed(matmul.a, matmul.transpose_a, false, matmul.tf32, batch); // (k, rows)
    std::vector<float> b = packed(matmul.b, matmul.transpose_b, true, matmul.tf32, batch);  // (k, columns)
    std::vector<float> tile_a(k * ROWS), tile_b(k * COLUMNS);
    float sums[ROWS * COLUMNS];
    for (size_t row = 0; row < d.rows; row += ROWS) {
        size_t rows = std::min(ROWS, d.rows - row);
        for (size_t p = 0; p < k; p++) std::copy_n(&a[p * d.rows + row], rows, &tile_a[p * ROWS]);
        for (size_t column = 0; column < d.columns; column += COLUMNS) {
            size_t columns = std::min(COLUMNS, d.columns - column);
            const float* factors = &b[column];
            size_t stride = d.columns;
            if (columns < COLUMNS) {
                for (size_t p = 0; p < k; p++) std::copy_n(&b[p * d.columns + column], columns, &tile_b[p * COLUMNS]);
                factors = tile_b.data();
                stride = COLUMNS;
            }
            multiply(sums, tile_a.data(), ROWS, factors, stride, k);
            for (size_t j = 0; j < columns; j++) {
                for (size_t i = 0; i < rows; i++) {
                    float sum = matmul.alpha * sums[j * ROWS + i];
                    size_t r = row + i, c = column + j;
                    // With beta 0 C is not read.
                    if (matmul.beta != 0.0f) {
                        ptrdiff_t at = ptrdiff_t(r + c * matmul.c.ld) + ptrdiff_t(batch) * matmul.c.stride;
                        sum += matmul.beta * read(matmul.c.data, matmul.c.type, at);
                    }
                    if (matmul.epilogue == Epilogue::BIAS) {
                        sum += read(matmul.bias, matmul.bias_type, ptrdiff_t(r) + ptrdiff_t(batch) * matmul.bias_stride);
                    }
                    write(d.data, d.type, ptrdiff_t(r + c * d.ld) + ptrdiff_t(batch) * d.stride, sum);
                }
            }
        }
    }
    // Sums along k, of each row of op(A) or each column of op(B).
    if (matmul.epilogue == Epilogue::SUM_A || matmul.epilogue == Epilogue::SUM_B) {
        bool of_a = matmul.epilogue == Epilogue::SUM_A;
        size_t count = of_a ? d.rows : d.columns;
        const std::vector<float>& factors = of_a ? a : b;
        for (size_t i = 0; i < count; i++) {
            float sum = 0.0f;
            for (size_t p = 0; p < k; p++) sum += factors[p * count + i];
            write(matmul.bias, matmul.bias_type, ptrdiff_t(i), sum);
        }
    }
}

size_t bytes_of(const Matrix& matrix) {
    if (matrix.rows == 0 || matrix.columns == 0) return 0;
    return (matrix.ld * (matrix.columns - 1) + matrix.rows) * size_of(matrix.type);
}

const char* place(const Matrix& matrix, size_t batch) {
    return static_cast<const char*>(matrix.data) + ptrdiff_t(batch) * matrix.stride * ptrdiff_t(size_of(matrix.type));
}

void check_allocated(const Matmul& matmul, const char* name, const Matrix& matrix, int card) {
    for (size_t batch = 0; batch < matmul.batch; batch++) {
        if (!is_allocated(place(matrix, batch), bytes_of(matrix), card)) {
            fail("%s: %s (%zu rows, %zu columns, ld %zu, number %zu of the batch) leaves its allocation on card %d", matmul.function,
                name, matrix.rows, matrix.columns, matrix.ld, batch, card);
        }
    }
}

void check_apart(const Matmul& matmul, const char* name, const Matrix& matrix) {
    for (size_t batch = 0; batch < matmul.batch; batch++) {
        const char *own = place(matrix, batch), *written = place(matmul.d, batch);
        if (own < written + bytes_of(matmul.d) && written < own + bytes_of(matrix)) {
            fail("%s: D overlaps %s", matmul.function, name);
        }
    }
}

} // namespace

void enqueue_matmul(const Matmul& matmul, void* stream) {
    int card = stream_of(stream).card;
    check_allocated(matmul, "A", matmul.a, card);
    check_allocated(matmul, "B", matmul.b, card);
    check_allocated(matmul, "D", matmul.d, card);
    if (matmul.beta != 0.0f) check_allocated(matmul, "C", matmul.c, card);
    check_apart(matmul, "A", matmul.a);
    check_apart(matmul, "B", matmul.b);
    if (matmul.epilogue != Epilogue::NONE) {
        size_t count = matmul.epilogue == Epilogue::SUM_B ? matmul.d.columns : matmul.d.rows;
        for (size_t batch = 0; batch < matmul.batch; batch++) {
            const char* bias = static_cast<const char*>(matmul.bias) + ptrdiff_t(batch) * matmul.bias_stride * ptrdiff_t(size_of(matmul.bias_type));
            if (!is_allocated(bias, count * size_of(matmul.bias_type), card)) {
                fail("%s: a bias of %zu leaves its allocation on card %d", matmul.function, count, card);
            }
        }
    }
    enqueue(stream, [matmul] {
        for (size_t batch = 0; batch < matmul.batch; batch++) multiply_one(matmul, batch);
    });
}

} // namespace emulator
