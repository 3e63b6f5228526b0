// Blocks, warps and tiles, against plain loops.
#include "check.hpp"
#include "registry.hpp"

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

using emulator::launch;

namespace {

uint16_t to_bf16(float x) { // of numbers that bf16 holds
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return uint16_t(bits >> 16);
}

std::vector<float> small_integers(size_t count, unsigned seed) {
    std::vector<float> numbers(count);
    for (float& x : numbers) x = float(int((seed = seed * 1664525u + 1013904223u) >> 24) % 17 - 8);
    return numbers;
}

} // namespace

void test_blocks() {
    test("a sum over shuffles and barriers is that of a loop", [] {
        for (unsigned threads : {32u, 256u, 1024u}) {
            std::vector<float> x = small_integers(3 * threads, threads), totals(3);
            launch("block_totals", 3, threads, 0, totals.data(), static_cast<const float*>(x.data()));
            for (unsigned block = 0; block < 3; block++) {
                float expected = 0;
                for (unsigned i = 0; i < threads; i++) expected += x[block * threads + i];
                check_close(totals[block], expected, 0, std::to_string(threads) + " threads");
            }
        }
    });
    test("threads that have returned are not waited for", [] {
        std::vector<int> x(100), y(100, -1);
        for (int i = 0; i < 100; i++) x[i] = i;
        launch("reversed", 1, 128, 400, y.data(), static_cast<const int*>(x.data()), 100u);
        for (int i = 0; i < 100; i++) check(y[i] == 99 - i, "place " + std::to_string(i));
    });
    test("a missing barrier shows when threads run in the other order", [] {
        std::vector<int> x(64), ascending(64), descending(64);
        for (int i = 0; i < 64; i++) x[i] = i;
        launch("reversed_in_a_race", 1, 64, 256, ascending.data(), static_cast<const int*>(x.data()), 64u);
        setenv("CUDA_EMULATOR_ORDER", "descending", 1);
        launch("reversed_in_a_race", 1, 64, 256, descending.data(), static_cast<const int*>(x.data()), 64u);
        launch("reversed", 1, 64, 256, x.data(), static_cast<const int*>(x.data()), 64u);
        unsetenv("CUDA_EMULATOR_ORDER");
        check(ascending != descending, "the race gave one result");
        for (int i = 0; i < 64; i++) check(x[i] == 63 - i, "with the barrier, place " + std::to_string(i));
    });
    test("threads and blocks of three dimensions know where they are", [] {
        dim3 grid(2, 3, 2), block(4, 3, 5);
        std::vector<unsigned> where(12 * 60);
        launch("where_am_i", grid, block, 0, where.data(), 60ull);
        for (unsigned i = 0; i < where.size(); i++) {
            unsigned thread = i % 60, expected = 100 * (100 * (thread / 12) + thread / 4 % 3) + thread % 4;
            check(where[i] == expected, "thread " + std::to_string(i));
        }
    });
    test("shuffles take from the lanes that the programming guide names", [] {
        std::vector<int> from(32), down(32), up(32), swapped(32);
        std::vector<unsigned> votes(32);
        launch("shuffles", 1, 32, 0, from.data(), down.data(), up.data(), swapped.data(), votes.data());
        for (int i = 0; i < 32; i++) {
            check(from[i] == i / 8 * 8 + 3, "from lane 3 of 8, lane " + std::to_string(i));
            check(down[i] == (i % 16 + 5 < 16 ? i + 5 : i), "from 5 lanes up of 16, lane " + std::to_string(i));
            check(up[i] == (i >= 5 ? i - 5 : i), "from 5 lanes down, lane " + std::to_string(i));
            check(swapped[i] == (i < 16 ? i ^ 1 : i ^ 2), "halves on their own, lane " + std::to_string(i));
            check(votes[i] == 0x49249249u, "votes of every third lane");
        }
    });
    test("products of tiles are those of a loop, whatever the order of rows and columns", [] {
        constexpr unsigned STRIDE = 24;
        std::vector<float> a = small_integers(16 * STRIDE, 1), b = small_integers(16 * STRIDE, 2), c = small_integers(16 * STRIDE, 3);
        // Tensor cores load from multiples of 32 bytes.
        struct alignas(32) Memory { uint16_t a[16 * STRIDE], b[16 * STRIDE]; alignas(32) float c[16 * STRIDE]; alignas(32) float d[4][16 * STRIDE]; };
        auto memory = std::make_unique<Memory>();
        for (unsigned i = 0; i < 16 * STRIDE; i++) {
            memory->a[i] = to_bf16(a[i]);
            memory->b[i] = to_bf16(b[i]);
            memory->c[i] = c[i];
        }
        launch("tile_products", 1, 128, 0, &memory->d[0][0], memory->a, memory->b, memory->c, STRIDE);
        for (unsigned way = 0; way < 4; way++) {
            for (unsigned row = 0; row < 16; row++) {
                for (unsigned column = 0; column < 16; column++) {
                    size_t at = way == 1 || way == 3 ? column * STRIDE + row : row * STRIDE + column;
                    float expected = c[at];
                    for (unsigned k = 0; k < 16; k++) {
                        float left = way < 2 ? a[row * STRIDE + k] : a[k * STRIDE + row];
                        expected += left * (way % 2 == 0 ? b[k * STRIDE + column] : b[column * STRIDE + k]);
                    }
                    check_close(memory->d[way][at], expected, 0, "way " + std::to_string(way));
                }
            }
        }
    });
    test("products of matrices from shared memory are those of a loop, as they lie there and transposed", [] {
        std::vector<float> a = small_integers(256, 1), b = small_integers(256, 2), c = small_integers(4 * 256, 3), d = c;
        struct alignas(16) Memory { uint16_t a[256], b[256]; };
        auto memory = std::make_unique<Memory>();
        for (unsigned i = 0; i < 256; i++) memory->a[i] = to_bf16(a[i]), memory->b[i] = to_bf16(b[i]);
        launch("matrix_products", 1, 32, 1024, d.data(), static_cast<const uint16_t*>(memory->a), static_cast<const uint16_t*>(memory->b));
        for (unsigned way = 0; way < 4; way++) {
            for (unsigned row = 0; row < 16; row++) {
                for (unsigned column = 0; column < 16; column++) {
                    float expected = c[way * 256 + row * 16 + column];
                    for (unsigned k = 0; k < 16; k++) {
                        expected += a[way % 2 ? k * 16 + row : row * 16 + k] * b[way >= 2 ? column * 16 + k : k * 16 + column];
                    }
                    check_close(d[way * 256 + row * 16 + column], expected, 0, "way " + std::to_string(way));
                }
            }
        }
    });
    test("a copy into shared memory is not there before its group is awaited", [] {
        struct alignas(16) Memory { uint16_t x[24], seen[12]; };
        auto memory = std::make_unique<Memory>();
        for (unsigned i = 0; i < 24; i++) memory->x[i] = to_bf16(float(1 + i / 8));
        launch("copies_in_groups", 1, 1, 48, static_cast<uint16_t*>(memory->seen), static_cast<const uint16_t*>(memory->x));
        uint16_t none = 0xffff, one = to_bf16(1), three = to_bf16(3);
        std::vector<uint16_t> expected = {none, none, none, one, none, none, one, 0, none, one, 0, three};
        check(expected == std::vector<uint16_t>(memory->seen, memory->seen + 12), "what is seen, group by group");
    });
    test("powers of two are those of the library", [] {
        std::vector<float> x(32), y(32);
        for (int i = 0; i < 32; i++) x[i] = float(i) * 0.37f - 9;
        launch("powers_of_two", 1, 32, 0, y.data(), static_cast<const float*>(x.data()));
        for (int i = 0; i < 32; i++) check_close(y[i] / std::exp2(double(x[i])), 1, 3e-7, std::to_string(x[i]));
    });
    test("shared memory that nobody wrote holds NaN, in every block anew", [] {
        std::vector<float> fixed(3), dynamic(3);
        launch("read_fresh_shared", 3, 1, 16, fixed.data(), dynamic.data());
        for (int i = 0; i < 3; i++) check(std::isnan(fixed[i]) && std::isnan(dynamic[i]), "block " + std::to_string(i));
    });
    test("what a kernel does wrong ends the program with a message that names it", [] {
        check_aborts("waits at __syncthreads while thread (32, 0, 0) is at __shfl_sync", [] { launch("half_at_a_barrier", 1, 64, 0); });
        check_aborts("kernel half_in_a_shuffle, block (0, 0, 0): thread (0, 0, 0) waits at __shfl_sync while",
            [] { launch("half_in_a_shuffle", 1, 32, 0); });
        check_aborts("is in __shfl_sync of lanes ffffffff", [] { launch("two_functions", 1, 32, 0); });
        check_aborts("calls __syncwarp of lanes 0000ffff, without itself", [] { launch("not_in_the_mask", 1, 32, 0); });
        check_aborts("wrote behind its 64 bytes of dynamic shared memory", [] { launch("behind_shared", 1, 1, 64, 64u); });
        alignas(16) static const uint16_t x[16] = {};
        check_aborts("returned without waiting for its copies", [] { launch("copy_not_awaited", 1, 1, 16, static_cast<const uint16_t*>(x)); });
        check_aborts("outside of the block's dynamic shared memory", [] { launch("copy_to", 1, 1, 16, static_cast<const uint16_t*>(x), 8u); });
        check_aborts("which is not a multiple of 16 bytes", [] { launch("copy_to", 1, 1, 32, static_cast<const uint16_t*>(x), 4u); });
        check_aborts("cp.async from", [] { launch("copy_to", 1, 1, 16, x + 4, 0u); });
        check_aborts("ldmatrix at", [] { launch("matrices_from", 1, 32, 32, 4u); });
        check_aborts("outside of the block's dynamic shared memory", [] { launch("matrices_from", 1, 32, 32, 16u); });
        check_aborts("is in ldmatrix of lanes ffffffff", [] { launch("matrices_of_half_a_warp", 1, 32, 16); });
        check_aborts("there is no kernel missing", [] { launch("missing", 1, 1, 0); });
    });
}
