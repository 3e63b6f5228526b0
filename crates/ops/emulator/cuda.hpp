// What CUDA C++ means on the host: included before every kernel source that g++ compiles.
#pragma once

#define EMULATOR

#include "block.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// The list of kernels is made from the preprocessed source, where this word must stand.
#ifndef LISTING_KERNELS
#define __global__
#endif
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block runs at a time on a host thread.
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulator::dynamic_shared())

// ---- Vectors and numbers ----

struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __align__(2) __nv_bfloat16 { uint16_t bits; };
struct __align__(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest, ties to even; every NaN becomes 0x7fff.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {__bfloat162float(x.x), __bfloat162float(x.y)}; }
inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __int_as_float(int x) { float y; memcpy(&y, &x, sizeof y); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, sizeof y); return y; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, sizeof y); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, sizeof y); return y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

template <typename A, typename B> constexpr std::common_type_t<A, B> min(A a, B b) {
    std::common_type_t<A, B> left = a, right = b;
    return right < left ? right : left;
}
template <typename A, typename B> constexpr std::common_type_t<A, B> max(A a, B b) {
    std::common_type_t<A, B> left = a, right = b;
    return left < right ? right : left;
}

template <typename T> inline T __ldg(const T* address) { return *address; }

// Threads of a block take turns, and a block is on one host thread: only other launches could come between.
template <typename T> inline T atomicAdd(T* address, T value) {
    T old = *address;
    *address = old + value;
    return old;
}

// ---- Barriers, and what a warp does together ----

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::meet("__syncwarp", mask, nullptr, nullptr); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emulator {

template <typename T> struct Shuffle {
    T value;
    unsigned source;
    T result;
};

// Every lane gets the value of its source; of a lane that is not there, what nobody wrote.
template <typename T> void answer_shuffle(void* const messages[WARP]) {
    for (unsigned i = 0; i < WARP; i++) {
        auto* own = static_cast<Shuffle<T>*>(messages[i]);
        if (!own) continue;
        auto* other = static_cast<const Shuffle<T>*>(messages[own->source]);
        if (other) own->result = other->value;
        else memset(&own->result, 0xff, sizeof own->result);
    }
}

template <typename T> T shuffle(const char* function, unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle takes 4 or 8 bytes");
    Shuffle<T> message{value, source, value};
    meet(function, mask, &message, &answer_shuffle<T>);
    return message.result;
}

struct Ballot {
    bool vote;
    unsigned result;
};

inline void answer_ballot(void* const messages[WARP]) {
    unsigned votes = 0;
    for (unsigned i = 0; i < WARP; i++) {
        if (messages[i] && static_cast<Ballot*>(messages[i])->vote) votes |= 1u << i;
    }
    for (unsigned i = 0; i < WARP; i++) {
        if (messages[i]) static_cast<Ballot*>(messages[i])->result = votes;
    }
}

} // namespace emulator

// In segments of `width` lanes, as the CUDA programming guide tells: a source outside of them is the lane itself.
template <typename T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned first = emulator::lane() & ~unsigned(width - 1);
    return emulator::shuffle("__shfl_sync", mask, value, first + (unsigned(source) & unsigned(width - 1)));
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    unsigned lane = emulator::lane(), source = lane ^ unsigned(lanes);
    unsigned end = (lane & ~unsigned(width - 1)) + unsigned(width);
    return emulator::shuffle("__shfl_xor_sync", mask, value, source < end ? source : lane);
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    unsigned lane = emulator::lane(), source = lane + lanes;
    unsigned end = (lane & ~unsigned(width - 1)) + unsigned(width);
    return emulator::shuffle("__shfl_down_sync", mask, value, source < end ? source : lane);
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    unsigned lane = emulator::lane(), first = lane & ~unsigned(width - 1);
    return emulator::shuffle("__shfl_up_sync", mask, value, first + lanes <= lane ? lane - lanes : lane);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    emulator::Ballot message{vote != 0, 0};
    emulator::meet("__ballot_sync", mask, &message, &emulator::answer_ballot);
    return message.result;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }

#include "wmma.hpp"
