// Instructions that CUDA C++ has no function for, as the PTX manual describes them: from the generation 8.0 on. The emulator has the
// same functions in its ptx.hpp.
#pragma once

#include "common.cuh"

#ifndef EMULATOR

__device__ __forceinline__ unsigned shared_address(const void* address) {
    return static_cast<unsigned>(__cvta_generic_to_shared(address));
}

// Four matrices of 8 x 8 in shared memory: lane 8 i + r has the address of row r of matrix i, a multiple of 16 bytes. Lane l gets of each
// the numbers 2 (l % 4) and the next of row l / 4, and of the transpose of each the same.
__device__ __forceinline__ void load_matrices(unsigned registers[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row)));
}
__device__ __forceinline__ void load_transposed_matrices(unsigned registers[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row)));
}

// sums += a * b for the left, or the right, 8 columns of b.
__device__ __forceinline__ void multiply_add_8(float sums[4], const unsigned a[4], const unsigned b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sums += a * b, 16 x 16 each.
__device__ __forceinline__ void multiply_add(float sums[8], const unsigned a[4], const unsigned b[4]) {
    multiply_add_8(sums, a, b);
    multiply_add_8(sums + 4, a, b + 2);
}

// 16 bytes to shared memory, past the registers; zeros, and nothing is read, if they are not there.
__device__ __forceinline__ void copy_async(bf16* to, const bf16* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the thread's copies but those of the groups closed last. What others have copied is there behind a barrier.
template <unsigned GroupsLeft> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GroupsLeft) : "memory");
}

// 2 to the power of x, off by 2 units in the last place at most; below 2^-126 zero.
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
