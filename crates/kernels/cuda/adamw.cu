// AdamW over all parameters at once. Three launches: sums of squares of the gradients, the clip factor, the step.
#include "common.cuh"

// One parameter. The table of them is uploaded for each step.
struct Slot {
    float* parameter;
    const float* gradient;
    float* first;
    float* second;
    unsigned long long count;
    unsigned long long first_block; // The blocks of all parameters stand in one row.
    float keep; // 1 - learning rate * weight decay
    float rate; // learning rate / (1 - beta1^step)
};

// What a block does: so many numbers of one parameter, four at a time.
constexpr unsigned SLOT_CHUNK = 4096;

// What a block has of one parameter.
struct Chunk {
    float *parameter, *first, *second;
    const float* gradient;
    unsigned count;
    float keep, rate;
};

__device__ __forceinline__ Chunk chunk_of_block(const Slot* slots, unsigned count) {
    unsigned low = 0, high = count;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (slots[middle].first_block <= blockIdx.x) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Slot slot = slots[low];
    unsigned long long start = (blockIdx.x - slot.first_block) * SLOT_CHUNK, left = slot.count - start;
    unsigned own = static_cast<unsigned>(left < SLOT_CHUNK ? left : SLOT_CHUNK);
    return {slot.parameter + start, slot.first + start, slot.second + start, slot.gradient + start, own, slot.keep, slot.rate};
}

// The positions of the first of four numbers that a thread takes of a chunk.
#define FOR_FOURS_OF_CHUNK(first, chunk) for (unsigned first = 4 * threadIdx.x; first < chunk.count; first += 4 * blockDim.x)

// The sum over a block's threads, in thread 0, in f64: a norm over many parameters.
__device__ __forceinline__ double block_sum_of_doubles(double x) {
    __shared__ double sums[WARP];
    for (unsigned lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    double total = 0.0;
    if (threadIdx.x == 0) {
        for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) total += sums[warp];
    }
    return total;
}

// sums (blocks): of the squares of each block's gradients.
extern "C" __global__ void gradient_squares(double* sums, const Slot* slots, unsigned slot_count) {
    Chunk chunk = chunk_of_block(slots, slot_count);
    double sum = 0.0;
    FOR_FOURS_OF_CHUNK(first, chunk) {
        float values[4];
        read_four(chunk.gradient, first, chunk.count, values);
        for (unsigned i = 0; i < 4; i++) sum += static_cast<double>(values[i]) * values[i];
    }
    sum = block_sum_of_doubles(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// What the gradients are multiplied by, as torch's clip_grad_norm_: min(1, limit / (norm + 1e-6)). One block. 1 without sums.
extern "C" __global__ void clip_factor(double* factor, const double* sums, unsigned blocks, double limit) {
    double squares = 0.0;
    for (unsigned i = threadIdx.x; i < blocks; i += blockDim.x) squares += sums[i];
    squares = block_sum_of_doubles(squares);
    if (threadIdx.x == 0) {
        double share = blocks ? limit / (sqrt(squares) + 1e-6) : 1.0;
        *factor = share < 1.0 ? share : 1.0;
    }
}

// One step for every parameter; none where the loss is not finite.
extern "C" __global__ void adamw(
    const Slot* slots, unsigned slot_count, const double* factor, const float* loss, float beta1, float beta2, float correction,
    float epsilon) {
    if (loss && !(fabsf(*loss) <= 3.402823466e38f)) return;
    Chunk chunk = chunk_of_block(slots, slot_count);
    float scale = static_cast<float>(*factor);
    FOR_FOURS_OF_CHUNK(first, chunk) {
        float gradient[4], m[4], v[4], values[4];
        read_four(chunk.gradient, first, chunk.count, gradient);
        read_four(chunk.first, first, chunk.count, m);
        read_four(chunk.second, first, chunk.count, v);
        read_four(chunk.parameter, first, chunk.count, values);
        for (unsigned i = 0; i < 4; i++) {
            float g = gradient[i] * scale;
            m[i] = beta1 * m[i] + (1.0f - beta1) * g;
            v[i] = beta2 * v[i] + (1.0f - beta2) * g * g;
            values[i] = values[i] * chunk.keep - chunk.rate * m[i] / (sqrtf(v[i]) * correction + epsilon);
        }
        write_four(chunk.first, first, chunk.count, m);
        write_four(chunk.second, first, chunk.count, v);
        write_four(chunk.parameter, first, chunk.count, values);
    }
}

#undef FOR_FOURS_OF_CHUNK
