// Attention of bf16 heads of 32, 64 and 128 columns: the products by mma instructions, their sums and the softmax in registers (Dao 2023,
// "FlashAttention-2"). attention.cu has what else there is: f32, other heads, and disentangled attention.
//
// Forward: a block takes 64 queries of a head, each warp 16 of them, and goes over the keys by 64, the next of which are on their way
// meanwhile. Backward: a block takes up to 64 or 128 keys of a head, each warp 16 of them, and goes over the queries by 64. Its scores are
// transposed, keys by queries, so that they are already there as the left factors of the gradients of keys and values; through shared
// memory goes the gradient of the scores alone, for that of the queries. Where a sequence has no more keys than a block takes, it makes the
// gradients of the queries too. Of longer ones another kernel does, so that no two blocks add to one number.
//
// What it comes to for 8,192 tokens in sequences of 128, 16 heads of 64, on an H200 (bf16 740 TFLOP/s, 4 TB/s, 132 multiprocessors at 1.75
// GHz, each with 128 bytes a cycle from shared memory and 4 instructions of warps):
//
//               products          read and written   by shared memory   instructions for each score, one of a warp's being .57 us
//   forward      4.3 GFLOP,  6 us    67 MB, 17 us      370 MB, 13 us     about 10,  6 us; with dropout 20 more, 11 us
//   backward    10.7 GFLOP, 15 us   134 MB, 34 us      950 MB, 32 us     about 20, 11 us; with dropout 20 more, 11 us
//
// Each is done by another part of the card, and several blocks share a multiprocessor, so that the longest of a row can be neared: 17 to 20
// us forward, 34 to 60 backward. mma instructions of this form reach about two thirds of a Hopper's rate.
#include "batch.cuh"
#include "ptx.cuh"

namespace flash {

constexpr unsigned TILE = 64;   // Queries of a tile; keys too where a block goes over keys.
constexpr unsigned SQUARE = 16; // What a warp multiplies: 16 x 16 by 16 x 16.
constexpr unsigned PART = 32;   // Of a tile, as many rows as a warp has scores with at a time in the backward pass.
constexpr unsigned PADDING = 8; // Behind each row in shared memory, so that eight rows' 16 bytes lie in different banks.
constexpr float LOG2E = 1.44269504f;

// A left factor, or a right one: 16 x 16 numbers, held by a warp.
struct Factor {
    unsigned words[4];
};

// Sums of products, 16 x 16, held by a warp: a lane has two neighbors in each of two rows, and those 8 columns on.
struct Square {
    float values[8];

    __device__ __forceinline__ static unsigned row(unsigned i) { return threadIdx.x % WARP / 4 + (i & 2 ? 8 : 0); }
    __device__ __forceinline__ static unsigned column(unsigned i) { return threadIdx.x % 4 * 2 + i % 2 + (i & 4 ? 8 : 0); }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) values[i] = 0.0f;
    }
    __device__ __forceinline__ void add(const Factor& left, const Factor& right) { multiply_add(values, left.words, right.words); }
};

__device__ __forceinline__ unsigned word_of(float first, float second) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    unsigned word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

// Sums as the left factor of the next product: a lane has of it what it has of them.
__device__ __forceinline__ Factor rounded(const Square& square) {
    Factor factor;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) factor.words[i] = word_of(square.values[2 * i], square.values[2 * i + 1]);
    return factor;
}

// The row that a lane names of a square in shared memory: the four matrices of 8 x 8 in the order downwards first, or to the right first.
__device__ __forceinline__ const bf16* downwards(const bf16* square, unsigned stride) {
    unsigned lane = threadIdx.x % WARP;
    return square + lane % 16 * stride + lane / 16 * 8;
}
__device__ __forceinline__ const bf16* to_the_right(const bf16* square, unsigned stride) {
    unsigned lane = threadIdx.x % WARP;
    return square + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
}

// Factors that begin at `square`; a transposed one has its columns in the rows there.
__device__ __forceinline__ Factor left(const bf16* square, unsigned stride) {
    Factor factor;
    load_matrices(factor.words, downwards(square, stride));
    return factor;
}
__device__ __forceinline__ Factor left_transposed(const bf16* square, unsigned stride) {
    Factor factor;
    load_transposed_matrices(factor.words, to_the_right(square, stride));
    return factor;
}
__device__ __forceinline__ Factor right(const bf16* square, unsigned stride) {
    Factor factor;
    load_transposed_matrices(factor.words, downwards(square, stride));
    return factor;
}
__device__ __forceinline__ Factor right_transposed(const bf16* square, unsigned stride) {
    Factor factor;
    load_matrices(factor.words, to_the_right(square, stride));
    return factor;
}

// Writes up to 16 rows of a square, times a factor for each of the lane's two rows: four neighbors at once, two of them from the lane beside.
__device__ __forceinline__ void store(bf16* to, const Square& square, unsigned rows, unsigned stride, const float (&factors)[2]) {
    bool odd = threadIdx.x % 2 != 0;
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        const float* values = square.values + 2 * half;
        unsigned first = word_of(values[0] * factors[half], values[1] * factors[half]);
        unsigned second = word_of(values[4] * factors[half], values[5] * factors[half]);
        unsigned other = __shfl_xor_sync(ALL_LANES, odd ? first : second, 1);
        unsigned row = Square::row(2 * half), column = odd ? Square::column(4) - 2 : Square::column(0);
        uint2 four = odd ? make_uint2(other, second) : make_uint2(first, other);
        if (row < rows) *reinterpret_cast<uint2*>(to + static_cast<unsigned long long>(row) * stride + column) = four;
    }
}

// Begins to copy up to Rows rows, which lie `stride` numbers apart, into a tile; zeros behind them, up to a whole part.
template <unsigned Width, unsigned Rows, unsigned Threads>
__device__ __forceinline__ void copy_rows(bf16* tile, const bf16* data, unsigned rows, unsigned stride) {
    constexpr unsigned MANY = 8, PIECES = Width / MANY, STEP = Threads / PIECES;
    static_assert(Rows % STEP == 0, "every thread copies as much");
    unsigned filled = (rows + PART - 1) / PART * PART, column = threadIdx.x % PIECES * MANY;
#pragma unroll
    for (unsigned n = 0; n < Rows / STEP; n++) {
        unsigned row = n * STEP + threadIdx.x / PIECES;
        bool there = row < rows;
        const bf16* from = data + (there ? static_cast<unsigned long long>(row) * stride + column : 0);
        if (row < filled) copy_async(tile + row * (Width + PADDING) + column, from, there);
    }
}

// What is done to the scores of a tile besides their product.
template <unsigned Keys> struct Adjustment {
    const Batch& batch;
    const Sequence& sequence;
    const float* biases; // If there are such: over the scale, of query i and key j at i - j + Keys - 1.
    unsigned query, key; // With which the tile begins.
    unsigned keys;       // That it has.

    // Of queries from `row` and keys from `column` of the tile on; transposed, keys by queries.
    template <bool IsTransposed> __device__ __forceinline__ void adjust(Square& square, unsigned row, unsigned column) const {
        unsigned of[8]; // i - j
#pragma unroll
        for (unsigned n = 0; n < 8; n++) {
            of[n] = row - column + (IsTransposed ? Square::column(n) - Square::row(n) : Square::row(n) - Square::column(n));
        }
        if (batch.bias) {
#pragma unroll
            for (unsigned n = 0; n < 8; n++) square.values[n] += biases[of[n] + Keys - 1];
        }
        if (batch.window + 1 < sequence.keys) {
            unsigned offset = batch.prefix + query + batch.window - key; // A query sees keys up to that of its token and the window.
#pragma unroll
            for (unsigned n = 0; n < 8; n++) {
                if (offset + of[n] > 2 * batch.window) square.values[n] = -INFINITY;
            }
        }
        if (column + SQUARE > keys) {
#pragma unroll
            for (unsigned n = 0; n < 8; n++) {
                if (column + (IsTransposed ? Square::row(n) : Square::column(n)) >= keys) square.values[n] = -INFINITY;
            }
        }
    }
};

// What a block works on. Neighbors have a tile's neighboring heads, so that they read its rows together.
template <unsigned Width> struct Work {
    const Batch& batch;

    __device__ __forceinline__ unsigned heads() const { return batch.hidden / Width; }
    __device__ __forceinline__ unsigned head() const { return blockIdx.x % heads(); }
    __device__ __forceinline__ unsigned tile() const { return blockIdx.x / heads(); }
};

// The place among all distances of one of those in a tile that begins with that query and that key.
template <unsigned Keys> __device__ __forceinline__ unsigned place(const Batch& batch, unsigned query, unsigned key, unsigned i) {
    return batch.prefix + query + i + batch.longest - (key + Keys);
}

// The biases of a tile of queries and one of keys, over the scale.
template <unsigned Keys, unsigned Threads, unsigned Width>
__device__ __forceinline__ void load_biases(float* biases, const Work<Width>& work, unsigned query, unsigned key) {
    const Batch& batch = work.batch;
    if (!batch.bias) return;
#pragma unroll 1
    for (unsigned n = threadIdx.x; n < TILE + Keys; n += Threads) {
        unsigned i = place<Keys>(batch, query, key, n);
        unsigned row = batch.rows[i < 2 * batch.longest - 1 ? i : 0]; // What lies beyond is of no query or no key.
        biases[n] = batch.bias[row * work.heads() + work.head()] / batch.scale;
    }
}

// A row's sum, or the highest, of what its four lanes hold.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ __forceinline__ float row_highest(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// What a warp has of its 16 queries in the forward pass. A lane has two of them.
template <unsigned Width> struct Attended {
    Square sums[Width / SQUARE]; // The output before its division.
    float highest[2];            // Of the products.
    float totals[2];             // Of the exponentials that the lane has seen.

    __device__ __forceinline__ Attended() {
#pragma unroll
        for (Square& sum : sums) sum.clear();
        highest[0] = highest[1] = -INFINITY;
        totals[0] = totals[1] = 0.0f;
    }

    // Attends to a tile of keys. Whole: there are 64 of them.
    template <bool Whole>
    __device__ __forceinline__ void attend(
        const bf16* queries, const bf16* keys, const bf16* values, unsigned warp_row, unsigned position, unsigned row_stride,
        const Adjustment<TILE>& adjustment, const Batch& batch) {
        constexpr unsigned STRIDE = Width + PADDING, SQUARES = TILE / SQUARE;
        Square scores[SQUARES];
#pragma unroll
        for (Square& square : scores) square.clear();
#pragma unroll
        for (unsigned k = 0; k < Width; k += SQUARE) {
            Factor query = left(queries + k, STRIDE);
#pragma unroll
            for (unsigned j = 0; j < SQUARES; j++) {
                if (Whole || j * SQUARE < adjustment.keys) scores[j].add(query, right_transposed(keys + j * SQUARE * STRIDE + k, STRIDE));
            }
        }
        float found[2] = {highest[0], highest[1]};
#pragma unroll
        for (unsigned j = 0; j < SQUARES; j++) {
            if (Whole || j * SQUARE < adjustment.keys) {
                adjustment.adjust<false>(scores[j], warp_row, j * SQUARE);
#pragma unroll
                for (unsigned i = 0; i < 8; i++) found[i / 2 % 2] = fmaxf(found[i / 2 % 2], scores[j].values[i]);
            }
        }
        const float scale = batch.scale * LOG2E;
        float kept[2], shift[2];
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            found[half] = row_highest(found[half]);
            kept[half] = exp2_approximate((highest[half] - found[half]) * scale);
            totals[half] *= kept[half];
            highest[half] = found[half];
            shift[half] = found[half] * scale;
        }
#pragma unroll
        for (Square& sum : sums) {
#pragma unroll
            for (unsigned i = 0; i < 8; i++) sum.values[i] *= kept[i / 2 % 2];
        }
#pragma unroll
        for (unsigned j = 0; j < SQUARES; j++) {
            if (Whole || j * SQUARE < adjustment.keys) {
#pragma unroll
                for (unsigned i = 0; i < 8; i++) {
                    float& p = scores[j].values[i];
                    p = exp2_approximate(p * scale - shift[i / 2 % 2]);
                    totals[i / 2 % 2] += p;
                }
                if (batch.mask.dropped_below > 0) {
#pragma unroll
                    for (unsigned i = 0; i < 8; i++) {
                        unsigned of = position + Square::row(i) * row_stride + j * SQUARE + Square::column(i);
                        scores[j].values[i] *= batch.mask.factor(of);
                    }
                }
                Factor probabilities = rounded(scores[j]);
#pragma unroll
                for (unsigned n = 0; n < Width / SQUARE; n++) {
                    sums[n].add(probabilities, right(values + j * SQUARE * STRIDE + n * SQUARE, STRIDE));
                }
            }
        }
    }
};

// out = softmax(scale * q kᵀ + bias) v, and for each query of each head the logarithm of the sum of its e^score.
template <unsigned Width>
__device__ __forceinline__ void forward(bf16* out, float* logarithms, const bf16* q, const bf16* k, const bf16* v, const Batch& batch) {
    constexpr unsigned THREADS = TILE / SQUARE * WARP, STRIDE = Width + PADDING, NUMBERS = TILE * STRIDE;
    DYNAMIC_SHARED(bf16, memory);
    bf16* q_tile = memory;
    bf16* pairs = q_tile + NUMBERS; // Twice a tile of keys and one of values: those in use and those on their way.
    float* biases = reinterpret_cast<float*>(pairs + 4 * NUMBERS); // (2, 2 * TILE), likewise

    Work<Width> work{batch};
    Sequence sequence(batch, work.tile());
    unsigned first = batch.tiles[2 * work.tile() + 1], head = work.head(), column = head * Width;
    unsigned warp_row = threadIdx.x / WARP * SQUARE, rows = min(TILE, sequence.queries - first);
    bool works = warp_row < rows;
    unsigned long long offset = static_cast<unsigned long long>(sequence.first_query + first) * batch.hidden + column;
    unsigned begin = sequence.first_seen(first), end = sequence.end_seen(first + rows - 1);
    auto fetch = [&](unsigned key, unsigned turn) {
        unsigned long long from = static_cast<unsigned long long>(sequence.first_key + key) * batch.key_stride + column;
        bf16* pair = pairs + turn * 2 * NUMBERS;
        copy_rows<Width, TILE, THREADS>(pair, k + from, min(TILE, end - key), batch.key_stride);
        copy_rows<Width, TILE, THREADS>(pair + NUMBERS, v + from, min(TILE, end - key), batch.key_stride);
        load_biases<TILE, THREADS>(biases + turn * 2 * TILE, work, first, key);
    };
    copy_rows<Width, TILE, THREADS>(q_tile, q + offset, rows, batch.hidden);
    fetch(begin, 0);
    commit_copies();
    Attended<Width> attended;
    unsigned turn = 0;
    for (unsigned key = begin; key < end; key += TILE, turn ^= 1) {
        if (key + TILE < end) fetch(key + TILE, turn ^ 1);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        if (works) {
            unsigned keys = min(TILE, end - key);
            const bf16* pair = pairs + turn * 2 * NUMBERS;
            const bf16* queries = q_tile + warp_row * STRIDE;
            unsigned position = sequence.probability(head, first + warp_row, key);
            Adjustment<TILE> adjustment{batch, sequence, biases + turn * 2 * TILE, first, key, keys};
            if (keys == TILE) {
                attended.template attend<true>(queries, pair, pair + NUMBERS, warp_row, position, sequence.keys, adjustment, batch);
            } else {
                attended.template attend<false>(queries, pair, pair + NUMBERS, warp_row, position, sequence.keys, adjustment, batch);
            }
        }
        __syncthreads(); // The tiles are free.
    }
    if (!works) return;
    float factors[2];
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        float total = row_sum(attended.totals[half]);
        factors[half] = 1.0f / total;
        unsigned row = warp_row + Square::row(2 * half);
        if (row < rows && threadIdx.x % 4 == 0) {
            unsigned long long at = static_cast<unsigned long long>(head) * batch.queries + sequence.first_query + first + row;
            logarithms[at] = attended.highest[half] * batch.scale + logf(total);
        }
    }
#pragma unroll
    for (unsigned n = 0; n < Width / SQUARE; n++) {
        bf16* to = out + offset + static_cast<unsigned long long>(warp_row) * batch.hidden + n * SQUARE;
        store(to, attended.sums[n], rows - warp_row, batch.hidden, factors);
    }
}

// What the backward pass knows of each query of a tile.
struct Statistics {
    float logarithms[TILE]; // To the base of 2; of no query infinity, so that all its probabilities are zero.
    float deltas[TILE];     // Sums of gradient * output.

    // Of rows that begin there.
    template <unsigned Width, unsigned Threads>
    __device__ __forceinline__ void load(
        const bf16* gradient, const bf16* out, const float* of_rows, unsigned rows, unsigned stride) {
        constexpr unsigned SHARE = Threads / TILE; // Threads of a row.
        struct alignas(16) Many {
            bf16 values[8];
        };
        unsigned row = threadIdx.x / SHARE, part = threadIdx.x % SHARE;
        float sum = 0.0f;
        if (row < rows) {
#pragma unroll
            for (unsigned column = 0; column < Width; column += 8 * SHARE) {
                unsigned long long at = static_cast<unsigned long long>(row) * stride + column + 8 * part;
                Many a = *reinterpret_cast<const Many*>(gradient + at), b = *reinterpret_cast<const Many*>(out + at);
#pragma unroll
                for (unsigned i = 0; i < 8; i++) sum += to_float(a.values[i]) * to_float(b.values[i]);
            }
        }
#pragma unroll
        for (unsigned lanes = SHARE / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        if (part == 0) {
            logarithms[row] = row < rows ? of_rows[row] * LOG2E : INFINITY;
            deltas[row] = sum;
        }
    }
};

// A warp's products of 16 rows with a part of a tile: a * bᵀ.
template <unsigned Width> __device__ __forceinline__ void multiply(Square (&products)[PART / SQUARE], const bf16* a, const bf16* b) {
    constexpr unsigned STRIDE = Width + PADDING;
#pragma unroll
    for (Square& square : products) square.clear();
#pragma unroll
    for (unsigned k = 0; k < Width; k += SQUARE) {
        Factor rows = left(a + k, STRIDE);
#pragma unroll
        for (unsigned j = 0; j < PART / SQUARE; j++) products[j].add(rows, right_transposed(b + j * SQUARE * STRIDE + k, STRIDE));
    }
}

// Makes scores the masked probabilities, and the gradient of those that of the scores. The square begins at a query and a key of its tile;
// `position` is that of the probability at the tile's first.
template <bool IsTransposed>
__device__ __forceinline__ void differentiate(
    Square& scores, Square& gradient, const Statistics& statistics, unsigned query, unsigned key, unsigned position, unsigned row_stride,
    const Batch& batch) {
    const float scale = batch.scale * LOG2E;
#pragma unroll
    for (unsigned n = 0; n < 8; n++) {
        unsigned i = query + (IsTransposed ? Square::column(n) : Square::row(n));
        scores.values[n] = exp2_approximate(scores.values[n] * scale - statistics.logarithms[i]);
    }
    if (batch.mask.dropped_below > 0) {
#pragma unroll
        for (unsigned n = 0; n < 8; n++) {
            unsigned i = query + (IsTransposed ? Square::column(n) : Square::row(n));
            unsigned j = key + (IsTransposed ? Square::row(n) : Square::column(n));
            float factor = batch.mask.factor(position + i * row_stride + j), p = scores.values[n];
            gradient.values[n] = p * (gradient.values[n] * factor - statistics.deltas[i]);
            scores.values[n] = p * factor;
        }
    } else {
#pragma unroll
        for (unsigned n = 0; n < 8; n++) {
            unsigned i = query + (IsTransposed ? Square::column(n) : Square::row(n));
            gradient.values[n] = scores.values[n] * (gradient.values[n] - statistics.deltas[i]);
        }
    }
}

// The gradients of up to 16 * Warps keys and their values; if IsWhole, which takes that a sequence has no more keys, of the queries as well;
// and of the scores for each distance if the bias's is asked for, `of_distances` (tiles of keys, distances, heads), which begins as zeros.
template <unsigned Width, unsigned Warps, bool IsWhole>
__device__ __forceinline__ void backward(
    bf16* dq, bf16* dk, bf16* dv, float* of_distances, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* gradient,
    const float* logarithms, const Batch& batch) {
    constexpr unsigned THREADS = Warps * WARP, KEYS = Warps * SQUARE, STRIDE = Width + PADDING, SCORES_STRIDE = TILE + PADDING;
    DYNAMIC_SHARED(bf16, memory);
    bf16* k_tile = memory;
    bf16* v_tile = k_tile + KEYS * STRIDE;
    bf16* q_tile = v_tile + KEYS * STRIDE;
    bf16* gradient_tile = q_tile + TILE * STRIDE;
    bf16* of_scores = gradient_tile + TILE * STRIDE; // (KEYS, TILE)
    Statistics& statistics = *reinterpret_cast<Statistics*>(of_scores + KEYS * SCORES_STRIDE);
    float* biases = reinterpret_cast<float*>(&statistics + 1);

    Work<Width> work{batch};
    Sequence sequence(batch, work.tile());
    unsigned first = IsWhole ? 0 : batch.tiles[2 * work.tile() + 1], head = work.head(), column = head * Width;
    unsigned warp = threadIdx.x / WARP, warp_row = warp * SQUARE;
    unsigned keys = min(KEYS, sequence.keys - first); // If IsWhole all of them, by what the host chose the kernel for.
    bool works = warp_row < keys;
    unsigned begin = IsWhole ? 0 : sequence.first_seeing(first);
    unsigned end = IsWhole ? sequence.queries : sequence.end_seeing(first + keys - 1);

    auto fetch = [&](unsigned query) {
        unsigned rows = min(TILE, end - query);
        unsigned long long row = sequence.first_query + query, from = row * batch.hidden + column;
        copy_rows<Width, TILE, THREADS>(q_tile, q + from, rows, batch.hidden);
        copy_rows<Width, TILE, THREADS>(gradient_tile, gradient + from, rows, batch.hidden);
        commit_copies();
        load_biases<KEYS, THREADS>(biases, work, query, first);
        const float* of_rows = logarithms + static_cast<unsigned long long>(head) * batch.queries + row;
        statistics.load<Width, THREADS>(gradient + from, out + from, of_rows, rows, batch.hidden);
    };
    unsigned long long offset = static_cast<unsigned long long>(sequence.first_key + first) * batch.key_stride + column;
    copy_rows<Width, KEYS, THREADS>(k_tile, k + offset, keys, batch.key_stride);
    copy_rows<Width, KEYS, THREADS>(v_tile, v + offset, keys, batch.key_stride);
    commit_copies();
    if (begin < end) fetch(begin);

    Square of_keys[Width / SQUARE], of_values[Width / SQUARE];
#pragma unroll
    for (unsigned n = 0; n < Width / SQUARE; n++) of_keys[n].clear(), of_values[n].clear();
    for (unsigned query = begin; query < end; query += TILE) {
        unsigned rows = min(TILE, end - query);
        unsigned position = sequence.probability(head, query, first);
        Adjustment<KEYS> adjustment{batch, sequence, biases, query, first, keys};
        wait_for_copies<0>();
        __syncthreads();
#pragma unroll 1
        for (unsigned part = 0; works && part < rows; part += PART) {
            Square scores[PART / SQUARE], products[PART / SQUARE];
            const bf16 *q_rows = q_tile + part * STRIDE, *gradient_rows = gradient_tile + part * STRIDE;
            multiply<Width>(scores, k_tile + warp_row * STRIDE, q_rows);
            multiply<Width>(products, v_tile + warp_row * STRIDE, gradient_rows);
#pragma unroll
            for (unsigned j = 0; j < PART / SQUARE; j++) {
                unsigned at = part + j * SQUARE;
                adjustment.template adjust<true>(scores[j], at, warp_row);
                differentiate<true>(scores[j], products[j], statistics, at, warp_row, position, sequence.keys, batch);
                Factor probabilities = rounded(scores[j]), rounded_scores = rounded(products[j]);
#pragma unroll
                for (unsigned n = 0; n < Width / SQUARE; n++) {
                    unsigned from = j * SQUARE * STRIDE + n * SQUARE;
                    of_values[n].add(probabilities, right(gradient_rows + from, STRIDE));
                    of_keys[n].add(rounded_scores, right(q_rows + from, STRIDE));
                }
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    unsigned* to = reinterpret_cast<unsigned*>(
                        of_scores + (warp_row + Square::row(2 * i)) * SCORES_STRIDE + at + Square::column(2 * i));
                    *to = rounded_scores.words[i];
                }
            }
        }
        __syncthreads(); // The gradient of the scores is there, and the tiles of queries are free.
        if (query + TILE < end) fetch(query + TILE);
        if (IsWhole) {
            __syncwarp(); // Its lanes have gone separate ways to fetch.
            // A warp has 16 queries, and all or half of the columns.
            constexpr unsigned SHARE = Warps / (TILE / SQUARE), SQUARES = Width / SQUARE / SHARE;
            unsigned at = warp % (TILE / SQUARE) * SQUARE, columns = warp / (TILE / SQUARE) * SQUARES * SQUARE;
            if (at < rows) {
                Square of_queries[SQUARES];
#pragma unroll
                for (Square& square : of_queries) square.clear();
                for (unsigned key = 0; key < keys; key += SQUARE) {
                    Factor scores = left_transposed(of_scores + key * SCORES_STRIDE + at, SCORES_STRIDE);
#pragma unroll
                    for (unsigned n = 0; n < SQUARES; n++) {
                        of_queries[n].add(scores, right(k_tile + key * STRIDE + columns + n * SQUARE, STRIDE));
                    }
                }
                unsigned long long row = sequence.first_query + query + at;
#pragma unroll
                for (unsigned n = 0; n < SQUARES; n++) {
                    bf16* to = dq + row * batch.hidden + column + columns + n * SQUARE;
                    store(to, of_queries[n], rows - at, batch.hidden, {batch.scale, batch.scale});
                }
            }
        }
        if (of_distances && threadIdx.x < TILE + KEYS) {
            unsigned distance = place<KEYS>(batch, query, first, threadIdx.x);
            float sum = 0.0f;
#pragma unroll 1 // Registers are scarce here, and few train a bias.
            for (unsigned i = 0; i < rows; i++) {
                unsigned j = i + KEYS - 1 - threadIdx.x;
                if (j < keys) sum += to_float(of_scores[j * SCORES_STRIDE + i]);
            }
            unsigned long long at = static_cast<unsigned long long>(work.tile()) * (2 * batch.longest - 1) + distance;
            if (distance < 2 * batch.longest - 1) of_distances[at * work.heads() + head] += sum;
        }
    }
    wait_for_copies<0>(); // Where no query sees these keys.
    if (!works) return;
    offset = static_cast<unsigned long long>(sequence.first_key + first + warp_row) * batch.key_stride + column;
#pragma unroll
    for (unsigned n = 0; n < Width / SQUARE; n++) {
        store(dk + offset + n * SQUARE, of_keys[n], keys - warp_row, batch.key_stride, {batch.scale, batch.scale});
        store(dv + offset + n * SQUARE, of_values[n], keys - warp_row, batch.key_stride, {1.0f, 1.0f});
    }
}

// The gradient of the queries alone.
template <unsigned Width>
__device__ __forceinline__ void queries(
    bf16* dq, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* gradient, const float* logarithms,
    const Batch& batch) {
    constexpr unsigned THREADS = TILE / SQUARE * WARP, STRIDE = Width + PADDING, NUMBERS = TILE * STRIDE;
    DYNAMIC_SHARED(bf16, memory);
    bf16 *q_tile = memory, *gradient_tile = q_tile + NUMBERS, *k_tile = gradient_tile + NUMBERS, *v_tile = k_tile + NUMBERS;
    Statistics& statistics = *reinterpret_cast<Statistics*>(v_tile + NUMBERS);
    float* biases = reinterpret_cast<float*>(&statistics + 1);

    Work<Width> work{batch};
    Sequence sequence(batch, work.tile());
    unsigned first = batch.tiles[2 * work.tile() + 1], head = work.head(), column = head * Width;
    unsigned warp_row = threadIdx.x / WARP * SQUARE, rows = min(TILE, sequence.queries - first);
    bool works = warp_row < rows;
    unsigned long long row = sequence.first_query + first, offset = row * batch.hidden + column;
    unsigned begin = sequence.first_seen(first), end = sequence.end_seen(first + rows - 1);
    copy_rows<Width, TILE, THREADS>(q_tile, q + offset, rows, batch.hidden);
    copy_rows<Width, TILE, THREADS>(gradient_tile, gradient + offset, rows, batch.hidden);
    const float* of_rows = logarithms + static_cast<unsigned long long>(head) * batch.queries + row;
    statistics.load<Width, THREADS>(gradient + offset, out + offset, of_rows, rows, batch.hidden);

    Square of_queries[Width / SQUARE];
#pragma unroll
    for (Square& square : of_queries) square.clear();
    for (unsigned key = begin; key < end; key += TILE) {
        unsigned keys = min(TILE, end - key);
        unsigned long long from = static_cast<unsigned long long>(sequence.first_key + key) * batch.key_stride + column;
        unsigned position = sequence.probability(head, first, key);
        Adjustment<TILE> adjustment{batch, sequence, biases, first, key, keys};
        __syncthreads(); // Nobody reads the tiles any more.
        copy_rows<Width, TILE, THREADS>(k_tile, k + from, keys, batch.key_stride);
        copy_rows<Width, TILE, THREADS>(v_tile, v + from, keys, batch.key_stride);
        commit_copies();
        load_biases<TILE, THREADS>(biases, work, first, key);
        wait_for_copies<0>();
        __syncthreads();
#pragma unroll 1
        for (unsigned part = 0; works && part < keys; part += PART) {
            Square scores[PART / SQUARE], products[PART / SQUARE];
            multiply<Width>(scores, q_tile + warp_row * STRIDE, k_tile + part * STRIDE);
            multiply<Width>(products, gradient_tile + warp_row * STRIDE, v_tile + part * STRIDE);
#pragma unroll
            for (unsigned j = 0; j < PART / SQUARE; j++) {
                unsigned at = part + j * SQUARE;
                adjustment.template adjust<false>(scores[j], warp_row, at);
                differentiate<false>(scores[j], products[j], statistics, warp_row, at, position, sequence.keys, batch);
                Factor of_scores = rounded(products[j]);
#pragma unroll
                for (unsigned n = 0; n < Width / SQUARE; n++) {
                    of_queries[n].add(of_scores, right(k_tile + at * STRIDE + n * SQUARE, STRIDE));
                }
            }
        }
    }
    if (!works) return;
#pragma unroll
    for (unsigned n = 0; n < Width / SQUARE; n++) {
        bf16* to = dq + offset + static_cast<unsigned long long>(warp_row) * batch.hidden + n * SQUARE;
        store(to, of_queries[n], rows - warp_row, batch.hidden, {batch.scale, batch.scale});
    }
}

} // namespace flash

// Threads, and how many blocks of them a multiprocessor is to have at once: what registers there are for each follows from it.
#define FLASH_FORWARD(width, blocks) \
    extern "C" __global__ void __launch_bounds__(128, blocks) flash_forward_##width##_bf16( \
        bf16* out, float* logarithms, const bf16* q, const bf16* k, const bf16* v, BATCH_PARAMETERS) { \
        flash::forward<width>(out, logarithms, q, k, v, BATCH); \
    } \
    extern "C" __global__ void __launch_bounds__(128, blocks) flash_queries_##width##_bf16( \
        bf16* dq, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* gradient, const float* logarithms, \
        BATCH_PARAMETERS) { \
        flash::queries<width>(dq, q, k, v, out, gradient, logarithms, BATCH); \
    }
#define FLASH_BACKWARD(width, keys, blocks) \
    extern "C" __global__ void __launch_bounds__(keys * 2, blocks) flash_backward_##width##_##keys##_bf16( \
        bf16* dq, bf16* dk, bf16* dv, float* of_distances, const bf16* q, const bf16* k, const bf16* v, const bf16* out, \
        const bf16* gradient, const float* logarithms, BATCH_PARAMETERS) { \
        flash::backward<width, keys / 16, true>(dq, dk, dv, of_distances, q, k, v, out, gradient, logarithms, BATCH); \
    } \
    extern "C" __global__ void __launch_bounds__(keys * 2, blocks) flash_keys_##width##_##keys##_bf16( \
        bf16* dk, bf16* dv, float* of_distances, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* gradient, \
        const float* logarithms, BATCH_PARAMETERS) { \
        flash::backward<width, keys / 16, false>(nullptr, dk, dv, of_distances, q, k, v, out, gradient, logarithms, BATCH); \
    }

FLASH_FORWARD(32, 4)
FLASH_FORWARD(64, 4)
FLASH_FORWARD(128, 2)
FLASH_BACKWARD(32, 64, 4)
FLASH_BACKWARD(32, 128, 2)
FLASH_BACKWARD(64, 64, 3)
FLASH_BACKWARD(64, 128, 2)
FLASH_BACKWARD(128, 64, 2)
