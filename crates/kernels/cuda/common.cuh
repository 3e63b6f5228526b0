// What all kernels share: numbers, packs of four of them, sums over a block, and dropout.
#pragma once

#ifndef EMULATOR
#include <cuda_bf16.h>
#include <mma.h>
#define DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#endif

typedef __nv_bfloat16 bf16;

// One of two types.
template <bool First, typename A, typename B> struct Choose {
    typedef A type;
};
template <typename A, typename B> struct Choose<false, A, B> {
    typedef B type;
};

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// Neighboring numbers, which one instruction reads or writes: 16 bytes at most.
template <typename T, unsigned Count = 4> struct alignas(Count * sizeof(T)) Pack {
    T values[Count];
};

// How many numbers one instruction reads at most.
template <typename T> constexpr unsigned WIDEST_PACK = 16 / sizeof(T);

// Element by element, each thread of a one-dimensional grid takes eight numbers.
constexpr unsigned EIGHT = 8;
__device__ __forceinline__ unsigned first_of_eight() { return EIGHT * (blockIdx.x * blockDim.x + threadIdx.x); }

// Whether `Count` numbers from `first` on are there, and lie as packs of `Size` do.
template <unsigned Count, unsigned Size, typename T>
__device__ __forceinline__ bool are_packs(const T* data, unsigned first, unsigned count) {
    return first + Count <= count && reinterpret_cast<unsigned long long>(data + first) % sizeof(Pack<T, Size>) == 0;
}

// Numbers that are there and lie as packs do: the widest that their count allows.
template <unsigned Count, typename T> __device__ __forceinline__ void read_packs(const T* data, float values[Count]) {
    constexpr unsigned SIZE = Count < WIDEST_PACK<T> ? Count : WIDEST_PACK<T>;
#pragma unroll
    for (unsigned first = 0; first < Count; first += SIZE) {
        Pack<T, SIZE> pack = *reinterpret_cast<const Pack<T, SIZE>*>(data + first);
#pragma unroll
        for (unsigned i = 0; i < SIZE; i++) values[first + i] = to_float(pack.values[i]);
    }
}

template <unsigned Count, typename T> __device__ __forceinline__ void write_packs(T* data, const float values[Count]) {
    constexpr unsigned SIZE = Count < WIDEST_PACK<T> ? Count : WIDEST_PACK<T>;
#pragma unroll
    for (unsigned first = 0; first < Count; first += SIZE) {
        Pack<T, SIZE> pack;
#pragma unroll
        for (unsigned i = 0; i < SIZE; i++) pack.values[i] = from_float<T>(values[first + i]);
        *reinterpret_cast<Pack<T, SIZE>*>(data + first) = pack;
    }
}

// Up to `Count` numbers from `first` on, wherever they lie; zeros behind the end.
template <unsigned Count, typename T>
__device__ __forceinline__ void read_numbers(const T* data, unsigned first, unsigned count, float values[Count]) {
    constexpr unsigned SIZE = Count < WIDEST_PACK<T> ? Count : WIDEST_PACK<T>;
    if (are_packs<Count, SIZE>(data, first, count)) {
        read_packs<Count>(data + first, values);
    } else {
#pragma unroll
        for (unsigned i = 0; i < Count; i++) values[i] = first + i < count ? to_float(data[first + i]) : 0.0f;
    }
}

template <unsigned Count, typename T>
__device__ __forceinline__ void write_numbers(T* data, unsigned first, unsigned count, const float values[Count]) {
    constexpr unsigned SIZE = Count < WIDEST_PACK<T> ? Count : WIDEST_PACK<T>;
    if (are_packs<Count, SIZE>(data, first, count)) {
        write_packs<Count>(data + first, values);
    } else {
#pragma unroll
        for (unsigned i = 0; i < Count; i++) {
            if (first + i < count) data[first + i] = from_float<T>(values[i]);
        }
    }
}

template <typename T> __device__ __forceinline__ void read_four(const T* data, unsigned first, unsigned count, float values[4]) {
    read_numbers<4>(data, first, count, values);
}

template <typename T> __device__ __forceinline__ void write_four(T* data, unsigned first, unsigned count, const float values[4]) {
    write_numbers<4>(data, first, count, values);
}

__device__ __forceinline__ float warp_sum(float x) {
    for (unsigned lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// The sum over a block of whole warps, for all its threads.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float sums[WARP];
    x = warp_sum(x);
    __syncthreads(); // Nobody reads the sums from before any more.
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) total += sums[warp];
    return total;
}

// Kernels over rows take one warp per row, ROWS_PER_BLOCK of them in a block.
constexpr unsigned ROWS_PER_BLOCK = 4;

__device__ __forceinline__ unsigned row_of_warp() { return blockIdx.x * ROWS_PER_BLOCK + threadIdx.y; }

// Where the row of a matrix begins.
template <typename T> __device__ __forceinline__ T* row_of(T* data, unsigned row, unsigned columns) {
    return data + static_cast<unsigned long long>(row) * columns;
}

// The positions of the first of four numbers that a lane takes of a row.
#define FOR_FOURS_OF_ROW(first, columns) for (unsigned first = 4 * threadIdx.x; first < columns; first += 4 * WARP)

// Kernels that sum over rows take blocks of 32 columns and 8 rows at a time.
constexpr unsigned SUM_COLUMNS = 32;
constexpr unsigned SUM_ROWS = 8;

// The sum over such a block's rows of what each thread holds, in the threads of row 0.
__device__ __forceinline__ float sum_of_rows(float x) {
    __shared__ float sums[SUM_ROWS][SUM_COLUMNS + 1];
    __syncthreads(); // Nobody reads the sums from before any more.
    sums[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float total = 0.0f;
    if (threadIdx.y == 0) {
        for (unsigned row = 0; row < SUM_ROWS; row++) total += sums[row][threadIdx.x];
    }
    return total;
}

// The finaliser "lowbias32", as in dropout.rs.
__device__ __forceinline__ unsigned mix(unsigned x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// What the number at a position is multiplied by: 0 or `scale`. Without dropout `dropped_below` is 0 and `scale` 1.
__device__ __forceinline__ float dropout_factor(unsigned position, unsigned dropped_below, float scale, unsigned long long seed) {
    unsigned hash = mix(mix(position ^ static_cast<unsigned>(seed)) + static_cast<unsigned>(seed >> 32));
    return hash < dropped_below ? 0.0f : scale;
}

// The same of one application of dropout.
struct Mask {
    unsigned dropped_below;
    float scale;
    unsigned long long seed;

    __device__ __forceinline__ float factor(unsigned position) const { return dropout_factor(position, dropped_below, scale, seed); }
};

// A kernel for both types of hidden states: its template is `name`.
#define FOR_EACH_ELEMENT(name, parameters, arguments) \
    extern "C" __global__ void name##_f32 parameters(float) { name<float> arguments; } \
    extern "C" __global__ void name##_bf16 parameters(bf16) { name<bf16> arguments; }
