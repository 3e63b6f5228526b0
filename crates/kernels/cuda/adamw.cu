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

// What a block does: so many numbers of one parameter.
constexpr unsigned SLOT_CHUNK = 4096;

// The parameter that this block belongs to.
__device__ __forceinline__ const Slot& slot_of_block(const Slot* slots, unsigned count) {
    unsigned low = 0, high = count;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (slots[middle].first_block <= blockIdx.x) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return slots[low];
}

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
    const Slot& slot = slot_of_block(slots, slot_count);
    unsigned long long start = (blockIdx.x - slot.first_block) * SLOT_CHUNK, end = min(slot.count, start + SLOT_CHUNK);
    double sum = 0.0;
    for (unsigned long long i = start + threadIdx.x; i < end; i += blockDim.x) {
        double value = slot.gradient[i];
        sum += value * value;
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
    const Slot& slot = slot_of_block(slots, slot_count);
    float keep = slot.keep, rate = slot.rate, scale = static_cast<float>(*factor);
    unsigned long long start = (blockIdx.x - slot.first_block) * SLOT_CHUNK, end = min(slot.count, start + SLOT_CHUNK);
    for (unsigned long long i = start + threadIdx.x; i < end; i += blockDim.x) {
        float g = slot.gradient[i] * scale;
        float m = beta1 * slot.first[i] + (1.0f - beta1) * g;
        float v = beta2 * slot.second[i] + (1.0f - beta2) * g * g;
        slot.first[i] = m;
        slot.second[i] = v;
        slot.parameter[i] = slot.parameter[i] * keep - rate * m / (sqrtf(v) * correction + epsilon);
    }
}
