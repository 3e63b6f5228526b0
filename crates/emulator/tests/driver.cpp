// The driver: memory, launches, streams and graphs.
#include "check.hpp"
#include "cuda_api.hpp"

#include <cstring>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900 };

// Device memory of this test.
struct Memory {
    uint64_t address = 0;
    explicit Memory(size_t bytes) { check(cuMemAlloc_v2(&address, bytes) == SUCCESS, "no memory"); }
    ~Memory() { check(cuMemFree_v2(address) == SUCCESS, "not freed"); }
    template <typename T> std::vector<T> read(size_t count) const {
        std::vector<T> values(count);
        check(cuMemcpyDtoH_v2(values.data(), address, count * sizeof(T)) == SUCCESS, "not copied");
        return values;
    }
};

void* function(const char* name) {
    void *module = nullptr, *function = nullptr;
    check(cuModuleLoadData(&module, "") == SUCCESS, "no module");
    check(cuModuleGetFunction(&function, module, name) == SUCCESS, std::string("no kernel ") + name);
    return function;
}

// y[i] = x[count - 1 - i] of 4 numbers.
int reverse(uint64_t y, uint64_t x, void* stream) {
    unsigned count = 4;
    void* parameters[] = {&y, &x, &count};
    return cuLaunchKernel(function("reversed"), 1, 1, 1, 32, 1, 1, 16, stream, parameters, nullptr);
}

} // namespace

void test_driver() {
    test("fresh memory holds NaN, and is counted", [] {
        size_t free_before, free_after, total;
        cuMemGetInfo_v2(&free_before, &total);
        check(total == 1024u << 20, "1 GiB by default");
        Memory memory(4000);
        cuMemGetInfo_v2(&free_after, &total);
        check(free_before - free_after == 4000, "bytes that are missing");
        for (float x : memory.read<float>(1000)) check(std::isnan(x), "a number that nobody wrote");
    });
    test("memory ends where CUDA_EMULATOR_MEMORY says", [] {
        setenv("CUDA_EMULATOR_MEMORY", "2", 1);
        uint64_t first = 0, second = 0;
        check(cuMemAlloc_v2(&first, 1 << 20) == SUCCESS, "the first MiB");
        check(cuMemAlloc_v2(&second, (1 << 20) + 1) == OUT_OF_MEMORY, "a byte too many");
        check(cuMemAllocAsync(&second, 1 << 20, nullptr) == SUCCESS, "the second MiB");
        check(cuMemFree_v2(first) == SUCCESS && cuMemFreeAsync(second, nullptr) == SUCCESS, "not freed");
        unsetenv("CUDA_EMULATOR_MEMORY");
    });
    test("a copy beyond an allocation, and a free of what is none, are refused", [] {
        Memory memory(16);
        char bytes[32] = {};
        check(cuMemcpyHtoD_v2(memory.address, bytes, 17) == INVALID_VALUE, "17 of 16 bytes written");
        check(cuMemcpyDtoH_v2(bytes, memory.address + 8, 9) == INVALID_VALUE, "9 of the last 8 bytes read");
        check(cuMemcpyHtoD_v2(memory.address + 8, bytes, 8) == SUCCESS, "the last 8 bytes");
        check(cuMemcpyHtoD_v2(reinterpret_cast<uint64_t>(bytes), bytes, 8) == INVALID_VALUE, "host memory as the device's");
        check(cuMemFree_v2(memory.address + 8) == INVALID_VALUE, "freed in its middle");
    });
    test("a kernel that writes behind an allocation is told when it is freed", [] {
#ifdef __SANITIZE_ADDRESS__
        std::string message = "use-after-poison"; // and where, at once
#else
        std::string message = "kernel behind_memory, block (0, 0, 0): somebody wrote 3 bytes behind an allocation of 10 bytes";
#endif
        check_aborts(message, [] {
            uint64_t bytes;
            unsigned at = 12;
            cuMemAlloc_v2(&bytes, 10);
            void* parameters[] = {&bytes, &at};
            cuLaunchKernel(function("behind_memory"), 1, 1, 1, 1, 1, 1, 0, nullptr, parameters, nullptr);
            cuMemFree_v2(bytes);
        });
    });
    test("kernels are launched by name, within the limits of a GPU", [] {
        int numbers[] = {1, 2, 3, 4};
        Memory x(16), y(16);
        cuMemcpyHtoD_v2(x.address, numbers, 16);
        check(reverse(y.address, x.address, nullptr) == SUCCESS, "launch");
        check(y.read<int>(4) == std::vector<int>({4, 3, 2, 1}), "reversed");
        void *missing, *known = function("reversed");
        check(cuModuleGetFunction(&missing, nullptr, "missing") == NOT_FOUND, "a kernel that is not there");
        void* none[] = {nullptr};
        check(cuLaunchKernel(known, 1, 1, 1, 1025, 1, 1, 0, nullptr, none, nullptr) == INVALID_VALUE, "1025 threads");
        check(cuLaunchKernel(known, 1, 65536, 1, 1, 1, 1, 0, nullptr, none, nullptr) == INVALID_VALUE, "65536 blocks in y");
        check(cuLaunchKernel(known, 0, 1, 1, 1, 1, 1, 0, nullptr, none, nullptr) == INVALID_VALUE, "no block");
        check(cuLaunchKernel(known, 1, 1, 1, 1, 1, 1, 49153, nullptr, none, nullptr) == INVALID_VALUE, "shared memory not asked for");
        check(cuFuncSetAttribute(known, 8, 232449) == INVALID_VALUE, "more shared memory than there is");
        check(cuMulticastCreate(nullptr, nullptr) == NOT_SUPPORTED, "a function that is not emulated");
    });
    test("a captured stream does nothing until its graph is launched, then as often as that", [] {
        int numbers[] = {1, 2, 3, 4};
        Memory x(16), y(16);
        void *stream, *other, *event, *graph, *executable;
        cuStreamCreate(&stream, 0);
        cuStreamCreate(&other, 0);
        cuEventCreate(&event, 0);
        check(cuStreamBeginCapture_v2(nullptr, 0) == CAPTURE_UNSUPPORTED, "the default stream");
        check(cuStreamBeginCapture_v2(stream, 0) == SUCCESS, "begin");
        check(cuStreamSynchronize(stream) == CAPTURE_UNSUPPORTED, "a synchronization meanwhile");
        uint64_t between;
        check(cuMemAllocAsync(&between, 16, stream) == SUCCESS, "memory of the graph");
        reverse(between, x.address, stream);
        cuEventRecord(event, stream);
        cuStreamWaitEvent(other, event, 0); // captured with it from here on
        reverse(y.address, between, other);
        check(cuMemFreeAsync(between, stream) == SUCCESS, "freed by the graph");
        check(cuStreamEndCapture(stream, &graph) == SUCCESS, "end");
        check(cuGraphInstantiateWithFlags(&executable, graph, 0) == SUCCESS && cuGraphDestroy(graph) == SUCCESS, "instantiated");
        for (int i = 0; i < 2; i++) {
            numbers[0] = 10 + i;
            cuMemcpyHtoD_v2(x.address, numbers, 16);
            if (i == 0) check(y.read<int>(1)[0] == -1, "run before its launch");
            check(cuGraphLaunch(executable, stream) == SUCCESS && cuStreamSynchronize(other) == SUCCESS, "launch");
            check(y.read<int>(4) == std::vector<int>({10 + i, 2, 3, 4}), "launch " + std::to_string(i));
        }
        check(cuGraphExecDestroy(executable) == SUCCESS && cuMemFree_v2(between) == INVALID_VALUE, "the graph's memory went with it");
        cuEventDestroy_v2(event);
        cuStreamDestroy_v2(stream);
        cuStreamDestroy_v2(other);
    });
    test("with CUDA_EMULATOR_LATE a stream works when somebody waits for it, in its own order alone", [] {
        setenv("CUDA_EMULATOR_LATE", "1", 1);
        int numbers[] = {1, 2, 3, 4};
        uint64_t x, y;
        void *stream, *other;
        cuStreamCreate(&stream, 0);
        cuStreamCreate(&other, 0);
        cuMemAllocAsync(&x, 16, stream);
        cuMemAllocAsync(&y, 16, stream);
        cuMemcpyHtoDAsync_v2(x, numbers, 16, stream);
        numbers[0] = 10; // The copy has been told what to write.
        reverse(y, x, stream);
        int found[4];
        cuMemcpyDtoHAsync_v2(found, y, 16, other);
        check(found[0] == -1, "another stream finds what was there before");
        cuMemcpyDtoHAsync_v2(found, y, 16, stream);
        check(std::vector<int>(found, found + 4) == std::vector<int>({4, 3, 2, 1}), "the same stream finds what it has done");
        cuMemFreeAsync(x, stream);
        cuMemcpyDtoHAsync_v2(found, x, 16, other);
        check(found[0] == 1, "not freed before its turn");
        check(cuStreamSynchronize(stream) == SUCCESS && cuMemFreeAsync(x, stream) == INVALID_VALUE, "freed");
        cuMemFreeAsync(y, stream);
        cuStreamDestroy_v2(stream);
        cuStreamDestroy_v2(other);
        unsetenv("CUDA_EMULATOR_LATE");
    });
}
