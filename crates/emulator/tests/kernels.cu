// Kernels that show what the emulator does, right and wrong.

__device__ __forceinline__ float sum_of_warp(float x) {
    for (unsigned lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

// totals[block]: the sum of the block's numbers, by shuffles, then through shared memory.
extern "C" __global__ void __launch_bounds__(1024) block_totals(float* totals, const float* x) {
    __shared__ float sums[32];
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = sum_of_warp(x[i]);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = sum_of_warp(threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) totals[blockIdx.x] = sum;
    }
}

// y[i] = x[count - 1 - i], through dynamic shared memory; threads behind the end return before the barrier.
extern "C" __global__ void reversed(int* y, const int* x, unsigned count) {
    DYNAMIC_SHARED(int, copy);
    if (threadIdx.x >= count) return;
    copy[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = copy[count - 1 - threadIdx.x];
}

// The same without the barrier that it needs.
extern "C" __global__ void reversed_in_a_race(int* y, const int* x, unsigned count) {
    DYNAMIC_SHARED(int, copy);
    copy[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = copy[count - 1 - threadIdx.x];
}

extern "C" __global__ void where_am_i(unsigned* where, unsigned long long stride) {
    unsigned long long block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    where[block * stride + thread] = 100 * (100 * threadIdx.z + threadIdx.y) + threadIdx.x;
}

extern "C" __global__ void shuffles(int* from, int* down, int* up, int* swapped, unsigned* votes) {
    int lane = threadIdx.x;
    from[lane] = __shfl_sync(0xffffffffu, lane, 3, 8);
    down[lane] = __shfl_down_sync(0xffffffffu, lane, 5, 16);
    up[lane] = __shfl_up_sync(0xffffffffu, lane, 5);
    swapped[lane] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
    votes[lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
}

// d = a * b + c for one tile of 16 x 16 within matrices whose rows lie `stride` apart.
template <typename LayoutA, typename LayoutB>
__device__ void tile_product(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b, const float* c, unsigned stride, bool by_rows) {
    using namespace nvcuda;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, LayoutA> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, LayoutB> right;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum, zero;
    auto layout = by_rows ? wmma::mem_row_major : wmma::mem_col_major;
    wmma::fill_fragment(zero, 0.0f);
    wmma::load_matrix_sync(left, a, stride);
    wmma::load_matrix_sync(right, b, stride);
    wmma::load_matrix_sync(sum, c, stride, layout);
    wmma::mma_sync(sum, left, right, sum);
    for (int i = 0; i < sum.num_elements; i++) sum.x[i] += zero.x[i];
    wmma::store_matrix_sync(d, sum, stride, layout);
}

extern "C" __global__ void tile_products(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b, const float* c, unsigned stride) {
    using namespace nvcuda::wmma;
    unsigned way = threadIdx.x / 32;
    d += way * 16 * stride;
    if (way == 0) tile_product<row_major, row_major>(d, a, b, c, stride, true);
    if (way == 1) tile_product<row_major, col_major>(d, a, b, c, stride, false);
    if (way == 2) tile_product<col_major, row_major>(d, a, b, c, stride, true);
    if (way == 3) tile_product<col_major, col_major>(d, a, b, c, stride, false);
}

// d += a * b for 16 x 16 numbers that are copied into shared memory: each factor as it lies there, or in the other ways its transpose.
extern "C" __global__ void matrix_products(float* d, const __nv_bfloat16* a, const __nv_bfloat16* b) {
    DYNAMIC_SHARED(__nv_bfloat16, memory); // (2, 16, 16)
    unsigned lane = threadIdx.x;
    copy_async(memory + 8 * lane, a + 8 * lane, true);
    copy_async(memory + 256 + 8 * lane, b + 8 * lane, true);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
    for (unsigned way = 0; way < 4; way++) {
        bool left_transposed = way % 2 == 1, right_transposed = way >= 2;
        const __nv_bfloat16* downwards = memory + lane % 16 * 16 + lane / 16 * 8;
        const __nv_bfloat16* to_the_right = memory + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8;
        unsigned left[4], right[4];
        if (left_transposed) load_transposed_matrices(left, to_the_right);
        else load_matrices(left, downwards);
        if (right_transposed) load_matrices(right, to_the_right + 256);
        else load_transposed_matrices(right, downwards + 256);
        // Where the PTX manual puts what a lane has of the sums of mma.m16n8k16, twice beside each other.
        float sums[8];
        for (unsigned i = 0; i < 8; i++) sums[i] = d[way * 256 + (lane / 4 + i / 2 % 2 * 8) * 16 + lane % 4 * 2 + i % 2 + i / 4 * 8];
        multiply_add(sums, left, right);
        for (unsigned i = 0; i < 8; i++) d[way * 256 + (lane / 4 + i / 2 % 2 * 8) * 16 + lane % 4 * 2 + i % 2 + i / 4 * 8] = sums[i];
    }
}

// What lies in shared memory of three groups of copies, the second one of nothing, while none, one, and all but the last are awaited.
extern "C" __global__ void copies_in_groups(__nv_bfloat16* seen, const __nv_bfloat16* x) {
    DYNAMIC_SHARED(__nv_bfloat16, memory); // (3, 8)
    for (unsigned group = 0; group < 3; group++) {
        copy_async(memory + 8 * group, x + 8 * group, group != 1);
        commit_copies();
    }
    auto see = [&] {
        for (unsigned group = 0; group < 3; group++) *seen++ = memory[8 * group + 7];
    };
    see();
    wait_for_copies<2>();
    see();
    wait_for_copies<1>();
    see();
    wait_for_copies<0>();
    see();
}

extern "C" __global__ void powers_of_two(float* y, const float* x) { y[threadIdx.x] = exp2_approximate(x[threadIdx.x]); }

extern "C" __global__ void read_fresh_shared(float* fixed, float* dynamic) {
    __shared__ float numbers[4];
    DYNAMIC_SHARED(float, others);
    fixed[blockIdx.x] = numbers[1];
    dynamic[blockIdx.x] = others[1];
    numbers[1] = others[1] = 7.0f;
}

// Errors, each of which the emulator must tell.

extern "C" __global__ void half_at_a_barrier() {
    if (threadIdx.x < 32) __syncthreads();
    else if (threadIdx.x < 40) __shfl_sync(0xffffffffu, 1, 0);
    else __syncthreads();
}
extern "C" __global__ void half_in_a_shuffle() {
    if (threadIdx.x < 16) __shfl_sync(0xffffffffu, 1, 0);
    else __syncthreads();
}
extern "C" __global__ void two_functions() {
    if (threadIdx.x < 16) __shfl_sync(0xffffffffu, 1, 0);
    else __syncwarp();
}
extern "C" __global__ void not_in_the_mask() { __syncwarp(0x0000ffffu); }
extern "C" __global__ void behind_shared(unsigned count) {
    DYNAMIC_SHARED(char, bytes);
    bytes[count] = 0;
}
extern "C" __global__ void behind_memory(char* bytes, unsigned count) { bytes[count] = 0; }
extern "C" __global__ void copy_not_awaited(const __nv_bfloat16* x) {
    DYNAMIC_SHARED(__nv_bfloat16, memory);
    copy_async(memory, x, true);
    commit_copies();
    wait_for_copies<1>();
}
extern "C" __global__ void copy_to(const __nv_bfloat16* x, unsigned place) {
    DYNAMIC_SHARED(__nv_bfloat16, memory);
    copy_async(memory + place, x, true);
    commit_copies();
    wait_for_copies<0>();
}
extern "C" __global__ void matrices_from(unsigned place) {
    DYNAMIC_SHARED(__nv_bfloat16, memory);
    unsigned registers[4];
    load_matrices(registers, memory + place);
}
extern "C" __global__ void matrices_of_half_a_warp() {
    DYNAMIC_SHARED(__nv_bfloat16, memory);
    unsigned registers[4];
    if (threadIdx.x < 16) load_matrices(registers, memory);
    else __syncwarp();
}
