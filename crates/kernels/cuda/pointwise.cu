// Element by element: conversion, dropout, residuals, activation functions, gates. Each thread takes four numbers.
#include "common.cuh"

extern "C" __global__ void to_bf16(bf16* y, const float* x, unsigned count) {
    float values[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(x, first, count, values);
    write_four(y, first, count, values);
}

extern "C" __global__ void to_f32(float* y, const bf16* x, unsigned count) {
    float values[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(x, first, count, values);
    write_four(y, first, count, values);
}

// mask * x
template <typename T>
__device__ void dropout(T* y, const T* x, unsigned count, unsigned dropped_below, float scale, unsigned long long seed) {
    float values[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(x, first, count, values);
    for (unsigned i = 0; i < 4; i++) values[i] *= dropout_factor(first + i, dropped_below, scale, seed);
    write_four(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* x, unsigned count, unsigned dropped_below, float scale, unsigned long long seed)
FOR_EACH_ELEMENT(dropout, PARAMETERS, (y, x, count, dropped_below, scale, seed))
#undef PARAMETERS

// mask * x + others
template <typename T>
__device__ void add_dropout(
    T* y, const T* x, const T* others, unsigned count, unsigned dropped_below, float scale, unsigned long long seed) {
    float values[4], added[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(x, first, count, values);
    read_four(others, first, count, added);
    for (unsigned i = 0; i < 4; i++) values[i] = values[i] * dropout_factor(first + i, dropped_below, scale, seed) + added[i];
    write_four(y, first, count, values);
}

#define PARAMETERS(T) \
    (T* y, const T* x, const T* others, unsigned count, unsigned dropped_below, float scale, unsigned long long seed)
FOR_EACH_ELEMENT(add_dropout, PARAMETERS, (y, x, others, count, dropped_below, scale, seed))
#undef PARAMETERS

// The functions, numbered as in activation.rs.
enum Activation { GELU, GELU_APPROXIMATE, RELU, TANH, SWISH };

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
__device__ __forceinline__ float normal_pdf(float x) { return 0.39894228f * expf(-0.5f * x * x); }
__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float approximate_cdf(float x) {
    return 0.5f * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

__device__ __forceinline__ float activate(unsigned function, float x) {
    switch (function) {
        case GELU: return x * normal_cdf(x);
        case GELU_APPROXIMATE: return x * approximate_cdf(x);
        case RELU: return fmaxf(x, 0.0f);
        case TANH: return tanhf(x);
        default: return x * logistic(x);
    }
}

__device__ __forceinline__ float activation_slope(unsigned function, float x) {
    switch (function) {
        case GELU: return normal_cdf(x) + x * normal_pdf(x);
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
    float values[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(x, first, count, values);
    for (unsigned i = 0; i < 4; i++) values[i] = activate(function, values[i]);
    write_four(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* x, unsigned count, unsigned function)
FOR_EACH_ELEMENT(activation, PARAMETERS, (y, x, count, function))
#undef PARAMETERS

template <typename T>
__device__ void activation_backward(T* dx, const T* x, const T* gradient, unsigned count, unsigned function) {
    float values[4], upstream[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(x, first, count, values);
    read_four(gradient, first, count, upstream);
    for (unsigned i = 0; i < 4; i++) values[i] = upstream[i] * activation_slope(function, values[i]);
    write_four(dx, first, count, values);
}

#define PARAMETERS(T) (T* dx, const T* x, const T* gradient, unsigned count, unsigned function)
FOR_EACH_ELEMENT(activation_backward, PARAMETERS, (dx, x, gradient, count, function))
#undef PARAMETERS

// a * b
template <typename T> __device__ void gate(T* y, const T* a, const T* b, unsigned count) {
    float values[4], factors[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(a, first, count, values);
    read_four(b, first, count, factors);
    for (unsigned i = 0; i < 4; i++) values[i] *= factors[i];
    write_four(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* a, const T* b, unsigned count)
FOR_EACH_ELEMENT(gate, PARAMETERS, (y, a, b, count))
#undef PARAMETERS

// a + factor * b
template <typename T> __device__ void add_scaled(T* y, const T* a, const T* b, unsigned count, float factor) {
    float values[4], added[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(a, first, count, values);
    read_four(b, first, count, added);
    for (unsigned i = 0; i < 4; i++) values[i] += factor * added[i];
    write_four(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* a, const T* b, unsigned count, float factor)
FOR_EACH_ELEMENT(add_scaled, PARAMETERS, (y, a, b, count, factor))
#undef PARAMETERS

// factor * x
template <typename T> __device__ void scale(T* y, const T* x, unsigned count, float factor) {
    float values[4];
    unsigned first = first_of_four();
    if (first >= count) return;
    read_four(x, first, count, values);
    for (unsigned i = 0; i < 4; i++) values[i] *= factor;
    write_four(y, first, count, values);
}

#define PARAMETERS(T) (T* y, const T* x, unsigned count, float factor)
FOR_EACH_ELEMENT(scale, PARAMETERS, (y, x, count, factor))
#undef PARAMETERS
