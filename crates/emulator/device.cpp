#include "device.hpp"
#include "block.hpp"

#include <algorithm>
#include <atomic>
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

struct Allocation {
    size_t bytes;
    int card;
    bool pooled;
};

struct Memory {
    std::mutex lock;
    std::map<unsigned char*, Allocation> allocations; // by their first byte
    size_t used[MAX_CARDS] = {};
    bool opened[MAX_CARDS][MAX_CARDS] = {}; // whose pool to whom

    // The one that an address lies in or stands right behind.
    std::map<unsigned char*, Allocation>::iterator find(const void* address) {
        auto next = allocations.upper_bound(static_cast<unsigned char*>(const_cast<void*>(address)));
        if (next == allocations.begin()) return allocations.end();
        auto found = std::prev(next);
        return size_t(static_cast<const unsigned char*>(address) - found->first) <= found->second.bytes ? found : allocations.end();
    }
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

int card_count() {
    const char* count = getenv("CUDA_EMULATOR_DEVICES");
    return count ? std::clamp(atoi(count), 0, MAX_CARDS) : 1;
}

static thread_local int current = 0;
int current_card() { return current; }
void set_current_card(int card) { current = card; }

static std::atomic<long> launches[MAX_CARDS];

bool is_broken(int card) {
    const char* broken = getenv("CUDA_EMULATOR_BROKEN");
    int number;
    long launch;
    return broken && sscanf(broken, "%d:%ld", &number, &launch) == 2 && number == card && launches[card] >= launch;
}

void count_launch(int card) { launches[card]++; }

static std::atomic<uint64_t> all_allocations, all_launches;
extern "C" uint64_t emulator_allocations() { return all_allocations; }
extern "C" uint64_t emulator_launches() { return all_launches; }

size_t memory_total(int card) {
    const char* mebibytes = getenv("CUDA_EMULATOR_MEMORY");
    if (!mebibytes) return size_t(1) << 30;
    for (const char* next; card > 0 && (next = strchr(mebibytes, ',')); card--) mebibytes = next + 1;
    return size_t(strtoull(mebibytes, nullptr, 10)) << 20;
}

size_t memory_used(int card) {
    std::lock_guard<std::mutex> guard(memory().lock);
    return memory().used[card];
}

void* allocate(size_t bytes, int card, bool pooled) {
    std::lock_guard<std::mutex> guard(memory().lock);
    size_t total = memory_total(card);
    if (bytes > total || memory().used[card] > total - bytes) return nullptr;
    size_t whole = (bytes + 2 * GUARD_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    auto* raw = static_cast<unsigned char*>(std::aligned_alloc(ALIGNMENT, whole));
    if (!raw) return nullptr;
    memset(raw, GUARD, whole);
    unsigned char* begin = raw + GUARD_BYTES;
    memset(begin, POISON, bytes);
    ASAN_POISON_MEMORY_REGION(raw, whole);
    ASAN_UNPOISON_MEMORY_REGION(begin, bytes);
    memory().allocations[begin] = {bytes, card, pooled};
    all_allocations++;
    memory().used[card] += bytes;
    return begin;
}

bool release(void* address) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto found = memory().allocations.find(static_cast<unsigned char*>(address));
    if (found == memory().allocations.end()) return false;
    auto [begin, allocation] = *found;
    size_t bytes = allocation.bytes;
    check_guard(begin, bytes);
    memset(begin, POISON, bytes); // What reads it later reads NaN, if nobody has the place by then.
    memory().used[allocation.card] -= bytes;
    memory().allocations.erase(found);
    ASAN_UNPOISON_MEMORY_REGION(begin - GUARD_BYTES, bytes + 2 * GUARD_BYTES);
    free(begin - GUARD_BYTES);
    return true;
}

bool forget(void* address) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto found = memory().allocations.find(static_cast<unsigned char*>(address));
    if (found == memory().allocations.end()) return false;
    check_guard(found->first, found->second.bytes);
    memset(found->first, POISON, found->second.bytes);
    return true;
}

bool is_allocated(const void* address, size_t bytes, int card) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto found = memory().find(address);
    if (found == memory().allocations.end()) return false;
    auto [begin, allocation] = *found;
    size_t before = size_t(static_cast<const unsigned char*>(address) - begin);
    return allocation.card == card && bytes <= allocation.bytes - before;
}

void open_pool(int card, int reader) {
    std::lock_guard<std::mutex> guard(memory().lock);
    memory().opened[card][reader] = true;
}

bool is_reachable(const void* address, int reader) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto found = memory().find(address);
    if (found == memory().allocations.end()) return false;
    const Allocation& allocation = found->second;
    return allocation.card == reader || !allocation.pooled || memory().opened[allocation.card][reader];
}

int card_of(const void* address) {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto found = memory().find(address);
    return found == memory().allocations.end() ? -1 : found->second.card;
}

void check_guards() {
    std::lock_guard<std::mutex> guard(memory().lock);
    for (auto [begin, allocation] : memory().allocations) check_guard(begin, allocation.bytes);
}

Recording::~Recording() {
    for (void* address : allocations) release(address);
}

bool Recording::owns(const void* address) const {
    return std::find(allocations.begin(), allocations.end(), address) != allocations.end();
}

bool is_late() { return getenv("CUDA_EMULATOR_LATE") != nullptr; }

// Never destroyed, as the memory.
static std::mutex& streams_lock() {
    static std::mutex& lock = *new std::mutex;
    return lock;
}
static std::set<Stream*>& streams() {
    static std::set<Stream*>& streams = *new std::set<Stream*>;
    return streams;
}

Stream::Stream() {
    std::lock_guard<std::mutex> guard(streams_lock());
    streams().insert(this);
}

Stream::~Stream() {
    std::lock_guard<std::mutex> guard(streams_lock());
    streams().erase(this);
}

void finish(Stream& stream) {
    if (!is_late()) return;
    std::lock_guard<std::mutex> running(stream.running);
    for (;;) {
        Work work;
        {
            std::lock_guard<std::mutex> guard(stream.listing);
            if (stream.late.empty()) return;
            work = std::move(stream.late.front());
            stream.late.pop_front();
        }
        work();
    }
}

void finish_card(int card) {
    if (!is_late()) return;
    std::vector<Stream*> own;
    {
        std::lock_guard<std::mutex> guard(streams_lock());
        std::copy_if(streams().begin(), streams().end(), std::back_inserter(own), [card](Stream* stream) { return stream->card == card; });
    }
    for (Stream* stream : own) finish(*stream);
}

Stream& busy_stream_of(void* handle) {
    static Stream* default_streams = new Stream[MAX_CARDS];
    static thread_local Stream thread_streams[MAX_CARDS];
    size_t number = reinterpret_cast<size_t>(handle);
    if (number > 2) return *static_cast<Stream*>(handle);
    Stream& stream = (number == 2 ? thread_streams : default_streams)[current_card()];
    stream.card = current_card();
    return stream;
}

Stream& stream_of(void* handle) {
    Stream& stream = busy_stream_of(handle);
    std::vector<Work> awaited;
    {
        std::lock_guard<std::mutex> guard(stream.listing);
        awaited.swap(stream.awaited);
    }
    for (const Work& wait : awaited) wait();
    return stream;
}

void enqueue(void* handle, Work work) {
    Stream& stream = stream_of(handle);
    all_launches++;
    if (stream.recording) {
        stream.recording->work.push_back(std::move(work));
    } else if (is_late()) {
        std::lock_guard<std::mutex> guard(stream.listing);
        stream.late.push_back(std::move(work));
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
