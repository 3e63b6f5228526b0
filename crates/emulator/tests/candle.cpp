// candle's own kernels, against plain loops.
#include "check.hpp"
#include "registry.hpp"

#include <cstdint>
#include <cstring>
#include <vector>

using emulator::launch;

namespace {

float of_bf16(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

std::vector<float> quarters(size_t count) {
    std::vector<float> numbers(count);
    for (size_t i = 0; i < count; i++) numbers[i] = 0.25f * float(int(i * 7 % 19) - 9);
    return numbers;
}

const size_t* NO_STRIDES = nullptr;

} // namespace

void test_candle() {
    test("a sum of candle's takes a row with every row, whose stride is none", [] {
        std::vector<float> left = quarters(6), right = quarters(3), sum(6);
        size_t dims_and_strides[] = {2, 3, 3, 1, 0, 1};
        launch("badd_f32", 1, 32, 0, size_t(6), size_t(2), static_cast<const size_t*>(dims_and_strides),
            static_cast<const float*>(left.data()), static_cast<const float*>(right.data()), sum.data());
        for (size_t i = 0; i < 6; i++) check_close(sum[i], left[i] + right[i % 3], 0, "place " + std::to_string(i));
    });
    test("numbers become bf16 and are computed with as float, by eights and by themselves", [] {
        for (size_t count : {5, 8, 45}) {
            std::vector<float> numbers = quarters(count);
            std::vector<uint16_t> rounded(count), scaled(count), exponentials(count);
            const uint16_t two = 0x4000, one = 0x3f80;
            launch("cast_f32_bf16", 1, 32, 0, count, size_t(1), NO_STRIDES, static_cast<const float*>(numbers.data()), rounded.data());
            launch("affine_bf16", 1, 32, 0, count, size_t(1), NO_STRIDES, static_cast<const uint16_t*>(rounded.data()), scaled.data(), two, one);
            launch("uexp_bf16", 1, 32, 0, count, size_t(1), NO_STRIDES, static_cast<const uint16_t*>(rounded.data()), exponentials.data());
            for (size_t i = 0; i < count; i++) {
                check_close(of_bf16(rounded[i]), numbers[i], 0, "of " + std::to_string(count));
                check_close(of_bf16(scaled[i]), 2 * numbers[i] + 1, 0, "scaled, of " + std::to_string(count));
                // Half of the last of 8 bits.
                float expected = expf(numbers[i]);
                check_close(of_bf16(exponentials[i]), expected, expected / 256, "exponential, of " + std::to_string(count));
            }
        }
    });
    test("each block of a reduction of candle's has its own sum and maximum", [] {
        constexpr size_t COLUMNS = 71;
        std::vector<float> numbers = quarters(3 * COLUMNS), sums(3), maxima(3);
        size_t dims_and_strides[] = {3, COLUMNS, COLUMNS, 1};
        for (auto [kernel, found] : {std::pair("fast_sum_f32", sums.data()), std::pair("fast_max_f32", maxima.data())}) {
            launch(kernel, 3, 64, 0, 3 * COLUMNS, COLUMNS, size_t(2), static_cast<const size_t*>(dims_and_strides),
                static_cast<const float*>(numbers.data()), found);
        }
        for (size_t row = 0; row < 3; row++) {
            float sum = 0, maximum = numbers[row * COLUMNS];
            for (size_t i = 0; i < COLUMNS; i++) {
                sum += numbers[row * COLUMNS + i];
                maximum = std::max(maximum, numbers[row * COLUMNS + i]);
            }
            check_close(sums[row], sum, 0, "sum of row " + std::to_string(row));
            check_close(maxima[row], maximum, 0, "maximum of row " + std::to_string(row));
        }
    });
    test("rows that are chosen by number are those, and none is behind the last", [] {
        std::vector<float> table = quarters(4 * 3), rows(2 * 3);
        std::vector<uint32_t> ids = {3, 1}, wrong = {4, 1};
        size_t dims_and_strides[] = {4, 3, 3, 1};
        auto select = [&](const std::vector<uint32_t>& ids) {
            launch("is_u32_f32", 1, 32, 0, size_t(6), size_t(2), static_cast<const size_t*>(dims_and_strides), ids.data(),
                static_cast<const float*>(table.data()), rows.data(), size_t(1), size_t(4), size_t(2), size_t(3));
        };
        select(ids);
        for (size_t i = 0; i < 6; i++) check_close(rows[i], table[ids[i / 3] * 3 + i % 3], 0, "place " + std::to_string(i));
        check_aborts("ids[id_i] < src_dim_size", [&] { select(wrong); });
    });
    test("f16 says that it is not emulated", [] {
        std::vector<float> numbers(1);
        std::vector<uint16_t> half(1);
        check_aborts("kernel cast_f32_f16, block (0, 0, 0): numbers of f16 and fp8 are not emulated", [&] {
            launch("cast_f32_f16", 1, 1, 0, size_t(1), size_t(1), NO_STRIDES, static_cast<const float*>(numbers.data()), half.data());
        });
    });
}
