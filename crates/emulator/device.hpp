// The cards beside their kernels: memory, and streams of work that is done at once or recorded in a graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace emulator {

// ---- Cards, numbered from 0 ----

constexpr int MAX_CARDS = 16;

// CUDA_EMULATOR_DEVICES, or 1.
int card_count();

// That of this host thread's context; the first where it has none.
int current_card();
void set_current_card(int card);

// Whether it has broken down: CUDA_EMULATOR_BROKEN=1:200 has card 1 do so at its 200th launch, which then does nothing, as do all
// later calls.
bool is_broken(int card);
void count_launch(int card);

// ---- Memory: the host's, counted, filled with NaN, between guard zones ----

// CUDA_EMULATOR_MEMORY in MiB, or 1 GiB; of several numbers, as in 1024,64, each card has its own, and the last is all others'.
size_t memory_total(int card);
size_t memory_used(int card);

// Null when the card has not that much left. What comes from a card's pool, other cards reach only where the pool has been opened to
// them, all else without that.
void* allocate(size_t bytes, int card, bool pooled = false);
void open_pool(int card, int reader);
bool is_reachable(const void* address, int reader);

// False for what is not the begin of an allocation. Aborts when somebody wrote beside it.
bool release(void* address);

// Fills an allocation with NaN, as if it were fresh. False for what is not the begin of one.
bool forget(void* address);

// Whether all of it lies in one allocation of that card.
bool is_allocated(const void* address, size_t bytes, int card);

// Whose memory an address lies in; -1 if in none's.
int card_of(const void* address);

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
    int card = current_card();
    std::mutex running;
    std::shared_ptr<Recording> recording; // while capturing
    std::mutex listing;
    std::vector<Work> awaited; // what other cards have a part in: each returns when it is done
    std::deque<Work> late;     // what was put on it and is not done yet

    Stream();
    ~Stream();
};

// Whether CUDA_EMULATOR_LATE is set: work is done when somebody waits for its stream, as late as a card may do it.
bool is_late();

// Has a stream's work done, or that of all streams of a card.
void finish(Stream& stream);
void finish_card(int card);

// The stream of a handle: null and 1 are the card's default stream, 2 that of this host thread. What was put on it before is done.
Stream& stream_of(void* handle);

// The same, whatever is still to be awaited.
Stream& busy_stream_of(void* handle);

// Runs the work, records it, or keeps it until somebody waits for it.
void enqueue(void* stream, Work work);

// For tests, which look them up by name: what all cards were asked for until now, pieces of memory, and kernels, products, copies and
// fills.
extern "C" uint64_t emulator_allocations();
extern "C" uint64_t emulator_launches();

// Says on stderr, once for each name, that a function is not there.
void tell_unsupported(const char* name);

} // namespace emulator
