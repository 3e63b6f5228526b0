// Attention over packed sequences without a matrix of scores in memory (Dao 2023, "FlashAttention-2"): a block takes a tile of queries
// of one head and goes over the tiles of its sequence's keys, the softmax being brought up to date with each. The backward pass
// computes the probabilities again from the logarithm of each query's sum, once to gather the gradients of queries, once those of
// keys and values, so that no two blocks add to one number. Tiles that a window leaves no score of are not read.
//
// A warp has 16 rows of a tile. bf16 is multiplied by tensor cores, f32 by plain sums; scores and sums are f32. They go from one product to
// the next by way of shared memory, which takes any head and any term of a score; flash_attention.cu has what is faster and takes less.
#include "batch.cuh"

// Sums of products, 16 x 16, held by a warp. `a` is 16 x inner, `b` inner x 16; either may lie there transposed.
template <typename T> struct Sum;

template <> struct Sum<bf16> {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> values;

    __device__ void clear() { nvcuda::wmma::fill_fragment(values, 0.0f); }

    template <bool TransposedA, bool TransposedB>
    __device__ void add(const bf16* a, unsigned a_stride, const bf16* b, unsigned b_stride, unsigned inner) {
        using namespace nvcuda::wmma;
        typedef typename Choose<TransposedA, col_major, row_major>::type LayoutA;
        typedef typename Choose<TransposedB, col_major, row_major>::type LayoutB;
        for (unsigned k = 0; k < inner; k += 16) {
            fragment<matrix_a, 16, 16, 16, bf16, LayoutA> left;
            fragment<matrix_b, 16, 16, 16, bf16, LayoutB> right;
            load_matrix_sync(left, a + (TransposedA ? k * a_stride : k), a_stride);
            load_matrix_sync(right, b + (TransposedB ? k : k * b_stride), b_stride);
            mma_sync(values, left, right, values);
        }
    }

    __device__ void load(const float* from, unsigned stride) {
        nvcuda::wmma::load_matrix_sync(values, from, stride, nvcuda::wmma::mem_row_major);
    }
    __device__ void store(float* to, unsigned stride) {
        nvcuda::wmma::store_matrix_sync(to, values, stride, nvcuda::wmma::mem_row_major);
    }
};

// Two lanes share a row, eight columns each.
template <> struct Sum<float> {
    float values[8];

    __device__ unsigned row() { return threadIdx.x % WARP / 2; }
    __device__ unsigned column() { return threadIdx.x % 2 * 8; }

    __device__ void clear() {
        for (unsigned i = 0; i < 8; i++) values[i] = 0.0f;
    }

    template <bool TransposedA, bool TransposedB>
    __device__ void add(const float* a, unsigned a_stride, const float* b, unsigned b_stride, unsigned inner) {
        for (unsigned k = 0; k < inner; k++) {
            float left = TransposedA ? a[k * a_stride + row()] : a[row() * a_stride + k];
#pragma unroll
            for (unsigned i = 0; i < 8; i++) {
                unsigned j = column() + i;
                values[i] += left * (TransposedB ? b[j * b_stride + k] : b[k * b_stride + j]);
            }
        }
    }

    __device__ void load(const float* from, unsigned stride) {
        for (unsigned i = 0; i < 8; i++) values[i] = from[row() * stride + column() + i];
    }
    __device__ void store(float* to, unsigned stride) {
        for (unsigned i = 0; i < 8; i++) to[row() * stride + column() + i] = values[i];
    }
};

// The distances between rows in shared memory: a multiple of 16 bytes, but not of all banks.
template <typename T> __host__ __device__ constexpr unsigned padded(unsigned columns) { return columns + 16 / sizeof(T); }

// Up to Tile rows of one head, which lie `stride` numbers apart, zeros for the rest, by all threads of the block.
template <typename T, unsigned Width, unsigned Tile>
__device__ void load_tile(T* tile, const T* data, unsigned rows, unsigned stride, unsigned width) {
    constexpr unsigned MANY = 16 / sizeof(T);
    struct alignas(16) Many {
        T values[MANY];
    };
    bool aligned = width % MANY == 0 && stride % MANY == 0 && reinterpret_cast<unsigned long long>(data) % 16 == 0;
    for (unsigned i = threadIdx.x; i < Tile * (Width / MANY); i += blockDim.x) {
        unsigned row = i / (Width / MANY), column = i % (Width / MANY) * MANY;
        Many many;
        if (row < rows && column < width && aligned) {
            many = *reinterpret_cast<const Many*>(data + static_cast<unsigned long long>(row) * stride + column);
        } else {
            for (unsigned j = 0; j < MANY; j++) {
                bool there = row < rows && column + j < width;
                many.values[j] = there ? data[static_cast<unsigned long long>(row) * stride + column + j] : from_float<T>(0.0f);
            }
        }
        *reinterpret_cast<Many*>(tile + row * padded<T>(Width) + column) = many;
    }
}

// The rows of a table that the distances of a tile's sequence reach. Disentangled attention has products of each query, or each key, with
// the positions of these rows: `query_products` (queries, reached) of this head begin at `first_query_product`, likewise those of keys.
struct Reach {
    unsigned first = 0, reached = 0, first_query_product = 0, first_key_product = 0;

    __device__ explicit Reach(const Batch& batch, unsigned tile = blockIdx.x) {
        if (!batch.reach) return;
        const unsigned* row = batch.reach + 4 * batch.tiles[2 * tile];
        first = row[0], reached = row[1];
        first_query_product = blockIdx.y * batch.query_product_count + row[2];
        first_key_product = blockIdx.y * batch.key_product_count + row[3];
    }
};

// What distances add to a tile of scores.
template <unsigned Tile> struct Distances {
    // Of row i and column j at i - j + Tile - 1; one more than there are, so that each thread of a block has one.
    union {
        float* biases;
        unsigned* rows; // From the first one reached on.
    };
    Reach reach;

    __device__ Distances(const Batch& batch, float* memory) : biases(memory), reach(batch) {}

    // The place among all distances of one of those in a tile that begins with that query and that key.
    __device__ static unsigned place(const Batch& batch, unsigned query, unsigned key, unsigned i) {
        return batch.prefix + query + i + batch.longest - (key + Tile);
    }

    // Reads those of a tile, by all threads of the block.
    __device__ void load(const Batch& batch, unsigned query, unsigned key) {
        if (!batch.rows) return;
        unsigned i = place(batch, query, key, threadIdx.x);
        unsigned row = batch.rows[i < 2 * batch.longest - 1 ? i : 0]; // What lies beyond is of no query or no key.
        if (batch.bias) {
            biases[threadIdx.x] = batch.bias[row * batch.heads() + batch.head()];
        } else {
            rows[threadIdx.x] = row - reach.first;
        }
    }

    // The score of a query and a key in row i and column j.
    __device__ float score(const Batch& batch, float product, unsigned i, unsigned j, unsigned query, unsigned key) const {
        float score = batch.scale * product;
        if (batch.bias) score += biases[i + Tile - 1 - j];
        if (batch.reach) {
            unsigned row = rows[i + Tile - 1 - j];
            if (batch.query_products) score += batch.query_products[reach.first_query_product + query * reach.reached + row];
            if (batch.key_products) score += batch.key_products[reach.first_key_product + key * reach.reached + row];
        }
        return score;
    }

    // Adds the gradients of a query's scores, or a key's, which lie `stride` apart, to its sums for each row that is reached. The distance
    // is at `i` for the first of them, and then at the next or the one before.
    __device__ void add(float* sums, const float* of_scores, unsigned stride, unsigned count, unsigned i, int step) const {
        unsigned row = rows[i];
        float sum = 0.0f;
        for (unsigned n = 0; n < count; n++, i += step) {
            if (rows[i] != row) {
                sums[row] += sum;
                row = rows[i], sum = 0.0f;
            }
            sum += of_scores[n * stride];
        }
        sums[row] += sum;
    }
};

// Scores of a warp's 16 rows with all rows of the other tile: (16, Tile) of a * bᵀ.
template <typename T, unsigned Width, unsigned Tile> __device__ void multiply_rows(float* scores, const T* a, const T* b) {
    for (unsigned column = 0; column < Tile; column += 16) {
        Sum<T> sum;
        sum.clear();
        sum.template add<false, true>(a, padded<T>(Width), b + column * padded<T>(Width), padded<T>(Width), Width);
        sum.store(scores + column, padded<float>(Tile));
    }
}

// Adds a * b to a warp's 16 rows of sums: a has those rows of a square of Tile, or of its transpose, b all columns of a tile.
template <typename T, unsigned Width, unsigned Tile, bool Transposed>
__device__ __forceinline__ void add_product(Sum<T>* sums, const T* a, const T* b) {
#pragma unroll
    for (unsigned j = 0; j < Width / 16; j++) {
        sums[j].template add<Transposed, false>(a, padded<T>(Tile), b + 16 * j, padded<T>(Width), Tile);
    }
}

// The sum, or the highest, of what the two lanes of a row hold.
__device__ __forceinline__ float row_sum(float x) { return x + __shfl_xor_sync(ALL_LANES, x, 1); }
__device__ __forceinline__ float row_highest(float x) { return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1)); }

// out = softmax(scale * q kᵀ) v, and for each query of each head the logarithm of the sum of its e^score.
template <typename T, unsigned Width, unsigned Tile>
__device__ void attention_forward(T* out, float* logarithms, const T* q, const T* k, const T* v, const Batch& batch) {
    DYNAMIC_SHARED(T, memory);
    T* q_tile = memory;
    T* k_tile = q_tile + Tile * padded<T>(Width);
    T* v_tile = k_tile + Tile * padded<T>(Width);
    T* probabilities = v_tile + Tile * padded<T>(Width);
    float* scores = reinterpret_cast<float*>(probabilities + Tile * padded<T>(Tile));
    float* sums = scores + Tile * padded<float>(Tile); // (Tile, Width): the output before its division
    Distances<Tile> distances(batch, sums + Tile * padded<float>(Width));

    Sequence sequence(batch);
    unsigned first = batch.tiles[2 * blockIdx.x + 1], head = batch.head(), column = head * batch.width, width = batch.width;
    unsigned warp_row = threadIdx.x / WARP * 16, row = warp_row + threadIdx.x % WARP / 2, half = threadIdx.x % 2;
    unsigned rows = min(Tile, sequence.queries - first), query = first + min(row, rows - 1);
    bool works = warp_row < rows;
    unsigned long long offset = static_cast<unsigned long long>(sequence.first_query + first) * batch.hidden + column;
    load_tile<T, Width, Tile>(q_tile, q + offset, rows, batch.hidden, width);
    for (unsigned i = threadIdx.x; i < Tile * padded<float>(Width); i += blockDim.x) sums[i] = 0.0f;

    // Of the first tile every query sees a key.
    unsigned begin = sequence.first_seen(first), end = sequence.end_seen(first + rows - 1);
    float highest = -INFINITY, total = 0.0f;
    for (unsigned key = begin; key < end; key += Tile) {
        unsigned keys = min(Tile, end - key);
        unsigned long long from = static_cast<unsigned long long>(sequence.first_key + key) * batch.key_stride + column;
        __syncthreads();
        load_tile<T, Width, Tile>(k_tile, k + from, keys, batch.key_stride, width);
        load_tile<T, Width, Tile>(v_tile, v + from, keys, batch.key_stride, width);
        distances.load(batch, first, key);
        __syncthreads();
        if (!works) continue;
        multiply_rows<T, Width, Tile>(scores + warp_row * padded<float>(Tile), q_tile + warp_row * padded<T>(Width), k_tile);
        __syncwarp();
        Seen seen(sequence, query, key, keys);
        float* own = scores + row * padded<float>(Tile);
        float found = highest;
        for (unsigned j = half; j < Tile; j += 2) {
            own[j] = seen.has(j) ? distances.score(batch, own[j], row, j, query, key + j) : -INFINITY;
            found = fmaxf(found, own[j]);
        }
        found = row_highest(found);
        float kept = expf(highest - found), sum = 0.0f;
        unsigned position = sequence.probability(head, query, key);
        for (unsigned j = half; j < Tile; j += 2) {
            float p = expf(own[j] - found);
            sum += p;
            p *= batch.mask.factor(position + j);
            probabilities[row * padded<T>(Tile) + j] = from_float<T>(p);
        }
        total = total * kept + row_sum(sum);
        highest = found;
        if (key > begin) {
            for (unsigned j = half; j < Width; j += 2) sums[row * padded<float>(Width) + j] *= kept;
        }
        __syncwarp();
        for (unsigned j = 0; j < Width; j += 16) {
            float* block = sums + warp_row * padded<float>(Width) + j;
            Sum<T> sum_of_values;
            sum_of_values.load(block, padded<float>(Width));
            sum_of_values.template add<false, false>(
                probabilities + warp_row * padded<T>(Tile), padded<T>(Tile), v_tile + j, padded<T>(Width), Tile);
            sum_of_values.store(block, padded<float>(Width));
        }
        __syncwarp();
    }
    if (row >= rows) return;
    float inverse = 1.0f / total;
    for (unsigned j = half; j < width; j += 2) {
        float sum = sums[row * padded<float>(Width) + j];
        out[offset + static_cast<unsigned long long>(row) * batch.hidden + j] = from_float<T>(sum * inverse);
    }
    if (half == 0) {
        logarithms[static_cast<unsigned long long>(head) * batch.queries + sequence.first_query + query] = highest + logf(total);
    }
}

// A block's shared memory in the backward pass.
template <typename T, unsigned Width, unsigned Tile> struct BackwardTiles {
    T *q, *k, *v, *gradient;       // (Tile, Width)
    T *probabilities, *of_scores;  // (Tile, Tile): masked probabilities, and the gradient of the scores
    float *scores, *of_probabilities; // (Tile, Tile)
    Distances<Tile> distances;

    __device__ BackwardTiles(const Batch& batch, T* memory) : distances(batch, nullptr) {
        q = memory;
        k = q + Tile * padded<T>(Width);
        v = k + Tile * padded<T>(Width);
        gradient = v + Tile * padded<T>(Width);
        probabilities = gradient + Tile * padded<T>(Width);
        of_scores = probabilities + Tile * padded<T>(Tile);
        scores = reinterpret_cast<float*>(of_scores + Tile * padded<T>(Tile));
        of_probabilities = scores + Tile * padded<float>(Tile);
        distances.biases = of_probabilities + Tile * padded<float>(Tile);
    }
};

// What the backward pass makes of a warp's 16 queries and a tile of keys: the masked probabilities, and the gradient of the scores,
// zero where there is no query or it does not see the key; exact in the place of that of the probabilities. `delta` is a query's sum
// of gradient * output.
template <typename T, unsigned Width, unsigned Tile>
__device__ void score_gradients(
    const BackwardTiles<T, Width, Tile>& tiles, const Batch& batch, const Sequence& sequence, unsigned warp_row, unsigned query,
    unsigned key, bool there, unsigned keys, float logarithm, float delta) {
    unsigned row = warp_row + threadIdx.x % WARP / 2, half = threadIdx.x % 2;
    unsigned scores_row = warp_row * padded<float>(Tile), tile_row = warp_row * padded<T>(Width);
    multiply_rows<T, Width, Tile>(tiles.scores + scores_row, tiles.q + tile_row, tiles.k);
    multiply_rows<T, Width, Tile>(tiles.of_probabilities + scores_row, tiles.gradient + tile_row, tiles.v);
    __syncwarp();
    Seen seen(sequence, query, key, keys);
    unsigned position = sequence.probability(batch.head(), query, key);
    for (unsigned j = half; j < Tile; j += 2) {
        unsigned i = row * padded<float>(Tile) + j;
        bool scored = there && seen.has(j);
        float p = scored ? expf(tiles.distances.score(batch, tiles.scores[i], row, j, query, key + j) - logarithm) : 0.0f;
        float factor = batch.mask.factor(position + j);
        tiles.probabilities[row * padded<T>(Tile) + j] = from_float<T>(p * factor);
        float of_score = scored ? p * (tiles.of_probabilities[i] * factor - delta) : 0.0f;
        tiles.of_scores[row * padded<T>(Tile) + j] = from_float<T>(of_score);
        tiles.of_probabilities[i] = of_score;
    }
    __syncwarp();
}

// A query's sum of gradient * output, for both lanes of its row; 0 where there is no query.
template <typename T>
__device__ float row_delta(const T* gradient, const T* output, bool there, unsigned width) {
    float sum = 0.0f;
    if (there) {
        for (unsigned j = threadIdx.x % 2; j < width; j += 2) sum += to_float(gradient[j]) * to_float(output[j]);
    }
    return row_sum(sum);
}

// Adds the gradient of a tile's scores up for each distance, by all threads of the block: a thread has one.
template <unsigned Tile>
__device__ void add_distances(
    float* sums, const float* of_scores, const Batch& batch, unsigned query, unsigned key, unsigned rows) {
    unsigned place = Distances<Tile>::place(batch, query, key, threadIdx.x);
    if (place >= 2 * batch.longest - 1) return;
    float sum = 0.0f;
    for (unsigned i = 0; i < rows; i++) {
        unsigned j = i + Tile - 1 - threadIdx.x;
        if (j < Tile) sum += of_scores[i * padded<float>(Tile) + j];
    }
    sums[place * batch.heads() + batch.head()] += sum;
}

// Tile columns from `first` on of up to Tile rows of products, or of their gradient: (rows, columns), zeros for the rest.
template <typename T, unsigned Tile>
__device__ void load_products(T* square, const float* products, unsigned rows, unsigned columns, unsigned first) {
    for (unsigned i = threadIdx.x; i < Tile * Tile; i += blockDim.x) {
        unsigned row = i / Tile, column = i % Tile;
        bool there = row < rows && first + column < columns;
        square[row * padded<T>(Tile) + column] = from_float<T>(there ? products[row * columns + first + column] : 0.0f);
    }
}

// Adds what reaches a tile's queries, or its keys, by their products with positions, whose gradient is (rows, reached): by all threads of
// the block, which use a square and a tile for it.
template <typename T, unsigned Width, unsigned Tile>
__device__ __forceinline__ void add_positions(
    Sum<T>* totals, T* square, T* tile, const float* of_products, const T* positions, const Batch& batch, const Reach& reach,
    unsigned warp_row, unsigned rows) {
    positions += static_cast<unsigned long long>(reach.first) * batch.position_stride + batch.head() * batch.width;
    for (unsigned first = 0; first < reach.reached; first += Tile) {
        __syncthreads();
        load_products<T, Tile>(square, of_products, rows, reach.reached, first);
        load_tile<T, Width, Tile>(
            tile, positions + static_cast<unsigned long long>(first) * batch.position_stride, min(Tile, reach.reached - first),
            batch.position_stride, batch.width);
        __syncthreads();
        if (warp_row < rows) add_product<T, Width, Tile, false>(totals, square + warp_row * padded<T>(Tile), tile);
    }
}

// The gradient of the queries; of the scores for each distance if the bias's is asked for, `of_distances` (blocks, distances, heads); and
// of the queries' products with positions if there are such. These two begin as zeros.
template <typename T, unsigned Width, unsigned Tile>
__device__ void attention_queries(
    T* dq, float* of_distances, float* of_products, const T* positions, const T* q, const T* k, const T* v, const T* out,
    const T* gradient, const float* logarithms, const Batch& batch) {
    DYNAMIC_SHARED(T, memory);
    BackwardTiles<T, Width, Tile> block(batch, memory);

    Sequence sequence(batch);
    unsigned first = batch.tiles[2 * blockIdx.x + 1], head = batch.head(), column = head * batch.width, width = batch.width;
    unsigned warp_row = threadIdx.x / WARP * 16, row = warp_row + threadIdx.x % WARP / 2, half = threadIdx.x % 2;
    unsigned rows = min(Tile, sequence.queries - first), query = first + row;
    bool works = warp_row < rows, there = row < rows;
    unsigned long long offset = static_cast<unsigned long long>(sequence.first_query + first) * batch.hidden + column;
    unsigned long long own = offset + static_cast<unsigned long long>(row) * batch.hidden;
    load_tile<T, Width, Tile>(block.q, q + offset, rows, batch.hidden, width);
    load_tile<T, Width, Tile>(block.gradient, gradient + offset, rows, batch.hidden, width);
    float delta = row_delta(gradient + own, out + own, there, width);
    unsigned long long index = static_cast<unsigned long long>(head) * batch.queries + sequence.first_query + query;
    float logarithm = there ? logarithms[index] : 0.0f;

    const Reach& reach = block.distances.reach;
    if (of_distances) of_distances += static_cast<unsigned long long>(blockIdx.x) * (2 * batch.longest - 1) * batch.heads();
    if (of_products) of_products += reach.first_query_product + first * reach.reached;

    Sum<T> totals[Width / 16];
    for (unsigned j = 0; j < Width / 16; j++) totals[j].clear();
    unsigned end = sequence.end_seen(first + rows - 1);
    for (unsigned key = sequence.first_seen(first); key < end; key += Tile) {
        unsigned keys = min(Tile, end - key);
        unsigned long long from = static_cast<unsigned long long>(sequence.first_key + key) * batch.key_stride + column;
        __syncthreads();
        load_tile<T, Width, Tile>(block.k, k + from, keys, batch.key_stride, width);
        load_tile<T, Width, Tile>(block.v, v + from, keys, batch.key_stride, width);
        block.distances.load(batch, first, key);
        __syncthreads();
        if (works) {
            score_gradients<T, Width, Tile>(block, batch, sequence, warp_row, query, key, there, keys, logarithm, delta);
            add_product<T, Width, Tile, false>(totals, block.of_scores + warp_row * padded<T>(Tile), block.k);
            if (of_products && there && half == 0) {
                const float* of_scores = block.of_probabilities + row * padded<float>(Tile);
                block.distances.add(of_products + row * reach.reached, of_scores, 1, keys, row + Tile - 1, -1);
            }
        }
        if (of_distances) {
            __syncthreads();
            add_distances<Tile>(of_distances, block.of_probabilities, batch, first, key, rows);
        }
    }
    if (of_products) {
        add_positions<T, Width, Tile>(totals, block.of_scores, block.k, of_products, positions, batch, reach, warp_row, rows);
    }
    __syncthreads(); // Nobody reads the tiles any more.
    float* sums = reinterpret_cast<float*>(memory); // (Tile, Width)
    if (!works) return;
#pragma unroll
    for (unsigned j = 0; j < Width / 16; j++) totals[j].store(sums + warp_row * padded<float>(Width) + 16 * j, padded<float>(Width));
    __syncwarp();
    if (!there) return;
    for (unsigned j = half; j < width; j += 2) dq[own + j] = from_float<T>(batch.scale * sums[row * padded<float>(Width) + j]);
}

// The gradients of keys and values, and of the keys' products with positions if there are such, which begins as zeros.
template <typename T, unsigned Width, unsigned Tile>
__device__ void attention_keys(
    T* dk, T* dv, float* of_products, const T* positions, const T* q, const T* k, const T* v, const T* out, const T* gradient,
    const float* logarithms, const Batch& batch) {
    DYNAMIC_SHARED(T, memory);
    BackwardTiles<T, Width, Tile> block(batch, memory);

    Sequence sequence(batch);
    unsigned first = batch.tiles[2 * blockIdx.x + 1], head = batch.head(), column = head * batch.width, width = batch.width;
    unsigned warp_row = threadIdx.x / WARP * 16, row = warp_row + threadIdx.x % WARP / 2, half = threadIdx.x % 2;
    unsigned keys = min(Tile, sequence.keys - first);
    bool works = warp_row < keys; // Of the keys that the warp gathers for; every warp takes part in the scores.
    unsigned long long offset = static_cast<unsigned long long>(sequence.first_key + first) * batch.key_stride + column;
    load_tile<T, Width, Tile>(block.k, k + offset, keys, batch.key_stride, width);
    load_tile<T, Width, Tile>(block.v, v + offset, keys, batch.key_stride, width);

    const Reach& reach = block.distances.reach;
    if (of_products) of_products += reach.first_key_product + first * reach.reached;

    Sum<T> key_totals[Width / 16], value_totals[Width / 16];
    for (unsigned j = 0; j < Width / 16; j++) key_totals[j].clear(), value_totals[j].clear();
    unsigned end = sequence.end_seeing(first + keys - 1);
    for (unsigned tile = sequence.first_seeing(first); tile < end; tile += Tile) {
        unsigned rows = min(Tile, end - tile), query = tile + row;
        unsigned long long from = static_cast<unsigned long long>(sequence.first_query + tile) * batch.hidden + column;
        __syncthreads();
        load_tile<T, Width, Tile>(block.q, q + from, rows, batch.hidden, width);
        load_tile<T, Width, Tile>(block.gradient, gradient + from, rows, batch.hidden, width);
        block.distances.load(batch, tile, first);
        __syncthreads();
        bool there = row < rows;
        unsigned long long own = from + static_cast<unsigned long long>(row) * batch.hidden;
        float delta = row_delta(gradient + own, out + own, there, width);
        unsigned long long index = static_cast<unsigned long long>(head) * batch.queries + sequence.first_query + query;
        float logarithm = there ? logarithms[index] : 0.0f;
        score_gradients<T, Width, Tile>(block, batch, sequence, warp_row, query, first, there, keys, logarithm, delta);
        __syncthreads();
        if (!works) continue;
        add_product<T, Width, Tile, true>(value_totals, block.probabilities + warp_row, block.gradient);
        add_product<T, Width, Tile, true>(key_totals, block.of_scores + warp_row, block.q);
        if (of_products && row < keys && half == 0) {
            block.distances.add(
                of_products + row * reach.reached, block.of_probabilities + row, padded<float>(Tile), rows, Tile - 1 - row, 1);
        }
    }
    if (of_products) {
        add_positions<T, Width, Tile>(key_totals, block.of_scores, block.q, of_products, positions, batch, reach, warp_row, keys);
    }
    __syncthreads(); // Nobody reads the tiles any more.
    float* sums = reinterpret_cast<float*>(memory); // (Tile, Width)
    if (!works) return;
    bool there = row < keys;
    unsigned long long own = offset + static_cast<unsigned long long>(row) * batch.key_stride;
    float* sums_row = sums + row * padded<float>(Width);
#pragma unroll
    for (unsigned j = 0; j < Width / 16; j++) key_totals[j].store(sums + warp_row * padded<float>(Width) + 16 * j, padded<float>(Width));
    __syncwarp();
    for (unsigned j = half; there && j < width; j += 2) dk[own + j] = from_float<T>(batch.scale * sums_row[j]);
    __syncwarp();
#pragma unroll
    for (unsigned j = 0; j < Width / 16; j++) value_totals[j].store(sums + warp_row * padded<float>(Width) + 16 * j, padded<float>(Width));
    __syncwarp();
    for (unsigned j = half; there && j < width; j += 2) dv[own + j] = from_float<T>(sums_row[j]);
}

// Products of queries, or of keys, with the positions of all rows that their sequence reaches: scale * x positionsᵀ.
template <typename T, unsigned Width, unsigned Tile>
__device__ void position_products(float* products, const T* x, const T* positions, bool of_keys, const Batch& batch) {
    DYNAMIC_SHARED(T, memory);
    T* x_tile = memory;
    T* position_tile = x_tile + Tile * padded<T>(Width);
    float* scores = reinterpret_cast<float*>(position_tile + Tile * padded<T>(Width)); // (Tile, Tile)

    Sequence sequence(batch);
    Reach reach(batch);
    unsigned first = batch.tiles[2 * blockIdx.x + 1], column = batch.head() * batch.width, width = batch.width;
    unsigned warp_row = threadIdx.x / WARP * 16, stride = of_keys ? batch.key_stride : batch.hidden;
    unsigned rows = min(Tile, (of_keys ? sequence.keys : sequence.queries) - first);
    unsigned begin = (of_keys ? sequence.first_key : sequence.first_query) + first;
    products += (of_keys ? reach.first_key_product : reach.first_query_product) + first * reach.reached;
    positions += static_cast<unsigned long long>(reach.first) * batch.position_stride + column;
    load_tile<T, Width, Tile>(x_tile, x + static_cast<unsigned long long>(begin) * stride + column, rows, stride, width);
    for (unsigned position = 0; position < reach.reached; position += Tile) {
        unsigned columns = min(Tile, reach.reached - position);
        __syncthreads();
        load_tile<T, Width, Tile>(
            position_tile, positions + static_cast<unsigned long long>(position) * batch.position_stride, columns, batch.position_stride,
            width);
        __syncthreads();
        if (warp_row >= rows) continue;
        multiply_rows<T, Width, Tile>(scores + warp_row * padded<float>(Tile), x_tile + warp_row * padded<T>(Width), position_tile);
        __syncwarp();
        for (unsigned row = warp_row; row < min(rows, warp_row + 16); row++) {
            for (unsigned j = threadIdx.x % WARP; j < columns; j += WARP) {
                products[row * reach.reached + position + j] = batch.scale * scores[row * padded<float>(Tile) + j];
            }
        }
        __syncwarp();
    }
}

// The gradient of the positions that queries, or keys, have products with: the sums over slices of all tiles, (slices, rows, columns) with
// the head's among the columns. `blockIdx.x` counts tiles of rows, and so many for each slice.
template <typename T, unsigned Width, unsigned Tile>
__device__ void position_gradient(
    float* sums, const float* of_products, const T* x, bool of_keys, unsigned rows, unsigned columns, unsigned tiles,
    unsigned tiles_per_slice, const Batch& batch) {
    DYNAMIC_SHARED(T, memory);
    T* x_tile = memory;
    T* square = x_tile + Tile * padded<T>(Width);

    unsigned row_tiles = (rows + Tile - 1) / Tile, first_row = blockIdx.x % row_tiles * Tile, slice = blockIdx.x / row_tiles;
    unsigned column = batch.head() * batch.width, width = batch.width, stride = of_keys ? batch.key_stride : batch.hidden;
    unsigned warp_row = threadIdx.x / WARP * 16, row = warp_row + threadIdx.x % WARP / 2, half = threadIdx.x % 2;
    Sum<T> totals[Width / 16];
    for (unsigned j = 0; j < Width / 16; j++) totals[j].clear();
    for (unsigned tile = slice * tiles_per_slice; tile < min(tiles, (slice + 1) * tiles_per_slice); tile++) {
        Reach reach(batch, tile);
        if (first_row >= reach.first + reach.reached || first_row + Tile <= reach.first) continue;
        Sequence sequence(batch, tile);
        unsigned first = batch.tiles[2 * tile + 1];
        unsigned count = min(Tile, (of_keys ? sequence.keys : sequence.queries) - first);
        unsigned begin = (of_keys ? sequence.first_key : sequence.first_query) + first;
        unsigned products = (of_keys ? reach.first_key_product : reach.first_query_product) + first * reach.reached;
        __syncthreads();
        load_tile<T, Width, Tile>(x_tile, x + static_cast<unsigned long long>(begin) * stride + column, count, stride, width);
        // Rows before the first one reached become columns far behind the last.
        load_products<T, Tile>(square, of_products + products, count, reach.reached, first_row - reach.first);
        __syncthreads();
        if (first_row + warp_row < rows) add_product<T, Width, Tile, true>(totals, square + warp_row, x_tile);
    }
    __syncthreads(); // Nobody reads the tiles any more.
    float* results = reinterpret_cast<float*>(memory); // (Tile, Width)
    if (first_row + warp_row >= rows) return;
#pragma unroll
    for (unsigned j = 0; j < Width / 16; j++) totals[j].store(results + warp_row * padded<float>(Width) + 16 * j, padded<float>(Width));
    __syncwarp();
    if (first_row + row >= rows) return;
    sums += (static_cast<unsigned long long>(slice) * rows + first_row + row) * columns + column;
    for (unsigned j = half; j < width; j += 2) sums[j] = batch.scale * results[row * padded<float>(Width) + j];
}

// One kernel of each kind for heads of up to so many columns; the tiles as attention.rs has them.
#define ATTENTION(type, suffix, width, tile) \
    extern "C" __global__ void __launch_bounds__(tile * 2) attention_forward_##width##_##suffix( \
        type* out, float* logarithms, const type* q, const type* k, const type* v, BATCH_PARAMETERS) { \
        attention_forward<type, width, tile>(out, logarithms, q, k, v, BATCH); \
    } \
    extern "C" __global__ void __launch_bounds__(tile * 2) attention_queries_##width##_##suffix( \
        type* dq, float* of_distances, float* of_products, const type* positions, const type* q, const type* k, const type* v, \
        const type* out, const type* gradient, const float* logarithms, BATCH_PARAMETERS) { \
        attention_queries<type, width, tile>( \
            dq, of_distances, of_products, positions, q, k, v, out, gradient, logarithms, BATCH); \
    } \
    extern "C" __global__ void __launch_bounds__(tile * 2) attention_keys_##width##_##suffix( \
        type* dk, type* dv, float* of_products, const type* positions, const type* q, const type* k, const type* v, const type* out, \
        const type* gradient, const float* logarithms, BATCH_PARAMETERS) { \
        attention_keys<type, width, tile>(dk, dv, of_products, positions, q, k, v, out, gradient, logarithms, BATCH); \
    } \
    extern "C" __global__ void __launch_bounds__(tile * 2) position_products_##width##_##suffix( \
        float* products, const type* x, const type* positions, unsigned of_keys, BATCH_PARAMETERS) { \
        position_products<type, width, tile>(products, x, positions, of_keys != 0, BATCH); \
    } \
    extern "C" __global__ void __launch_bounds__(tile * 2) position_gradient_##width##_##suffix( \
        float* sums, const float* of_products, const type* x, unsigned of_keys, unsigned row_count, unsigned columns, \
        unsigned tile_count, unsigned tiles_per_slice, BATCH_PARAMETERS) { \
        position_gradient<type, width, tile>( \
            sums, of_products, x, of_keys != 0, row_count, columns, tile_count, tiles_per_slice, BATCH); \
    }

ATTENTION(float, f32, 32, 32)
ATTENTION(float, f32, 64, 32)
ATTENTION(float, f32, 128, 32)
ATTENTION(float, f32, 256, 16)
ATTENTION(bf16, bf16, 32, 64)
ATTENTION(bf16, bf16, 64, 64)
ATTENTION(bf16, bf16, 128, 32)
ATTENTION(bf16, bf16, 256, 16)
