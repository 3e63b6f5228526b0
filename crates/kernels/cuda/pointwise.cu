// Element by element: conversion, dropout, residuals, activation functions, gates. Each thread takes eight numbers: what is
// read and written goes by 16 bytes, and takes longer than what is computed.
#include "common.cuh"

extern "C" __global__ void to_bf16(bf16* y, const float* x, unsigned count) {
    float values[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    write_numbers<EIGHT>(y, first, count, values);
}

// Up to eight arrays of so many numbers each, to one behind the other, where each begins at a multiple of eight numbers. The row of the
// grid says which array a block takes.
extern "C" __global__ void round_arrays(
    bf16* y, const float* x0, const float* x1, const float* x2, const float* x3, const float* x4, const float* x5, const float* x6,
    const float* x7, unsigned n0, unsigned n1, unsigned n2, unsigned n3, unsigned n4, unsigned n5, unsigned n6, unsigned n7) {
    const float* x = nullptr;
    unsigned first = first_of_eight(), count = 0;
    float values[EIGHT];
    auto offer = [&](unsigned array, const float* numbers, unsigned n) {
        if (array < blockIdx.y) y += (n + EIGHT - 1) / EIGHT * EIGHT;
        if (array != blockIdx.y) return;
        x = numbers;
        count = n;
    };
    offer(0, x0, n0);
    offer(1, x1, n1);
    offer(2, x2, n2);
    offer(3, x3, n3);
    offer(4, x4, n4);
    offer(5, x5, n5);
    offer(6, x6, n6);
    offer(7, x7, n7);
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    write_numbers<EIGHT>(y, first, count, values);
}

extern "C" __global__ void to_f32(float* y, const bf16* x, unsigned count) {
    float values[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    write_numbers<EIGHT>(y, first, count, values);
}

// mask * x
template <typename T>
__device__ void dropout(T* y, const T* x, unsigned count, unsigned dropped_below, float scale, unsigned long long seed) {
    float values[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    for (unsigned i = 0; i < EIGHT; i++) values[i] *= dropout_factor(first + i, dropped_below, scale, seed);
    write_numbers<EIGHT>(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* x, unsigned count, unsigned dropped_below, float scale, unsigned long long seed)
FOR_EACH_ELEMENT(dropout, PARAMETERS, (y, x, count, dropped_below, scale, seed))
#undef PARAMETERS

// mask * x + others
template <typename T>
__device__ void add_dropout(
    T* y, const T* x, const T* others, unsigned count, unsigned dropped_below, float scale, unsigned long long seed) {
    float values[EIGHT], added[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    read_numbers<EIGHT>(others, first, count, added);
    for (unsigned i = 0; i < EIGHT; i++) values[i] = values[i] * dropout_factor(first + i, dropped_below, scale, seed) + added[i];
    write_numbers<EIGHT>(y, first, count, values);
}

#define PARAMETERS(T) \
    (T* y, const T* x, const T* others, unsigned count, unsigned dropped_below, float scale, unsigned long long seed)
FOR_EACH_ELEMENT(add_dropout, PARAMETERS, (y, x, others, count, dropped_below, scale, seed))
#undef PARAMETERS

// The functions, numbered as in activation.rs.
enum Activation { GELU, GELU_APPROXIMATE, RELU, TANH, SWISH };

// The standard normal's distribution function, and e^(-x^2/2), of which its density is a multiple.
struct Normal {
    float cdf;
    float exponential;

    __device__ __forceinline__ float density() const { return 0.39894228f * exponential; }
};

template <typename T> __device__ __forceinline__ Normal normal_at(float x);
template <> __device__ __forceinline__ Normal normal_at<float>(float x) {
    return {0.5f * (1.0f + erff(x * 0.70710678f)), expf(-0.5f * x * x)};
}
// To 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26; the argument is divided by the root of 2), where bf16 rounds to 2e-3: with erff a launch
// takes longer than its bytes.
template <> __device__ __forceinline__ Normal normal_at<bf16>(float x) {
    float t = __fdividef(1.0f, 1.0f + 0.23164189f * fabsf(x)), exponential = __expf(-0.5f * x * x);
    float sum = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float tail = 0.5f * sum * exponential;
    return {x < 0.0f ? tail : 1.0f - tail, exponential};
}

__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float approximate_cdf(float x) {
    return 0.5f * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

template <typename T> __device__ __forceinline__ float activate(unsigned function, float x) {
    switch (function) {
        case GELU: return x * normal_at<T>(x).cdf;
        case GELU_APPROXIMATE: return x * approximate_cdf(x);
        case RELU: return fmaxf(x, 0.0f);
        case TANH: return tanhf(x);
        default: return x * logistic(x);
    }
}

template <typename T> __device__ __forceinline__ float activation_slope(unsigned function, float x) {
    switch (function) {
        case GELU: {
            Normal normal = normal_at<T>(x);
            return normal.cdf + x * normal.density();
        }
        case GELU_APPROXIMATE: {
            float cdf = approximate_cdf(x);
            return cdf + 2.0f * x * cdf * (1.0f - cdf) * 0.79788456f * (1.0f + 3.0f * 0.044715f * x * x);
        }
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        case TANH: {
            float y = tanhf(x);
            return 1.0f - y * y;
        }
        default: {
            float share = logistic(x);
            return share + x * share * (1.0f - share);
        }
    }
}

template <typename T> __device__ void activation(T* y, const T* x, unsigned count, unsigned function) {
    float values[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    for (unsigned i = 0; i < EIGHT; i++) values[i] = activate<T>(function, values[i]);
    write_numbers<EIGHT>(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* x, unsigned count, unsigned function)
FOR_EACH_ELEMENT(activation, PARAMETERS, (y, x, count, function))
#undef PARAMETERS

template <typename T>
__device__ void activation_backward(T* dx, const T* x, const T* gradient, unsigned count, unsigned function) {
    float values[EIGHT], upstream[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    read_numbers<EIGHT>(gradient, first, count, upstream);
    for (unsigned i = 0; i < EIGHT; i++) values[i] = upstream[i] * activation_slope<T>(function, values[i]);
    write_numbers<EIGHT>(dx, first, count, values);
}

#define PARAMETERS(T) (T* dx, const T* x, const T* gradient, unsigned count, unsigned function)
FOR_EACH_ELEMENT(activation_backward, PARAMETERS, (dx, x, gradient, count, function))
#undef PARAMETERS

// a * b
template <typename T> __device__ void gate(T* y, const T* a, const T* b, unsigned count) {
    float values[EIGHT], factors[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(a, first, count, values);
    read_numbers<EIGHT>(b, first, count, factors);
    for (unsigned i = 0; i < EIGHT; i++) values[i] *= factors[i];
    write_numbers<EIGHT>(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* a, const T* b, unsigned count)
FOR_EACH_ELEMENT(gate, PARAMETERS, (y, a, b, count))
#undef PARAMETERS

// a + factor * b
template <typename T> __device__ void add_scaled(T* y, const T* a, const T* b, unsigned count, float factor) {
    float values[EIGHT], added[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(a, first, count, values);
    read_numbers<EIGHT>(b, first, count, added);
    for (unsigned i = 0; i < EIGHT; i++) values[i] += factor * added[i];
    write_numbers<EIGHT>(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* a, const T* b, unsigned count, float factor)
FOR_EACH_ELEMENT(add_scaled, PARAMETERS, (y, a, b, count, factor))
#undef PARAMETERS

// factor * x
template <typename T> __device__ void scale(T* y, const T* x, unsigned count, float factor) {
    float values[EIGHT];
    unsigned first = first_of_eight();
    if (first >= count) return;
    read_numbers<EIGHT>(x, first, count, values);
    for (unsigned i = 0; i < EIGHT; i++) values[i] *= factor;
    write_numbers<EIGHT>(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* x, unsigned count, float factor)
FOR_EACH_ELEMENT(scale, PARAMETERS, (y, x, count, factor))
#undef PARAMETERS
