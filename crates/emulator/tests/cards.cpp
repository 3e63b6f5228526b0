// Several cards: what is whose, and sums over them.
#include "check.hpp"
#include "cuda_api.hpp"

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_HANDLE = 400, ILLEGAL_ADDRESS = 700 };
enum { NCCL_UNHANDLED_CUDA_ERROR = 1, NCCL_INVALID_USAGE = 5 };
enum { FLOAT32 = 7, SUM = 0 };

void use_card(int card) {
    void* context = nullptr;
    check(cuDevicePrimaryCtxRetain(&context, card) == SUCCESS && cuCtxSetCurrent(context) == SUCCESS, "no context");
}

// A card with a stream, and so many numbers on it.
struct Card {
    int number;
    void* stream = nullptr;
    uint64_t numbers = 0;
    Card(int number, std::vector<float> values) : number(number) {
        use_card(number);
        cuStreamCreate(&stream, 0);
        check(cuMemAlloc_v2(&numbers, values.size() * sizeof(float)) == SUCCESS, "no memory");
        check(cuMemcpyHtoD_v2(numbers, values.data(), values.size() * sizeof(float)) == SUCCESS, "not copied");
    }
    ~Card() {
        cuMemFree_v2(numbers);
        cuStreamDestroy_v2(stream);
        use_card(0);
    }
    std::vector<float> read(size_t count) const {
        std::vector<float> values(count);
        use_card(number);
        check(cuStreamSynchronize(stream) == SUCCESS, "not synchronized");
        check(cuMemcpyDtoH_v2(values.data(), numbers, count * sizeof(float)) == SUCCESS, "not copied");
        return values;
    }
    int sum(void* communicator, size_t count) const {
        void* memory = reinterpret_cast<void*>(numbers);
        return ncclAllReduce(memory, memory, count, FLOAT32, SUM, communicator, stream);
    }
};

int copy_by_kernel(uint64_t to, uint64_t from, void* stream) {
    void *module = nullptr, *function = nullptr;
    unsigned count = 1;
    void* parameters[] = {&to, &from, &count};
    cuModuleLoadData(&module, "");
    cuModuleGetFunction(&function, module, "reversed");
    return cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 16, stream, parameters, nullptr);
}

} // namespace

void test_cards() {
    setenv("CUDA_EMULATOR_DEVICES", "3", 1);
    test("there are as many cards as CUDA_EMULATOR_DEVICES says, each with the memory that CUDA_EMULATOR_MEMORY gives it", [] {
        int count, device;
        check(cuDeviceGetCount(&count) == SUCCESS && count == 3, "3 cards");
        check(cuDeviceGet(&device, 2) == SUCCESS && device == 2 && cuDeviceGet(&device, 3) == INVALID_DEVICE, "no fourth");
        setenv("CUDA_EMULATOR_MEMORY", "2,1", 1);
        uint64_t first = 0, second = 0, third = 0;
        use_card(1);
        check(cuMemAlloc_v2(&first, 2 << 20) == OUT_OF_MEMORY, "2 MiB of the second card's 1");
        check(cuMemAlloc_v2(&second, 1 << 20) == SUCCESS, "1 MiB");
        use_card(0);
        check(cuMemAlloc_v2(&first, 2 << 20) == SUCCESS, "2 MiB of the first card's");
        use_card(2);
        check(cuMemAlloc_v2(&third, (1 << 20) + 1) == OUT_OF_MEMORY, "the third has as much as the second");
        cuMemFree_v2(first);
        cuMemFree_v2(second);
        unsetenv("CUDA_EMULATOR_MEMORY");
        use_card(0);
    });
    test("a card's stream takes neither another card's memory nor its kernels", [] {
        Card first(0, {1}), second(1, {2});
        use_card(1);
        float number = 3;
        uint64_t fresh;
        check(copy_by_kernel(second.numbers, second.numbers, second.stream) == SUCCESS, "its own kernel");
        check(copy_by_kernel(second.numbers, second.numbers, first.stream) == INVALID_HANDLE, "another's stream");
        check(cuMemcpyHtoD_v2(first.numbers, &number, 4) == INVALID_VALUE, "a copy to another's memory");
        check(cuMemAllocAsync(&fresh, 4, first.stream) == SUCCESS, "a stream's memory is its card's, whatever the context");
        check(cuMemFreeAsync(fresh, second.stream) == INVALID_VALUE && cuMemFreeAsync(fresh, first.stream) == SUCCESS, "freed");
        check_aborts("reversed on card 1 is given memory of card 0", [&] { copy_by_kernel(second.numbers, first.numbers, second.stream); });
    });
    test("a broken card does nothing any more, and says so at the next call", [] {
        check_aborts("broken as it should be", [] {
            Card card(2, {1});
            setenv("CUDA_EMULATOR_BROKEN", "2:1", 1);
            bool silent = copy_by_kernel(card.numbers, card.numbers, card.stream) == SUCCESS;
            bool told = cuStreamSynchronize(card.stream) == ILLEGAL_ADDRESS;
            int cards[] = {0, 2};
            void* communicators[2];
            if (silent && told && ncclCommInitAll(communicators, 2, cards) == NCCL_UNHANDLED_CUDA_ERROR) fprintf(stderr, "broken as it should be");
            abort(); // A card that broke down stays so as long as its process lives.
        });
    });
    test("a sum over three cards, each by a thread of its own, is on all of them", [] {
        std::vector<float> values[] = {{1, 2, 3}, {10, 20, 30}, {100, 200, 300}};
        int numbers[] = {0, 1, 2};
        void* communicators[3];
        check(ncclCommInitAll(communicators, 3, numbers) == SUCCESS, "communicators");
        std::vector<float> found[3];
        std::vector<std::thread> threads;
        for (int i = 0; i < 3; i++) {
            threads.emplace_back([&, i] {
                Card card(i, values[i]);
                ncclGroupStart();
                check(card.sum(communicators[i], 3) == SUCCESS, "sum");
                check(card.sum(communicators[i], 2) == SUCCESS, "another of the group");
                check(ncclGroupEnd() == SUCCESS, "group");
                found[i] = card.read(3);
            });
        }
        for (auto& thread : threads) thread.join();
        for (auto& sums : found) check(sums == std::vector<float>({333, 666, 333}), "333, then three times that of the first two");
        for (void* communicator : communicators) ncclCommDestroy(communicator);
    });
    test("one thread sums over its cards by a group, and a communicator of one changes nothing", [] {
        Card first(0, {1}), second(1, {2});
        int numbers[] = {1, 0}, twice[] = {1, 1};
        void *communicators[2], *alone;
        check(ncclCommInitAll(communicators, 2, twice) == NCCL_INVALID_USAGE, "a card twice");
        check(ncclCommInitAll(communicators, 2, numbers) == SUCCESS && ncclCommInitAll(&alone, 1, numbers) == SUCCESS, "communicators");
        ncclGroupStart();
        second.sum(communicators[0], 1);
        first.sum(communicators[1], 1);
        check(ncclGroupEnd() == SUCCESS && first.read(1)[0] == 3 && second.read(1)[0] == 3, "1 + 2");
        check(second.sum(alone, 1) == SUCCESS && second.read(1)[0] == 3, "alone");
        for (void* communicator : {communicators[0], communicators[1], alone}) ncclCommDestroy(communicator);
    });
    test("cards reach memory of another's pool once that is opened to them", [] {
        Card first(0, {1}), second(1, {2});
        int numbers[] = {0, 1}, access[] = {1, 1, 3}, own[] = {1, 0, 3};
        void *communicators[2], *pool;
        ncclCommInitAll(communicators, 2, numbers);
        uint64_t pooled;
        cuMemAllocAsync(&pooled, 4, first.stream);
        std::swap(first.numbers, pooled);
        float one = 1;
        use_card(0);
        cuMemcpyHtoD_v2(first.numbers, &one, 4);
        check_aborts("card 1 does not reach memory of card 0", [&] { first.sum(communicators[0], 1); });
        cuDeviceGetDefaultMemPool(&pool, 0);
        check(cuMemPoolSetAccess(pool, access, 1) == SUCCESS && cuMemPoolSetAccess(pool, own, 1) == INVALID_VALUE, "opened");
        ncclGroupStart();
        check(first.sum(communicators[0], 1) == SUCCESS && second.sum(communicators[1], 1) == SUCCESS, "sum");
        check(ncclGroupEnd() == SUCCESS && second.read(1)[0] == 3, "1 + 2");
        cuMemFree_v2(pooled);
        for (void* communicator : communicators) ncclCommDestroy(communicator);
    });
    test("who waits for a card that never comes is let go when the communicator is aborted", [] {
        int numbers[] = {0, 1};
        void* communicators[2];
        ncclCommInitAll(communicators, 2, numbers);
        std::atomic<bool> asked{false}, done{false};
        std::thread waiting([&] {
            Card card(0, {1});
            card.sum(communicators[0], 1);
            asked = true; // The call itself waits for nobody.
            check(card.read(1)[0] == 1, "what was there before");
            done = true;
        });
        while (!asked) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        check(!done, "went on without the other");
        for (void* communicator : communicators) ncclCommAbort(communicator);
        waiting.join();
    });
    unsetenv("CUDA_EMULATOR_DEVICES");
}
