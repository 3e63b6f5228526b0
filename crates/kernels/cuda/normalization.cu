// Layer normalization, a warp per row. Rows of up to 1,024 numbers are read once and kept in registers, so that a launch takes as long as
// its bytes: in bf16 the norm of a sum with a residual moves 6 bytes a number forward (13 us for 8,192 x 1,024 at 4 TB/s) and 10 backward
// (21 us).
#include "common.cuh"

// How the lanes of a warp share a row: in turns, each takes a pack of neighboring numbers. A row of up to Width numbers is kept; each pack
// is then one access of 16 bytes, and the row must lie so. Where Width is 0, rows of any width lie anywhere, and are read again, from the
// cache, as often as they are needed.
template <typename T, unsigned Width> struct Share {
    static constexpr unsigned PACK = Width ? WIDEST_PACK<T> : 4;
    static constexpr unsigned KEPT = Width ? Width / (WARP * PACK) : 1;

    unsigned columns;

    __device__ __forceinline__ unsigned packs() const { return Width ? KEPT : (columns + WARP * PACK - 1) / (WARP * PACK); }
    __device__ __forceinline__ unsigned first(unsigned pack) const { return PACK * (pack * WARP + threadIdx.x); }
    __device__ __forceinline__ bool has(unsigned pack) const { return first(pack) < columns; }
    // Whether a number of a pack is one of the row.
    __device__ __forceinline__ bool has(unsigned pack, unsigned i) const { return Width || first(pack) + i < columns; }
    // Where the numbers of a pack are kept.
    __device__ __forceinline__ static unsigned slot(unsigned pack) { return Width ? pack : 0; }

    template <typename From> __device__ __forceinline__ void read(const From* row, unsigned pack, float values[PACK]) const {
        if (Width) read_packs<PACK>(row + first(pack), values);
        else read_numbers<PACK>(row, first(pack), columns, values);
    }

    template <typename To> __device__ __forceinline__ void write(To* row, unsigned pack, const float values[PACK]) const {
        if (Width) write_packs<PACK>(row + first(pack), values);
        else write_numbers<PACK>(row, first(pack), columns, values);
    }
};

#define FOR_PACKS(share, pack) \
    _Pragma("unroll") for (unsigned pack = 0; pack < share.packs(); pack++) \
        if (share.has(pack))
#define FOR_PACK(i) _Pragma("unroll") for (unsigned i = 0; i < SHARE::PACK; i++)

// What is normed: a row of x, or with a residual that of mask * x + residual.
template <typename T, unsigned Width> struct Normed {
    typedef Share<T, Width> SHARE;

    const T *x, *residual;
    unsigned position; // of the row's first number, for the mask
    SHARE share;
    Mask mask;
    float values[SHARE::KEPT][SHARE::PACK];
    unsigned dropped; // A bit for each number that is kept.
    float mean, scale; // scale: 1 / sqrt(variance + epsilon)

    __device__ __forceinline__ Normed(const T* x, const T* residual, unsigned position, SHARE share, Mask mask)
        : x(x), residual(residual), position(position), share(share), mask(mask), dropped(0) {}

    __device__ __forceinline__ void read(unsigned pack) {
        float* own = values[SHARE::slot(pack)];
        share.read(x, pack, own);
        if (!residual) return;
        if (mask.dropped_below) {
            if (!Width) dropped = 0;
            FOR_PACK(i) {
                float factor = mask.factor(position + share.first(pack) + i);
                if (factor == 0.0f) dropped |= 1u << (SHARE::slot(pack) * SHARE::PACK + i);
                own[i] *= factor;
            }
        }
        float added[SHARE::PACK];
        share.read(residual, pack, added);
        FOR_PACK(i) own[i] += added[i];
    }

    // The numbers of a pack, after all have been read once.
    __device__ __forceinline__ float* again(unsigned pack) {
        if (!Width) read(pack);
        return values[SHARE::slot(pack)];
    }

    // What a number of a pack that was read was multiplied by.
    __device__ __forceinline__ float factor(unsigned pack, unsigned i) const {
        return dropped >> (SHARE::slot(pack) * SHARE::PACK + i) & 1 ? 0.0f : mask.scale;
    }

    __device__ __forceinline__ void find_moments(float epsilon) {
        float sum = 0.0f, squares = 0.0f;
        FOR_PACKS(share, pack) {
            read(pack);
            FOR_PACK(i) sum += values[SHARE::slot(pack)][i];
        }
        mean = warp_sum(sum) / share.columns;
        FOR_PACKS(share, pack) {
            const float* own = again(pack);
            FOR_PACK(i) {
                if (share.has(pack, i)) squares += (own[i] - mean) * (own[i] - mean);
            }
        }
        scale = rsqrtf(warp_sum(squares) / share.columns + epsilon);
    }
};

#define ROWS_PARAMETERS(T) \
    const T *x, const T *residual, unsigned rows, unsigned columns, float epsilon, unsigned dropped_below, float scale, \
        unsigned long long seed
#define ROWS_ARGUMENTS x, residual, rows, columns, epsilon, dropped_below, scale, seed
// The row of this warp, with its moments.
#define NORMED_ROW \
    unsigned row = row_of_warp(); \
    if (row >= rows) return; \
    typedef Share<T, Width> SHARE; \
    SHARE share = {columns}; \
    Normed<T, Width> normed( \
        row_of(x, row, columns), residual ? row_of(residual, row, columns) : nullptr, row * columns, share, {dropped_below, scale, seed}); \
    normed.find_moments(epsilon)

// (x - mean) * scale * gamma + beta
template <typename T, unsigned Width>
__device__ void layer_norm(T* y, const float* gamma, const float* beta, ROWS_PARAMETERS(T)) {
    NORMED_ROW;
    FOR_PACKS(share, pack) {
        float *values = normed.again(pack), scales[SHARE::PACK], shifts[SHARE::PACK];
        share.read(gamma, pack, scales);
        share.read(beta, pack, shifts);
        FOR_PACK(i) values[i] = (values[i] - normed.mean) * normed.scale * scales[i] + shifts[i];
        share.write(row_of(y, row, columns), pack, values);
    }
}

// With n = (x - mean) * scale and d = gradient * gamma: scale * (d - mean(d) - n * mean(d n)), and what of it reaches x through the mask,
// where that is asked for.
template <typename T, unsigned Width>
__device__ void layer_norm_backward(T* dx, T* masked, const float* gamma, const T* gradient, ROWS_PARAMETERS(T)) {
    NORMED_ROW;
    gradient = row_of(gradient, row, columns);
    float upstream[SHARE::KEPT][SHARE::PACK], sum = 0.0f, products = 0.0f;
    auto read = [&](unsigned pack) {
        float *own = upstream[SHARE::slot(pack)], scales[SHARE::PACK];
        share.read(gradient, pack, own);
        share.read(gamma, pack, scales);
        FOR_PACK(i) own[i] *= scales[i];
    };
    FOR_PACKS(share, pack) {
        read(pack);
        const float *values = normed.again(pack), *d = upstream[SHARE::slot(pack)];
        FOR_PACK(i) {
            sum += d[i];
            products += d[i] * (values[i] - normed.mean);
        }
    }
    float mean_d = warp_sum(sum) / columns, mean_dn = warp_sum(products) * normed.scale / columns;
    FOR_PACKS(share, pack) {
        if (!Width) read(pack);
        float *values = normed.again(pack), *d = upstream[SHARE::slot(pack)];
        FOR_PACK(i) d[i] = normed.scale * (d[i] - mean_d - (values[i] - normed.mean) * normed.scale * mean_dn);
        share.write(row_of(dx, row, columns), pack, d);
        if (!masked) continue;
        FOR_PACK(i) d[i] *= normed.factor(pack, i);
        share.write(row_of(masked, row, columns), pack, d);
    }
}

// (x - mean) * scale
template <typename T, unsigned Width> __device__ void normalize_rows(float* n, ROWS_PARAMETERS(T)) {
    NORMED_ROW;
    FOR_PACKS(share, pack) {
        float* values = normed.again(pack);
        FOR_PACK(i) values[i] = (values[i] - normed.mean) * normed.scale;
        share.write(row_of(n, row, columns), pack, values);
    }
}

// A kernel for each width of rows that are kept, and for all others.
#define OF_WIDTH(name, width, parameters, arguments) \
    extern "C" __global__ void name##_##width##_f32 parameters(float) { name<float, width> arguments; } \
    extern "C" __global__ void name##_##width##_bf16 parameters(bf16) { name<bf16, width> arguments; }
#define FOR_EACH_WIDTH(name, parameters, arguments) \
    OF_WIDTH(name, 0, parameters, arguments) \
    OF_WIDTH(name, 256, parameters, arguments) \
    OF_WIDTH(name, 512, parameters, arguments) \
    OF_WIDTH(name, 768, parameters, arguments) \
    OF_WIDTH(name, 1024, parameters, arguments)

#define PARAMETERS(T) (T* y, const float* gamma, const float* beta, ROWS_PARAMETERS(T))
FOR_EACH_WIDTH(layer_norm, PARAMETERS, (y, gamma, beta, ROWS_ARGUMENTS))
#undef PARAMETERS

#define PARAMETERS(T) (T* dx, T* masked, const float* gamma, const T* gradient, ROWS_PARAMETERS(T))
FOR_EACH_WIDTH(layer_norm_backward, PARAMETERS, (dx, masked, gamma, gradient, ROWS_ARGUMENTS))
#undef PARAMETERS

#define PARAMETERS(T) (float* n, ROWS_PARAMETERS(T))
FOR_EACH_WIDTH(normalize_rows, PARAMETERS, (n, ROWS_ARGUMENTS))
#undef PARAMETERS
#undef FOR_EACH_WIDTH
#undef OF_WIDTH
#undef NORMED_ROW
#undef ROWS_ARGUMENTS
#undef ROWS_PARAMETERS
#undef FOR_PACK
#undef FOR_PACKS
