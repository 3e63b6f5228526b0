// A packed batch as attention's kernels see it.
#pragma once

#include "common.cuh"

// What the kernels are told of a batch.
struct Batch {
    const unsigned *sequences, *tiles; // The tables that attention.rs makes.
    unsigned hidden;                   // From a query to the next, and likewise of what becomes of them.
    unsigned key_stride;               // From a key to the next, and from a value.
    unsigned width;                    // The columns of a head.
    unsigned queries;                  // Of all sequences.
    unsigned window;                   // A query sees the keys at most so far from its token: no more than a sequence has.
    unsigned prefix;                   // How many keys of a sequence stand before that of its first query's token.
    float scale;
    Mask mask;
    const unsigned* rows; // Of a table, by distance: the position of the query's token less the key's, from 1 - longest to longest - 1.
    unsigned longest;
    const float* bias;     // (rows of the table, heads): added to the scores, if it is there.
    const unsigned* reach; // The table of the rows that each sequence's distances reach, of disentangled attention.
    const float *query_products, *key_products; // Of a group of heads, if they are there; see Distances.
    unsigned query_product_count, key_product_count; // Of a head.
    unsigned position_stride;                        // From a position to the next.
    unsigned first_head;                             // Of the group.

    __device__ unsigned heads() const { return hidden / width; }
    __device__ unsigned head() const { return first_head + blockIdx.y; }
};

// Where the sequence of a tile lies, by default of this block's.
struct Sequence {
    unsigned first_query, queries, first_key, keys, first_probability, window, prefix;

    __device__ explicit Sequence(const Batch& batch, unsigned tile = blockIdx.x) : window(batch.window), prefix(batch.prefix) {
        const unsigned* row = batch.sequences + 5 * batch.tiles[2 * tile];
        first_query = row[0], queries = row[1], first_key = row[2], keys = row[3], first_probability = row[4];
    }

    // The position of a probability of a head among all of the batch: what dropout counts by.
    __device__ unsigned probability(unsigned head, unsigned query, unsigned key) const {
        return first_probability + (head * queries + query) * keys + key;
    }

    // The keys that a query sees, and the queries that see a key: the first, and the one behind the last.
    __device__ unsigned first_seen(unsigned query) const { return max(prefix + query, window) - window; }
    __device__ unsigned end_seen(unsigned query) const { return min(keys, prefix + query + window + 1); }
    __device__ unsigned first_seeing(unsigned key) const { return max(key, prefix + window) - (prefix + window); }
    __device__ unsigned end_seeing(unsigned key) const { return min(queries, max(key + window + 1, prefix) - prefix); }
};

// Which keys of a tile a query sees.
struct Seen {
    unsigned first, end;

    __device__ Seen(const Sequence& sequence, unsigned query, unsigned key, unsigned keys) {
        first = max(sequence.first_seen(query), key) - key;
        end = min(keys, max(sequence.end_seen(query), key) - key);
    }
    __device__ bool has(unsigned key) const { return first <= key && key < end; }
};

#define BATCH_PARAMETERS \
    const unsigned *sequences, const unsigned *tiles, unsigned hidden, unsigned key_stride, unsigned head, unsigned queries, \
        unsigned window, unsigned prefix, float scale, unsigned dropped_below, float keep, unsigned long long seed, \
        const unsigned *rows, unsigned longest, const float *bias, const unsigned *reach, const float *query_products, \
        const float *key_products, unsigned query_product_count, unsigned key_product_count, unsigned position_stride, \
        unsigned first_head
#define BATCH \
    Batch { \
        sequences, tiles, hidden, key_stride, head, queries, window, prefix, scale, {dropped_below, keep, seed}, rows, longest, bias, \
            reach, query_products, key_products, query_product_count, key_product_count, position_stride, first_head \
    }
