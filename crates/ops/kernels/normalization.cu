// Layer normalisation, a warp per row. A row is read again instead of kept: it lies in the cache.
#include "common.cuh"

// What a row is moved and scaled by.
struct RowMoments {
    float mean;
    float scale; // 1 / sqrt(variance + epsilon)
};

template <typename T> __device__ __forceinline__ RowMoments moments_of(const T* x, unsigned columns, float epsilon) {
    float values[4], sum = 0.0f, squares = 0.0f;
    FOR_FOURS_OF_ROW(first, columns) {
        read_four(x, first, columns, values);
        for (unsigned i = 0; i < 4; i++) sum += values[i];
    }
    float mean = warp_sum(sum) / columns;
    FOR_FOURS_OF_ROW(first, columns) {
        read_four(x, first, columns, values);
        for (unsigned i = 0; i < 4 && first + i < columns; i++) squares += (values[i] - mean) * (values[i] - mean);
    }
    return {mean, rsqrtf(warp_sum(squares) / columns + epsilon)};
}

// (x - mean) * scale * gamma + beta
template <typename T>
__device__ void layer_norm(
    T* y, const T* x, const float* gamma, const float* beta, unsigned rows, unsigned columns, float epsilon) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    RowMoments moments = moments_of(row_of(x, row, columns), columns, epsilon);
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4], scales[4], shifts[4];
        read_four(row_of(x, row, columns), first, columns, values);
        read_four(gamma, first, columns, scales);
        read_four(beta, first, columns, shifts);
        for (unsigned i = 0; i < 4; i++) values[i] = (values[i] - moments.mean) * moments.scale * scales[i] + shifts[i];
        write_four(row_of(y, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) \
    (T* y, const T* x, const float* gamma, const float* beta, unsigned rows, unsigned columns, float epsilon)
FOR_EACH_ELEMENT(layer_norm, PARAMETERS, (y, x, gamma, beta, rows, columns, epsilon))
#undef PARAMETERS

// With n = (x - mean) * scale and d = gradient * gamma: scale * (d - mean(d) - n * mean(d n)).
template <typename T>
__device__ void layer_norm_backward(
    T* dx, const T* x, const float* gamma, const T* gradient, unsigned rows, unsigned columns, float epsilon) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    RowMoments moments = moments_of(row_of(x, row, columns), columns, epsilon);
    float values[4], upstream[4], scales[4], sum = 0.0f, products = 0.0f;
    FOR_FOURS_OF_ROW(first, columns) {
        read_four(row_of(x, row, columns), first, columns, values);
        read_four(row_of(gradient, row, columns), first, columns, upstream);
        read_four(gamma, first, columns, scales);
        for (unsigned i = 0; i < 4; i++) {
            sum += upstream[i] * scales[i];
            products += upstream[i] * scales[i] * (values[i] - moments.mean);
        }
    }
    float mean_d = warp_sum(sum) / columns, mean_dn = warp_sum(products) * moments.scale / columns;
    FOR_FOURS_OF_ROW(first, columns) {
        read_four(row_of(x, row, columns), first, columns, values);
        read_four(row_of(gradient, row, columns), first, columns, upstream);
        read_four(gamma, first, columns, scales);
        for (unsigned i = 0; i < 4; i++) {
            float n = (values[i] - moments.mean) * moments.scale;
            values[i] = moments.scale * (upstream[i] * scales[i] - mean_d - n * mean_dn);
        }
        write_four(row_of(dx, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) \
    (T* dx, const T* x, const float* gamma, const T* gradient, unsigned rows, unsigned columns, float epsilon)
FOR_EACH_ELEMENT(layer_norm_backward, PARAMETERS, (dx, x, gamma, gradient, rows, columns, epsilon))
#undef PARAMETERS

// (x - mean) * scale
template <typename T> __device__ void normalize_rows(float* n, const T* x, unsigned rows, unsigned columns, float epsilon) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    RowMoments moments = moments_of(row_of(x, row, columns), columns, epsilon);
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        read_four(row_of(x, row, columns), first, columns, values);
        for (unsigned i = 0; i < 4; i++) values[i] = (values[i] - moments.mean) * moments.scale;
        write_four(row_of(n, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (float* n, const T* x, unsigned rows, unsigned columns, float epsilon)
FOR_EACH_ELEMENT(normalize_rows, PARAMETERS, (n, x, rows, columns, epsilon))
#undef PARAMETERS
