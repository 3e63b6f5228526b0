// Rows looked up, moved and summed, and where the sequences of a packed batch begin.
#include "common.cuh"

// The sum of one row of each table; `indices` (3, tokens) says which.
extern "C" __global__ void embedding_sum(
    float* y, const float* a, const float* b, const float* c, const unsigned* indices, unsigned tokens, unsigned columns) {
    unsigned token = row_of_warp();
    if (token >= tokens) return;
    a = row_of(a, indices[token], columns);
    b = row_of(b, indices[tokens + token], columns);
    c = row_of(c, indices[2 * tokens + token], columns);
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4], more[4];
        read_four(a, first, columns, values);
        read_four(b, first, columns, more);
        for (unsigned i = 0; i < 4; i++) values[i] += more[i];
        read_four(c, first, columns, more);
        for (unsigned i = 0; i < 4; i++) values[i] += more[i];
        write_four(row_of(y, token, columns), first, columns, values);
    }
}

// y[i] = x[indices[i]], row by row.
template <typename T> __device__ void gather_rows(T* y, const T* x, const unsigned* indices, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        read_four(row_of(x, indices[row], columns), first, columns, values);
        write_four(row_of(y, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (T* y, const T* x, const unsigned* indices, unsigned rows, unsigned columns)
FOR_EACH_ELEMENT(gather_rows, PARAMETERS, (y, x, indices, rows, columns))
#undef PARAMETERS

// y[indices[i]] = x[i], row by row; no index comes twice.
template <typename T> __device__ void scatter_rows(T* y, const T* x, const unsigned* indices, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        read_four(row_of(x, row, columns), first, columns, values);
        write_four(row_of(y, indices[row], columns), first, columns, values);
    }
}

#define PARAMETERS(T) (T* y, const T* x, const unsigned* indices, unsigned rows, unsigned columns)
FOR_EACH_ELEMENT(scatter_rows, PARAMETERS, (y, x, indices, rows, columns))
#undef PARAMETERS

// The sum, or the mean, of a list of rows of x for each row of the grid: those at positions starts[i] to starts[i + 1] of `list`, or these
// positions themselves where there is no list. It goes to y's row targets[i], or i.
template <typename Y, typename X>
__device__ void sum_lists(
    Y* y, const X* x, const unsigned* targets, const unsigned* starts, const unsigned* list, unsigned columns, unsigned is_mean) {
    unsigned column = blockIdx.x * SUM_COLUMNS + threadIdx.x, start = starts[blockIdx.y], end = starts[blockIdx.y + 1];
    float sum = 0.0f;
    if (column < columns) {
        for (unsigned i = start + threadIdx.y; i < end; i += SUM_ROWS) {
            sum += to_float(row_of(x, list ? list[i] : i, columns)[column]);
        }
    }
    sum = sum_of_rows(sum);
    if (threadIdx.y == 0 && column < columns) {
        unsigned row = targets ? targets[blockIdx.y] : blockIdx.y;
        row_of(y, row, columns)[column] = from_float<Y>(is_mean ? sum / (end - start) : sum);
    }
}

// To sums in f32.
template <typename T>
__device__ void row_sums(
    float* y, const T* x, const unsigned* targets, const unsigned* starts, const unsigned* list, unsigned columns) {
    sum_lists<float, T>(y, x, targets, starts, list, columns, 0);
}

#define PARAMETERS(T) \
    (float* y, const T* x, const unsigned* targets, const unsigned* starts, const unsigned* list, unsigned columns)
FOR_EACH_ELEMENT(row_sums, PARAMETERS, (y, x, targets, starts, list, columns))
#undef PARAMETERS

// The mean over each sequence's rows.
template <typename T> __device__ void segment_mean(T* y, const T* x, const unsigned* offsets, unsigned columns) {
    sum_lists<T, T>(y, x, nullptr, offsets, nullptr, columns, 1);
}

#define PARAMETERS(T) (T* y, const T* x, const unsigned* offsets, unsigned columns)
FOR_EACH_ELEMENT(segment_mean, PARAMETERS, (y, x, offsets, columns))
#undef PARAMETERS

// The sequence that a row lies in, where each sequence is so many rows longer than its offsets say.
__device__ __forceinline__ unsigned sequence_of(unsigned row, const unsigned* offsets, unsigned sequences, unsigned longer) {
    unsigned low = 0, high = sequences;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (offsets[middle] + middle * longer <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Each row's share of the gradient of its sequence's mean.
template <typename T>
__device__ void segment_mean_backward(
    T* dx, const T* gradient, const unsigned* offsets, unsigned sequences, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    unsigned sequence = sequence_of(row, offsets, sequences, 0);
    float share = 1.0f / (offsets[sequence + 1] - offsets[sequence]);
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        read_four(row_of(gradient, sequence, columns), first, columns, values);
        for (unsigned i = 0; i < 4; i++) values[i] *= share;
        write_four(row_of(dx, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) (T* dx, const T* gradient, const unsigned* offsets, unsigned sequences, unsigned rows, unsigned columns)
FOR_EACH_ELEMENT(segment_mean_backward, PARAMETERS, (dx, gradient, offsets, sequences, rows, columns))
#undef PARAMETERS

// The `shared` rows of prefix before those of each sequence of x; `rows` are those of y.
template <typename T>
__device__ void prepend(
    T* y, const T* prefix, const T* x, const unsigned* offsets, unsigned sequences, unsigned shared, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    unsigned sequence = sequence_of(row, offsets, sequences, shared);
    unsigned position = row - (offsets[sequence] + sequence * shared);
    const T* source = position < shared ? row_of(prefix, position, columns)
                                        : row_of(x, offsets[sequence] + position - shared, columns);
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        read_four(source, first, columns, values);
        write_four(row_of(y, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) \
    (T* y, const T* prefix, const T* x, const unsigned* offsets, unsigned sequences, unsigned shared, unsigned rows, unsigned columns)
FOR_EACH_ELEMENT(prepend, PARAMETERS, (y, prefix, x, offsets, sequences, shared, rows, columns))
#undef PARAMETERS

// The sequences' own rows of what `prepend` gave; `rows` are those of dx.
template <typename T>
__device__ void behind_prefix(
    T* dx, const T* gradient, const unsigned* offsets, unsigned sequences, unsigned shared, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    unsigned source = row + (sequence_of(row, offsets, sequences, 0) + 1) * shared;
    FOR_FOURS_OF_ROW(first, columns) {
        float values[4];
        read_four(row_of(gradient, source, columns), first, columns, values);
        write_four(row_of(dx, row, columns), first, columns, values);
    }
}

#define PARAMETERS(T) \
    (T* dx, const T* gradient, const unsigned* offsets, unsigned sequences, unsigned shared, unsigned rows, unsigned columns)
FOR_EACH_ELEMENT(behind_prefix, PARAMETERS, (dx, gradient, offsets, sequences, shared, rows, columns))
#undef PARAMETERS

// The sum over sequences of each row that all share.
template <typename T>
__device__ void prefix_sums(float* sums, const T* gradient, const unsigned* offsets, unsigned sequences, unsigned shared, unsigned columns) {
    unsigned column = blockIdx.x * SUM_COLUMNS + threadIdx.x;
    float sum = 0.0f;
    if (column < columns) {
        for (unsigned sequence = threadIdx.y; sequence < sequences; sequence += SUM_ROWS) {
            unsigned row = offsets[sequence] + sequence * shared + blockIdx.y;
            sum += to_float(row_of(gradient, row, columns)[column]);
        }
    }
    sum = sum_of_rows(sum);
    if (threadIdx.y == 0 && column < columns) row_of(sums, blockIdx.y, columns)[column] = sum;
}

#define PARAMETERS(T) (float* sums, const T* gradient, const unsigned* offsets, unsigned sequences, unsigned shared, unsigned columns)
FOR_EACH_ELEMENT(prefix_sums, PARAMETERS, (sums, gradient, offsets, sequences, shared, columns))
#undef PARAMETERS

// Columns i and i + half of each head, turned by the angle of the row's position within its sequence, or by its opposite (`sign` -1).
// turns (positions, half) holds the cosines and sines.
template <typename T>
__device__ void rotary(
    T* y, const T* x, const float2* turns, const unsigned* offsets, unsigned sequences, unsigned rows, unsigned columns, unsigned half,
    float sign) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    unsigned position = row - offsets[sequence_of(row, offsets, sequences, 0)];
    x = row_of(x, row, columns);
    y = row_of(y, row, columns);
    for (unsigned pair = threadIdx.x; pair < columns / 2; pair += WARP) {
        unsigned i = pair % half, first = pair / half * 2 * half + i, second = first + half;
        float2 turn = turns[position * half + i];
        float a = to_float(x[first]), b = to_float(x[second]), sine = sign * turn.y;
        y[first] = from_float<T>(a * turn.x - b * sine);
        y[second] = from_float<T>(b * turn.x + a * sine);
    }
}

#define PARAMETERS(T) \
    (T* y, const T* x, const float2* turns, const unsigned* offsets, unsigned sequences, unsigned rows, unsigned columns, \
     unsigned half, float sign)
FOR_EACH_ELEMENT(rotary, PARAMETERS, (y, x, turns, offsets, sequences, rows, columns, half, sign))
#undef PARAMETERS
