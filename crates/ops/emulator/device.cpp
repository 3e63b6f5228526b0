#include "device.hpp"
#include "block.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>

// Under AddressSanitizer a kernel that touches a guard zone is told at once.
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace emulator {
namespace {

constexpr size_t ALIGNMENT = 512; // no less than the driver's
constexpr size_t GUARD_BYTES = ALIGNMENT;
constexpr unsigned char GUARD = 0xa5;
constexpr unsigned char POISON = 0xff; // NaN, in float and in bf16

struct Memory {
    std::mutex lock;
    std::map<unsigned char*, size_t> allocations;
    size_t used = 0;
};

// Never destroyed: a program may free after its statics are gone.
Memory& memory() {
    static Memory& memory = *new Memory;
    return memory;
}

// The guard zones lie in front of an allocation and behind it.
void check_guard(const unsigned char* begin, size_t bytes) {
    ASAN_UNPOISON_MEMORY_REGION(begin - GUARD_BYTES, bytes + 2 * GUARD_BYTES);
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (begin[-1 - ptrdiff_t(i)] != GUARD) fail("somebody wrote %zu bytes before an allocation of %zu bytes", i + 1, bytes);
        if (begin[bytes + i] != GUARD) fail("somebody wrote %zu bytes behind an allocation of %zu bytes", i + 1, bytes);
    }
    ASAN_POISON_MEMORY_REGION(begin - GUARD_BYTES, GUARD_BYTES);
    ASAN_POISON_MEMORY_REGION(begin + bytes, GUARD_BYTES);
}

} // namespace

size_t memory_total() {
    const char* mebibytes = getenv("CUDA_EMULATOR_MEMORY");
    return size_t(mebibytes ? strtoull(mebibytes, nullptr, 10) : 1024) << 20;
}

size_t memory_used() {
    std::lock_guard<std::mutex> guard(memory().lock);
    return memory().used;
}

void* allocate(size_t bytes) {
    std::lock_guard<std::mutex> guard(memory().lock);
    if (bytes > memory_total() || memory().used > memory_total() - bytes) return nullptr;
    size_t whole = (bytes + 2 * GUARD_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    auto* raw = static_cast<unsigned char*>(std::aligned_alloc(ALIGNMENT, whole));
    if (!raw) return nullptr;
    memset(raw, GUARD, whole);
    unsigned char* begin = raw + GUARD_BYTES;
    memset(begin, POISON, bytes);
    ASAN_POISON_MEMORY_REGION(raw, whole);
    ASAN_UNPOISON_MEMORY_REGION(begin, bytes);
    memory().allocations[begin] = bytes;
    memory().used += bytes;
    return begin;
}

bool release(void* address) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto found = memory().allocations.find(static_cast<unsigned char*>(address));
    if (found == memory().allocations.end()) return false;
    auto [begin, bytes] = *found;
    check_guard(begin, bytes);
    memset(begin, POISON, bytes); // What reads it later reads NaN, if nobody has the place by then.
    memory().used -= bytes;
    memory().allocations.erase(found);
    ASAN_UNPOISON_MEMORY_REGION(begin - GUARD_BYTES, bytes + 2 * GUARD_BYTES);
    free(begin - GUARD_BYTES);
    return true;
}

bool forget(void* address) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto found = memory().allocations.find(static_cast<unsigned char*>(address));
    if (found == memory().allocations.end()) return false;
    check_guard(found->first, found->second);
    memset(found->first, POISON, found->second);
    return true;
}

bool is_allocated(const void* address, size_t bytes) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto* first = static_cast<unsigned char*>(const_cast<void*>(address));
    auto next = memory().allocations.upper_bound(first);
    if (next == memory().allocations.begin()) return false;
    auto [begin, size] = *std::prev(next);
    return size_t(first - begin) <= size && bytes <= size - size_t(first - begin);
}

void check_guards() {
    std::lock_guard<std::mutex> guard(memory().lock);
    for (auto [begin, bytes] : memory().allocations) check_guard(begin, bytes);
}

Recording::~Recording() {
    for (void* address : allocations) release(address);
}

bool Recording::owns(const void* address) const {
    return std::find(allocations.begin(), allocations.end(), address) != allocations.end();
}

Stream& stream_of(void* handle) {
    static Stream& default_stream = *new Stream;
    static thread_local Stream thread_stream;
    size_t number = reinterpret_cast<size_t>(handle);
    if (number <= 1) return default_stream;
    return number == 2 ? thread_stream : *static_cast<Stream*>(handle);
}

void enqueue(void* handle, Work work) {
    Stream& stream = stream_of(handle);
    if (stream.recording) {
        stream.recording->work.push_back(std::move(work));
    } else {
        std::lock_guard<std::mutex> guard(stream.running);
        work();
    }
}

void tell_unsupported(const char* name) {
    static std::mutex lock;
    static std::set<std::string> told;
    std::lock_guard<std::mutex> guard(lock);
    if (told.insert(name).second) fprintf(stderr, "emulated GPU: %s is not emulated\n", name);
}

} // namespace emulator
