// libnccl: sums over the cards of one process. A sum is put on each card's stream, and is done once every card has come to it: what is
// put on the stream behind it waits so long.
#include "block.hpp"
#include "device.hpp"

#include <condition_variable>
#include <cstdio>
#include <map>
#include <set>

using namespace emulator;

namespace {

enum Result { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };

// Values of NCCL's enumerations.
enum DataType { FLOAT32 = 7 };
enum Operation { SUM = 0 };

// What a rank brings to a sum.
struct Part {
    const float* from;
    float* to;
    size_t count;
};

struct Sum {
    std::vector<Part> parts; // (ranks)
    size_t arrived = 0;
};

// The communicators of one ncclCommInitAll.
struct Clique {
    std::mutex lock;
    std::condition_variable changed;
    std::vector<int> cards; // (ranks)
    std::map<size_t, Sum> sums; // those that some rank has not come to, by their numbers
    size_t done = 0;            // how many are behind all ranks
    bool aborted = false;

    Clique(const int* cards, size_t ranks) : cards(cards, cards + ranks) {}
};

struct Communicator {
    std::shared_ptr<Clique> clique;
    size_t rank;
    int card;
    size_t begun = 0; // sums that this rank has come to
};

struct Call {
    Communicator* communicator;
    Part part;
    void* stream;
};

thread_local int depth = 0;
thread_local std::vector<Call> grouped;

// Each part of the numbers begins at another rank, as in a ring.
void add_up(const std::vector<Part>& parts) {
    size_t ranks = parts.size(), count = parts[0].count;
    for (size_t i = 0; i < count; i++) {
        size_t first = i * ranks / count;
        float sum = parts[first].from[i];
        for (size_t k = 1; k < ranks; k++) sum += parts[(first + k) % ranks].from[i];
        for (const Part& part : parts) part.to[i] = sum;
    }
}

void join(const Call& call) {
    Communicator& own = *call.communicator;
    std::shared_ptr<Clique> clique = own.clique;
    size_t number = own.begun++;
    finish(busy_stream_of(call.stream)); // What it sums may still have to be computed.
    {
        std::lock_guard<std::mutex> guard(clique->lock);
        Sum& sum = clique->sums[number];
        sum.parts.resize(clique->cards.size(), call.part);
        sum.parts[own.rank] = call.part;
        for (const Part& part : sum.parts) {
            if (part.count != call.part.count) {
                fail("ncclAllReduce: rank %zu brings %zu numbers to sum %zu, another %zu", own.rank, call.part.count, number, part.count);
            }
        }
        if (++sum.arrived == clique->cards.size()) {
            add_up(sum.parts);
            clique->sums.erase(number);
            clique->done++; // Every rank comes to the sums in their order.
            clique->changed.notify_all();
        }
    }
    Stream& stream = busy_stream_of(call.stream);
    std::lock_guard<std::mutex> guard(stream.listing);
    stream.awaited.push_back([clique, number] {
        std::unique_lock<std::mutex> guard(clique->lock);
        clique->changed.wait(guard, [&] { return clique->done > number || clique->aborted; });
    });
}

} // namespace

#define API extern "C" __attribute__((visibility("default")))

API const char* ncclGetErrorString(Result result) {
    switch (result) {
        case SUCCESS: return "no error";
        case UNHANDLED_CUDA_ERROR: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
        case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
        case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
        default: return "unknown result code";
    }
}

API Result ncclGetVersion(int* version) { return *version = 23203, SUCCESS; }

API Result ncclCommInitAll(Communicator** communicators, int count, const int* cards) {
    if (count < 1 || std::set<int>(cards, cards + count).size() != size_t(count)) return INVALID_USAGE;
    for (int i = 0; i < count; i++) {
        if (cards[i] < 0 || cards[i] >= card_count() || is_broken(cards[i])) return UNHANDLED_CUDA_ERROR;
    }
    auto clique = std::make_shared<Clique>(cards, size_t(count));
    for (int i = 0; i < count; i++) communicators[i] = new Communicator{clique, size_t(i), cards[i]};
    return SUCCESS;
}

API Result ncclCommDestroy(Communicator* communicator) { return delete communicator, SUCCESS; }

// Whoever waits is let go, and finds in its memory what was there before.
API Result ncclCommAbort(Communicator* communicator) {
    {
        std::lock_guard<std::mutex> guard(communicator->clique->lock);
        communicator->clique->aborted = true;
        communicator->clique->changed.notify_all();
    }
    return delete communicator, SUCCESS;
}

API Result ncclGroupStart() { return depth++, SUCCESS; }

API Result ncclGroupEnd() {
    if (depth == 0) return INVALID_USAGE;
    if (--depth > 0) return SUCCESS;
    std::vector<Call> calls;
    calls.swap(grouped);
    for (const Call& call : calls) join(call);
    return SUCCESS;
}

API Result ncclAllReduce(const float* from, float* to, size_t count, int type, int operation, Communicator* communicator, void* stream) {
    int card = communicator->card;
    if (type != FLOAT32 || operation != SUM) {
        fprintf(stderr, "emulated GPU: ncclAllReduce of type %d by operation %d is not emulated\n", type, operation);
        return INVALID_ARGUMENT;
    }
    if (busy_stream_of(stream).card != card || busy_stream_of(stream).recording) {
        fprintf(stderr, "emulated GPU: ncclAllReduce of card %d on another card's stream, or on one that captures\n", card);
        return INVALID_ARGUMENT;
    }
    if (!is_allocated(from, count * sizeof(float), card) || !is_allocated(to, count * sizeof(float), card)) {
        fail("ncclAllReduce: %zu numbers leave their allocation on card %d", count, card);
    }
    // Cards of one process are read from and written to directly.
    for (int other : communicator->clique->cards) {
        if (!is_reachable(from, other) || !is_reachable(to, other)) {
            fail("ncclAllReduce: card %d does not reach memory of card %d, whose pool was not opened to it", other, card);
        }
    }
    if (is_broken(card)) return UNHANDLED_CUDA_ERROR;
    grouped.push_back({communicator, {from, to, count}, stream});
    return ncclGroupStart(), ncclGroupEnd();
}
