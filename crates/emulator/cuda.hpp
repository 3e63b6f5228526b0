// What CUDA C++ means on the host: included before every kernel source that g++ compiles.
#pragma once

#define EMULATOR
// The first architecture with bf16. What asks for a later one, as fp8 does, is left out.
#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#include "block.hpp"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <limits>
#include <math.h> // of <cmath> it also names what kernels call without std::
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

namespace emulator {

// A number of fewer bits than float, as which it is read and computed with.
template <typename Format> struct Short {
    typename Format::Bits __x;

    Short() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>> Short(T x) : __x(Format::of(float(x))) {}
    operator float() const { return Format::value(__x); }
    Short& operator+=(float x) { return *this = *this + x; }
    Short& operator*=(float x) { return *this = *this * x; }
};

struct Bf16 {
    typedef uint16_t Bits;
    static float value(Bits x) {
        uint32_t bits = uint32_t(x) << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    // To the nearest, ties to even; every NaN becomes 0x7fff.
    static Bits of(float x) {
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
        return Bits((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
    }
};

// Kernels of these types exist, and may not run.
template <typename B> struct NotEmulated {
    typedef B Bits;
    static float value(Bits) { fail("numbers of f16 and fp8 are not emulated"); }
    static Bits of(float) { fail("numbers of f16 and fp8 are not emulated"); }
};

} // namespace emulator

using emulator::Short;
typedef Short<emulator::Bf16> __nv_bfloat16;
typedef Short<emulator::NotEmulated<uint16_t>> __half;
typedef Short<emulator::NotEmulated<uint8_t>> __nv_fp8_e4m3;
struct __align__(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {x.x, x.y}; }
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }
inline __half __ushort_as_half(unsigned short bits) { __half x; x.__x = bits; return x; }
enum { __NV_E4M3 };
inline __half __nv_cvt_fp8_to_halfraw(uint8_t bits, int) { __nv_fp8_e4m3 x; x.__x = bits; return float(x); }

template <typename F> bool __hisnan(Short<F> x) { return isnan(float(x)); }
template <typename F> Short<F> __habs(Short<F> x) { return fabsf(x); }
template <typename F> Short<F> __hmax_nan(Short<F> a, Short<F> b) { return isnan(float(a)) || a > b ? a : b; }
template <typename F> Short<F> __hmin_nan(Short<F> a, Short<F> b) { return isnan(float(a)) || a < b ? a : b; }
template <typename F> Short<F> hsqrt(Short<F> x) { return sqrtf(x); }
template <typename F> Short<F> hsin(Short<F> x) { return sinf(x); }
template <typename F> Short<F> hcos(Short<F> x) { return cosf(x); }
template <typename F> Short<F> hlog(Short<F> x) { return logf(x); }
template <typename F> Short<F> hexp(Short<F> x) { return expf(x); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * float(M_SQRT1_2)); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __int_as_float(int x) { float y; memcpy(&y, &x, sizeof y); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, sizeof y); return y; }
inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, sizeof y); return y; }
inline long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, sizeof y); return y; }
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
template <typename T> inline T atomicExch(T* address, T value) {
    T old = *address;
    *address = value;
    return old;
}
template <typename T, typename V> inline T atomicAdd(T* address, V value) { return atomicExch(address, T(*address + T(value))); }
template <typename T, typename V> inline T atomicMin(T* address, V value) { return atomicExch(address, min(*address, T(value))); }
template <typename T, typename V> inline T atomicMax(T* address, V value) { return atomicExch(address, max(*address, T(value))); }
template <typename T> inline T atomicCAS(T* address, T expected, T value) {
    return *address == expected ? atomicExch(address, value) : *address;
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
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "a shuffle takes 2, 4 or 8 bytes");
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

// CUDA's standard library.
namespace cuda::std {
using ::std::numeric_limits;
}

#include "wmma.hpp"
// It has the order of tiles from there.
#include "ptx.hpp"
