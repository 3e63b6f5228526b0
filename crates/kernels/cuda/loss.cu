// What training makes small, by one block: a batch has tens of sequences.
#include "common.cuh"

// The highest logit of a row, and the sum of e^(logit - highest).
struct Exponentials {
    float highest;
    float sum;
};

__device__ __forceinline__ Exponentials exponentials_of(const float* logits, unsigned columns) {
    Exponentials found = {logits[0], 0.0f};
    for (unsigned i = 1; i < columns; i++) found.highest = fmaxf(found.highest, logits[i]);
    for (unsigned i = 0; i < columns; i++) found.sum += expf(logits[i] - found.highest);
    return found;
}

// The mean of -log softmax(logits)[class].
extern "C" __global__ void cross_entropy(
    float* loss, const float* logits, const unsigned* classes, unsigned rows, unsigned columns) {
    float sum = 0.0f;
    for (unsigned row = threadIdx.x; row < rows; row += blockDim.x) {
        const float* own = row_of(logits, row, columns);
        Exponentials found = exponentials_of(own, columns);
        sum += logf(found.sum) + found.highest - own[classes[row]];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss = sum / rows;
}

// (softmax(logits) - [1 at the class]) * gradient / rows
extern "C" __global__ void cross_entropy_backward(
    float* dlogits, const float* logits, const unsigned* classes, const float* gradient, unsigned rows, unsigned columns) {
    float share = *gradient / rows;
    for (unsigned row = threadIdx.x; row < rows; row += blockDim.x) {
        const float* own = row_of(logits, row, columns);
        Exponentials found = exponentials_of(own, columns);
        for (unsigned i = 0; i < columns; i++) {
            float probability = expf(own[i] - found.highest) / found.sum;
            row_of(dlogits, row, columns)[i] = share * (probability - (i == classes[row] ? 1.0f : 0.0f));
        }
    }
}

// The mean of (scores - targets)^2.
extern "C" __global__ void mean_squared_error(float* loss, const float* scores, const float* targets, unsigned count) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        float difference = scores[i] - targets[i];
        sum += difference * difference;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss = sum / count;
}

// 2 * (scores - targets) * gradient / count
extern "C" __global__ void mean_squared_error_backward(
    float* dscores, const float* scores, const float* targets, const float* gradient, unsigned count) {
    float share = 2.0f * *gradient / count;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) dscores[i] = share * (scores[i] - targets[i]);
}
