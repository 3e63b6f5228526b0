// Sums over the rows of a matrix, column by column, in two passes, so that they do not depend on the order in which blocks run: a block
// of 32 columns and 8 rows at a time sums a slice of the rows, a second launch the slices.
#include "common.cuh"

constexpr unsigned COLUMNS = 32;
constexpr unsigned ROWS = 8;

// The sum over a block's rows of what each thread holds, in the threads of row 0.
__device__ __forceinline__ float sum_of_rows(float x) {
    __shared__ float sums[ROWS][COLUMNS + 1];
    __syncthreads();
    sums[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float total = 0.0f;
    if (threadIdx.y == 0) {
        for (unsigned row = 0; row < ROWS; row++) total += sums[row][threadIdx.x];
    }
    return total;
}

// sums (slices, columns): of the rows slice * rows_per_slice onwards of x (rows, columns).
template <typename T>
__device__ void column_sums(float* sums, const T* x, unsigned rows, unsigned columns, unsigned rows_per_slice) {
    unsigned column = blockIdx.x * COLUMNS + threadIdx.x;
    unsigned end = min(rows, (blockIdx.y + 1) * rows_per_slice);
    float sum = 0.0f;
    if (column < columns) {
        for (unsigned row = blockIdx.y * rows_per_slice + threadIdx.y; row < end; row += ROWS) {
            sum += to_float(x[static_cast<unsigned long long>(row) * columns + column]);
        }
    }
    sum = sum_of_rows(sum);
    if (threadIdx.y == 0 && column < columns) sums[blockIdx.y * columns + column] = sum;
}

#define PARAMETERS(T) (float* sums, const T* x, unsigned rows, unsigned columns, unsigned rows_per_slice)
FOR_EACH_ELEMENT(column_sums, PARAMETERS, (sums, x, rows, columns, rows_per_slice))
#undef PARAMETERS

// The same of a * b.
template <typename T>
__device__ void column_products(
    float* sums, const T* a, const T* b, unsigned rows, unsigned columns, unsigned rows_per_slice) {
    unsigned column = blockIdx.x * COLUMNS + threadIdx.x;
    unsigned end = min(rows, (blockIdx.y + 1) * rows_per_slice);
    float sum = 0.0f;
    if (column < columns) {
        for (unsigned row = blockIdx.y * rows_per_slice + threadIdx.y; row < end; row += ROWS) {
            unsigned long long i = static_cast<unsigned long long>(row) * columns + column;
            sum += to_float(a[i]) * to_float(b[i]);
        }
    }
    sum = sum_of_rows(sum);
    if (threadIdx.y == 0 && column < columns) sums[blockIdx.y * columns + column] = sum;
}

#define PARAMETERS(T) (float* sums, const T* a, const T* b, unsigned rows, unsigned columns, unsigned rows_per_slice)
FOR_EACH_ELEMENT(column_products, PARAMETERS, (sums, a, b, rows, columns, rows_per_slice))
#undef PARAMETERS
