// Products of 16 x 16 tiles by a warp, as in CUDA's mma.h. Each lane holds 8 numbers of a tile, at the places where tensor cores
// keep those of an accumulator.
#pragma once

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
    static_assert(M == 16 && N == 16 && K == 16, "only tiles of 16 x 16 x 16 are emulated");
    static_assert(std::is_same_v<Use, accumulator> ? std::is_same_v<T, float> : std::is_same_v<T, __nv_bfloat16>,
        "only bf16 factors and float accumulators are emulated");
    static constexpr int num_elements = 8;
    T x[num_elements];
};

} // namespace wmma
} // namespace nvcuda

namespace emulator {

constexpr unsigned TILE = 16;

inline unsigned tile_row(unsigned lane, unsigned i) { return lane / 4 + (i & 2 ? 8 : 0); }
inline unsigned tile_column(unsigned lane, unsigned i) { return lane % 4 * 2 + i % 2 + (i & 4 ? 8 : 0); }

// As CUDA demands: the address a multiple of 32 bytes, the distance of rows one of 16.
template <typename T> void check_tile(const char* function, const T* tile, unsigned stride) {
    if (reinterpret_cast<size_t>(tile) % 32 != 0) fail("%s at %p, which is not a multiple of 32 bytes", function, static_cast<const void*>(tile));
    if (stride * sizeof(T) % 16 != 0) fail("%s with a stride of %u, which is not a multiple of 16 bytes", function, stride);
    meet(function, 0xffffffffu, nullptr, nullptr);
}

inline size_t tile_offset(unsigned i, unsigned stride, bool by_rows) {
    unsigned row = tile_row(lane(), i), column = tile_column(lane(), i);
    return by_rows ? size_t(row) * stride + column : size_t(column) * stride + row;
}

template <typename A, typename B> struct Product {
    float* d;
    const A* a;
    const B* b;
    const float* c;
};

// d = a * b + c
template <typename A, typename B> void answer_product(void* const messages[WARP]) {
    float a[TILE][TILE], b[TILE][TILE], d[TILE][TILE];
    for (unsigned lane = 0; lane < WARP; lane++) {
        auto* own = static_cast<const Product<A, B>*>(messages[lane]);
        if (!own) fail("mma_sync without lane %u", lane);
        for (unsigned i = 0; i < 8; i++) {
            unsigned row = tile_row(lane, i), column = tile_column(lane, i);
            a[row][column] = __bfloat162float(own->a->x[i]);
            b[row][column] = __bfloat162float(own->b->x[i]);
            d[row][column] = own->c[i];
        }
    }
    for (unsigned row = 0; row < TILE; row++) {
        for (unsigned k = 0; k < TILE; k++) {
            for (unsigned column = 0; column < TILE; column++) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (unsigned lane = 0; lane < WARP; lane++) {
        auto* own = static_cast<const Product<A, B>*>(messages[lane]);
        for (unsigned i = 0; i < 8; i++) own->d[i] = d[tile_row(lane, i)][tile_column(lane, i)];
    }
}

} // namespace emulator

namespace nvcuda {
namespace wmma {

template <typename Use, typename T, typename Layout>
void fill_fragment(fragment<Use, 16, 16, 16, T, Layout>& to, const T& value) {
    for (T& x : to.x) x = value;
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& to, const T* tile, unsigned stride) {
    static_assert(!std::is_void_v<Layout>, "an accumulator is loaded with the layout as an argument");
    emulator::check_tile("load_matrix_sync", tile, stride);
    for (unsigned i = 0; i < 8; i++) to.x[i] = tile[emulator::tile_offset(i, stride, std::is_same_v<Layout, row_major>)];
}

inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, float>& to, const float* tile, unsigned stride, layout_t layout) {
    emulator::check_tile("load_matrix_sync", tile, stride);
    for (unsigned i = 0; i < 8; i++) to.x[i] = tile[emulator::tile_offset(i, stride, layout == mem_row_major)];
}

inline void store_matrix_sync(float* tile, const fragment<accumulator, 16, 16, 16, float>& from, unsigned stride, layout_t layout) {
    emulator::check_tile("store_matrix_sync", tile, stride);
    for (unsigned i = 0; i < 8; i++) tile[emulator::tile_offset(i, stride, layout == mem_row_major)] = from.x[i];
}

template <typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d, const fragment<matrix_a, 16, 16, 16, __nv_bfloat16, LayoutA>& a,
    const fragment<matrix_b, 16, 16, 16, __nv_bfloat16, LayoutB>& b, const fragment<accumulator, 16, 16, 16, float>& c) {
    typedef std::remove_reference_t<decltype(a)> A;
    typedef std::remove_reference_t<decltype(b)> B;
    emulator::Product<A, B> message{d.x, &a, &b, c.x};
    emulator::meet("mma_sync", 0xffffffffu, &message, &emulator::answer_product<std::remove_const_t<A>, std::remove_const_t<B>>);
}

} // namespace wmma
} // namespace nvcuda
