// Vectors over the columns of a matrix, and sums over its rows. Sums are taken in two passes, so that they do not depend on the order in
// which blocks run: a block sums a slice of the rows, a second launch the slices.
#include "common.cuh"

// sums (slices, columns): of the rows slice * rows_per_slice onwards of a (rows, columns), or of a * b if there is b.
template <typename T>
__device__ void column_sums(float* sums, const T* a, const T* b, unsigned rows, unsigned columns, unsigned rows_per_slice) {
    unsigned column = blockIdx.x * SUM_COLUMNS + threadIdx.x;
    unsigned end = min(rows, (blockIdx.y + 1) * rows_per_slice);
    float sum = 0.0f;
    if (column < columns) {
        for (unsigned row = blockIdx.y * rows_per_slice + threadIdx.y; row < end; row += SUM_ROWS) {
            unsigned long long i = static_cast<unsigned long long>(row) * columns + column;
            sum += b ? to_float(a[i]) * to_float(b[i]) : to_float(a[i]);
        }
    }
    sum = sum_of_rows(sum);
    if (threadIdx.y == 0 && column < columns) sums[blockIdx.y * columns + column] = sum;
}

#define PARAMETERS(T) (float* sums, const T* a, const T* b, unsigned rows, unsigned columns, unsigned rows_per_slice)
FOR_EACH_ELEMENT(column_sums, PARAMETERS, (sums, a, b, rows, columns, rows_per_slice))
#undef PARAMETERS

// x + bias in each row
template <typename T> __device__ void add_bias(T* y, const T* x, const float* bias, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4], added[4];
        read_four(row_of(x, row, columns), first, columns, values);
        read_four(bias, first, columns, added);
        for (unsigned i = 0; i < 4; i++) values[i] += added[i];
        write_four(row_of(y, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (T* y, const T* x, const float* bias, unsigned rows, unsigned columns)
FOR_EACH_ELEMENT(add_bias, PARAMETERS, (y, x, bias, rows, columns))
#undef PARAMETERS

// x * scale / over in each row; a vector that is not there is one of ones.
template <typename T>
__device__ void scale_columns(T* y, const T* x, const float* scale, const float* over, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4], factors[4] = {1.0f, 1.0f, 1.0f, 1.0f}, divisors[4];
        read_four(row_of(x, row, columns), first, columns, values);
        if (scale) read_four(scale, first, columns, factors);
        if (over) {
            read_four(over, first, columns, divisors);
            for (unsigned i = 0; i < 4; i++) factors[i] /= divisors[i];
        }
        for (unsigned i = 0; i < 4; i++) values[i] *= factors[i];
        write_four(row_of(y, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (T* y, const T* x, const float* scale, const float* over, unsigned rows, unsigned columns)
FOR_EACH_ELEMENT(scale_columns, PARAMETERS, (y, x, scale, over, rows, columns))
#undef PARAMETERS

// `columns` columns of each row of x, whose rows are x_width long, from its column x_first on, to those of y from y_first on.
template <typename T>
__device__ void copy_columns(
    T* y, const T* x, unsigned rows, unsigned columns, unsigned y_width, unsigned y_first, unsigned x_width, unsigned x_first) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        read_four(row_of(x, row, x_width) + x_first, first, columns, values);
        write_four(row_of(y, row, y_width) + y_first, first, columns, values);
    }
}

#define PARAMETERS(T) \
    (T* y, const T* x, unsigned rows, unsigned columns, unsigned y_width, unsigned y_first, unsigned x_width, unsigned x_first)
FOR_EACH_ELEMENT(copy_columns, PARAMETERS, (y, x, rows, columns, y_width, y_first, x_width, x_first))
#undef PARAMETERS
