// Layer normalisation, a warp per row. A row is read again instead of kept: it lies in the cache.
#include "common.cuh"

// What is normed: the rows of x, or with a residual those of mask * x + residual.
template <typename T> struct Rows {
    const T *x, *residual;
    unsigned columns;
    Mask mask;

    __device__ __forceinline__ void read(unsigned row, unsigned first, float values[4]) const {
        read_four(row_of(x, row, columns), first, columns, values);
        if (!residual) return;
        float added[4];
        read_four(row_of(residual, row, columns), first, columns, added);
        for (unsigned i = 0; i < 4; i++) values[i] = values[i] * mask.factor(row * columns + first + i) + added[i];
    }
};

// What a row is moved and scaled by.
struct RowMoments {
    float mean;
    float scale; // 1 / sqrt(variance + epsilon)
};

template <typename T> __device__ __forceinline__ RowMoments moments_of(const Rows<T>& rows, unsigned row, float epsilon) {
    float values[4], sum = 0.0f, squares = 0.0f;
    FOR_FOURS_OF_ROW(first, rows.columns) {
        rows.read(row, first, values);
        for (unsigned i = 0; i < 4; i++) sum += values[i];
    }
    float mean = warp_sum(sum) / rows.columns;
    FOR_FOURS_OF_ROW(first, rows.columns) {
        rows.read(row, first, values);
        for (unsigned i = 0; i < 4 && first + i < rows.columns; i++) squares += (values[i] - mean) * (values[i] - mean);
    }
    return {mean, rsqrtf(warp_sum(squares) / rows.columns + epsilon)};
}

#define ROWS_PARAMETERS(T) \
    const T *x, const T *residual, unsigned rows, unsigned columns, float epsilon, unsigned dropped_below, float scale, \
        unsigned long long seed
#define ROWS(T) \
    Rows<T> { \
        x, residual, columns, { dropped_below, scale, seed } \
    }

// (x - mean) * scale * gamma + beta
template <typename T> __device__ void layer_norm(T* y, const float* gamma, const float* beta, ROWS_PARAMETERS(T)) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    Rows<T> normed = ROWS(T);
    RowMoments moments = moments_of(normed, row, epsilon);
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4], scales[4], shifts[4];
        normed.read(row, first, values);
        read_four(gamma, first, columns, scales);
        read_four(beta, first, columns, shifts);
        for (unsigned i = 0; i < 4; i++) values[i] = (values[i] - moments.mean) * moments.scale * scales[i] + shifts[i];
        write_four(row_of(y, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (T* y, const float* gamma, const float* beta, ROWS_PARAMETERS(T))
FOR_EACH_ELEMENT(layer_norm, PARAMETERS, (y, gamma, beta, x, residual, rows, columns, epsilon, dropped_below, scale, seed))
#undef PARAMETERS

// With n = (x - mean) * scale and d = gradient * gamma: scale * (d - mean(d) - n * mean(d n)), and what of it reaches x through the mask,
// where that is asked for.
template <typename T>
__device__ void layer_norm_backward(T* dx, T* masked, const float* gamma, const T* gradient, ROWS_PARAMETERS(T)) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    Rows<T> normed = ROWS(T);
    RowMoments moments = moments_of(normed, row, epsilon);
    float values[4], upstream[4], scales[4], sum = 0.0f, products = 0.0f;
    FOR_FOURS_OF_ROW(first, columns) {
        normed.read(row, first, values);
        read_four(row_of(gradient, row, columns), first, columns, upstream);
        read_four(gamma, first, columns, scales);
        for (unsigned i = 0; i < 4; i++) {
            sum += upstream[i] * scales[i];
            products += upstream[i] * scales[i] * (values[i] - moments.mean);
        }
    }
    float mean_d = warp_sum(sum) / columns, mean_dn = warp_sum(products) * moments.scale / columns;
    FOR_FOURS_OF_ROW(first, columns) {
        normed.read(row, first, values);
        read_four(row_of(gradient, row, columns), first, columns, upstream);
        read_four(gamma, first, columns, scales);
        for (unsigned i = 0; i < 4; i++) {
            float n = (values[i] - moments.mean) * moments.scale;
            values[i] = moments.scale * (upstream[i] * scales[i] - mean_d - n * mean_dn);
        }
        write_four(row_of(dx, row, columns), first, columns, values);
        if (!masked) continue;
        for (unsigned i = 0; i < 4; i++) values[i] *= normed.mask.factor(row * columns + first + i);
        write_four(row_of(masked, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (T* dx, T* masked, const float* gamma, const T* gradient, ROWS_PARAMETERS(T))
FOR_EACH_ELEMENT(
    layer_norm_backward, PARAMETERS,
    (dx, masked, gamma, gradient, x, residual, rows, columns, epsilon, dropped_below, scale, seed))
#undef PARAMETERS

// (x - mean) * scale
template <typename T> __device__ void normalize_rows(float* n, ROWS_PARAMETERS(T)) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    Rows<T> normed = ROWS(T);
    RowMoments moments = moments_of(normed, row, epsilon);
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        normed.read(row, first, values);
        for (unsigned i = 0; i < 4; i++) values[i] = (values[i] - moments.mean) * moments.scale;
        write_four(row_of(n, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (float* n, ROWS_PARAMETERS(T))
FOR_EACH_ELEMENT(normalize_rows, PARAMETERS, (n, x, residual, rows, columns, epsilon, dropped_below, scale, seed))
#undef PARAMETERS
#undef ROWS
#undef ROWS_PARAMETERS
