// The device beside its kernels: memory, and streams of work that is done at once or recorded in a graph.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace emulator {

// ---- Memory: the host's, counted, filled with NaN, between guard zones ----

// CUDA_EMULATOR_MEMORY in MiB, or 1 GiB.
size_t memory_total();
size_t memory_used();

// Null when the device has not that much left.
void* allocate(size_t bytes);

// False for what is not the begin of an allocation. Aborts when somebody wrote beside it.
bool release(void* address);

// Fills an allocation with NaN, as if it were fresh. False for what is not the begin of one.
bool forget(void* address);

// Whether all of it lies in one allocation.
bool is_allocated(const void* address, size_t bytes);

// Aborts when somebody wrote beside an allocation.
void check_guards();

// ---- Streams ----

typedef std::function<void()> Work;

// What a stream recorded while it was capturing. Allocations made meanwhile stay at their addresses as long as it lives.
struct Recording {
    std::vector<Work> work;
    std::vector<void*> allocations;
    std::vector<struct Stream*> streams; // that joined it
    ~Recording();
    bool owns(const void* address) const;
};

struct Stream {
    std::mutex running;
    std::shared_ptr<Recording> recording; // while capturing
};

// The stream of a handle: null and 1 are the default stream, 2 that of this host thread.
Stream& stream_of(void* handle);

// Runs the work, or records it.
void enqueue(void* stream, Work work);

// Says on stderr, once for each name, that a function is not there.
void tell_unsupported(const char* name);

} // namespace emulator
