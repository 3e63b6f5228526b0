// A block of threads as fibers of one host thread: each runs until it waits at a barrier, then the next one does.
#pragma once

#include <cstddef>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs. Initial-exec: a fiber reads them without a call.
#define EMULATOR_POSITION extern __thread __attribute__((tls_model("initial-exec")))
EMULATOR_POSITION uint3 threadIdx;
EMULATOR_POSITION uint3 blockIdx;
EMULATOR_POSITION dim3 blockDim;
EMULATOR_POSITION dim3 gridDim;

namespace emulator {

constexpr unsigned WARP = 32;

// A kernel, and how its parameters are read.
struct Kernel {
    const char* name;
    const void* function;
    const size_t* parameter_sizes;
    unsigned parameter_count;
    void (*call)(const void* function, void* const* parameters);
};

// Runs every block of the grid, one after the other. `parameters` points to each parameter, as for cuLaunchKernel.
void run(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes, void* const* parameters);

// The kernel that runs on this thread or ran on it last, for messages.
const char* last_kernel();

// Prints what is wrong in the running kernel, and where, and aborts.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// What a thread asks of the block it is in.
unsigned lane();
void* dynamic_shared();
void wait_for_block();

// Waits for the lanes of `mask` that have not returned. The last to arrive answers for all: `answer` gets each lane's `message`
// (null for a lane that is not there). Lanes that meet with different functions, answers or masks are an error.
typedef void (*Answer)(void* const messages[WARP]);
void meet(const char* function, unsigned mask, void* message, Answer answer);

// A thread's copies of 16 bytes into dynamic shared memory, of which the first `read` are read and the others are zeros. None is made
// before its thread waits for its group, so that what reads too early finds what was there before.
void copy_later(void* to, const void* from, unsigned read);
void commit_copies();
void wait_for_copies(unsigned groups_left);

// Ends the program if these bytes are not dynamic shared memory, or do not begin at a multiple of 16.
void check_shared(const char* function, const void* address, size_t bytes);

} // namespace emulator
