// CUDA's libraries without a GPU behind them: every function returns at once, nothing is computed, and what is read back is zeros. What
// time a program then takes is the host's alone. Each function and each kernel counts its calls.
#include "attributes.hpp"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

// Calls of a function, or launches of a kernel.
struct Calls {
    std::string name;
    std::atomic<uint64_t> count{0};
    Calls* next;
    static std::atomic<Calls*> all;

    explicit Calls(std::string name) : name(std::move(name)), next(all.load()) {
        while (!all.compare_exchange_weak(next, this)) {}
    }
    void add() { count.fetch_add(1, std::memory_order_relaxed); }
};
std::atomic<Calls*> Calls::all{nullptr};

// As the program ends, to the file that CUDA_IDLE_COUNTS names: a name and a count in each line.
__attribute__((destructor)) void write_counts() {
    const char* path = getenv("CUDA_IDLE_COUNTS");
    FILE* file = path ? fopen(path, "w") : nullptr;
    if (path && !file) fprintf(stderr, "idle GPU: cannot write to %s, which CUDA_IDLE_COUNTS names\n", path);
    if (!file) return;
    for (Calls* calls = Calls::all; calls; calls = calls->next) {
        if (calls->count) fprintf(file, "%s\t%llu\n", calls->name.c_str(), static_cast<unsigned long long>(calls->count));
    }
    fclose(file);
}

// Of things that only have an address.
char something;

thread_local void* current_context = nullptr;

// Memory is addresses where nothing lies, and none comes twice.
constexpr uint64_t ALIGNMENT = 512, FIRST = uint64_t(1) << 46;
std::atomic<uint64_t> next_address{FIRST};

int allocate(uint64_t* address, size_t bytes) {
    *address = next_address.fetch_add((bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT);
    return 0;
}

constexpr size_t MEMORY = size_t(64) << 30;
constexpr int NOT_SUPPORTED = 801;

// cublasLtMatmulHeuristicResult_t: an algorithm of 8 words, the workspace's bytes, a status, waves, reserved words.
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

} // namespace

namespace emulator {

// What other functions of the libraries say, which unsupported.cpp has.
void tell_unsupported(const char* name) { fprintf(stderr, "idle GPU: %s is not there\n", name); }

} // namespace emulator

// A function that succeeds, having done what stands behind its parameters.
#define FUNCTION(name, parameters, ...) \
    static Calls name##_calls(#name); \
    extern "C" __attribute__((visibility("default"))) int name parameters { \
        name##_calls.add(); \
        __VA_ARGS__; \
        return 0; \
    }
// A function whose arguments do not matter.
#define IGNORED(name) FUNCTION(name, (...), )

// ---- libcuda ----

FUNCTION(cuGetErrorName, (int, const char** name), *name = "CUDA_ERROR_UNKNOWN")
FUNCTION(cuGetErrorString, (int, const char** text), *text = "a function that the idle GPU has not")
IGNORED(cuInit)
FUNCTION(cuDriverGetVersion, (int* version), *version = 13000)
FUNCTION(cuDeviceGetCount, (int* count), *count = 1)
FUNCTION(cuDeviceGet, (int* device, int), *device = 0)
FUNCTION(cuDeviceGetName, (char* name, int length, int), snprintf(name, size_t(length), "Idle GPU"))
FUNCTION(cuDeviceGetUuid_v2, (unsigned char* uuid, int), memset(uuid, 0, 16))
FUNCTION(cuDeviceTotalMem_v2, (size_t* bytes, int), *bytes = MEMORY)
FUNCTION(cuDeviceGetAttribute, (int* value, int attribute, int), {
    auto known = emulator::DEVICE_ATTRIBUTES.find(attribute);
    if (known == emulator::DEVICE_ATTRIBUTES.end()) return NOT_SUPPORTED;
    *value = known->second;
})

FUNCTION(cuDevicePrimaryCtxRetain, (void** context, int), *context = &something)
IGNORED(cuDevicePrimaryCtxRelease_v2)
IGNORED(cuDevicePrimaryCtxSetFlags_v2)
FUNCTION(cuCtxGetCurrent, (void** context), *context = current_context)
FUNCTION(cuCtxSetCurrent, (void* context), current_context = context)
FUNCTION(cuCtxGetDevice, (int* device), *device = 0)
IGNORED(cuCtxSynchronize)
IGNORED(cuCtxSetFlags)
FUNCTION(cuCtxGetStreamPriorityRange, (int* least, int* greatest), *least = *greatest = 0)

FUNCTION(cuMemGetInfo_v2, (size_t* free, size_t* total), *free = *total = MEMORY)
FUNCTION(cuMemAlloc_v2, (uint64_t* address, size_t bytes), return allocate(address, bytes))
FUNCTION(cuMemAllocAsync, (uint64_t* address, size_t bytes, void*), return allocate(address, bytes))
IGNORED(cuMemFree_v2)
IGNORED(cuMemFreeAsync)
FUNCTION(cuMemHostAlloc, (void** address, size_t bytes, unsigned), *address = malloc(bytes))
FUNCTION(cuMemAllocHost_v2, (void** address, size_t bytes), *address = malloc(bytes))
FUNCTION(cuMemFreeHost, (void* address), free(address))
FUNCTION(cuDeviceGetDefaultMemPool, (void** pool, int), *pool = &something)
FUNCTION(cuDeviceGetMemPool, (void** pool, int), *pool = &something)
IGNORED(cuMemPoolSetAttribute)
FUNCTION(cuMemPoolGetAttribute, (void*, int, void* value), *static_cast<uint64_t*>(value) = 0)
IGNORED(cuMemPoolTrimTo)

IGNORED(cuMemcpyHtoD_v2)
IGNORED(cuMemcpyHtoDAsync_v2)
IGNORED(cuMemcpyDtoD_v2)
IGNORED(cuMemcpyDtoDAsync_v2)
FUNCTION(cuMemcpyDtoH_v2, (void* to, uint64_t, size_t bytes), memset(to, 0, bytes))
FUNCTION(cuMemcpyDtoHAsync_v2, (void* to, uint64_t, size_t bytes, void*), memset(to, 0, bytes))
IGNORED(cuMemsetD8_v2)
IGNORED(cuMemsetD16_v2)
IGNORED(cuMemsetD32_v2)
IGNORED(cuMemsetD8Async)
IGNORED(cuMemsetD16Async)
IGNORED(cuMemsetD32Async)

FUNCTION(cuStreamCreate, (void** stream, unsigned), *stream = new char)
FUNCTION(cuStreamCreateWithPriority, (void** stream, unsigned, int), *stream = new char)
FUNCTION(cuStreamDestroy_v2, (void* stream), delete static_cast<char*>(stream))
IGNORED(cuStreamSynchronize)
IGNORED(cuStreamQuery)
IGNORED(cuStreamWaitEvent)
FUNCTION(cuStreamIsCapturing, (void*, int* status), *status = 0)
FUNCTION(cuEventCreate, (void** event, unsigned), *event = &something)
IGNORED(cuEventDestroy_v2)
IGNORED(cuEventQuery)
IGNORED(cuEventRecord)
IGNORED(cuEventSynchronize)
FUNCTION(cuEventElapsedTime_v2, (float* milliseconds, void*, void*), *milliseconds = 0)

FUNCTION(cuModuleLoadData, (void** module, const void*), *module = &something)
IGNORED(cuModuleUnload)
FUNCTION(cuModuleGetFunction, (void** function, void*, const char* name), {
    static std::mutex lock;
    static std::map<std::string, Calls*> kernels;
    std::lock_guard<std::mutex> guard(lock);
    Calls*& kernel = kernels[name];
    if (!kernel) kernel = new Calls("kernel " + std::string(name));
    *function = kernel;
})
IGNORED(cuFuncSetAttribute)
FUNCTION(cuFuncGetAttribute, (int* value, int, void*), *value = 1024)
FUNCTION(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int* blocks, void*, int, size_t), *blocks = 1)
FUNCTION(cuLaunchKernel, (void* kernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**),
    static_cast<Calls*>(kernel)->add())

// ---- libcublas, libcublasLt ----

FUNCTION(cublasCreate_v2, (void** handle), *handle = &something)
IGNORED(cublasDestroy_v2)
IGNORED(cublasSetStream_v2)
IGNORED(cublasSetWorkspace_v2)
IGNORED(cublasSetMathMode)
FUNCTION(cublasGetMathMode, (void*, int* mode), *mode = 0)
IGNORED(cublasGemmEx)
IGNORED(cublasGemmStridedBatchedEx)
IGNORED(cublasSgemm_v2)
IGNORED(cublasSgemmStridedBatched)

FUNCTION(cublasLtCreate, (void** handle), *handle = &something)
IGNORED(cublasLtDestroy)
FUNCTION(cublasLtMatmulDescCreate, (void** description, int, int), *description = new char)
FUNCTION(cublasLtMatmulDescDestroy, (void* description), delete static_cast<char*>(description))
IGNORED(cublasLtMatmulDescSetAttribute)
FUNCTION(cublasLtMatrixLayoutCreate, (void** layout, int, uint64_t, uint64_t, int64_t), *layout = new char)
FUNCTION(cublasLtMatrixLayoutDestroy, (void* layout), delete static_cast<char*>(layout))
IGNORED(cublasLtMatrixLayoutSetAttribute)
FUNCTION(cublasLtMatmulPreferenceCreate, (void** preference), *preference = new char)
FUNCTION(cublasLtMatmulPreferenceDestroy, (void* preference), delete static_cast<char*>(preference))
IGNORED(cublasLtMatmulPreferenceSetAttribute)
FUNCTION(cublasLtMatmulAlgoGetHeuristic,
    (void*, void*, void*, void*, void*, void*, void*, int requested, Heuristic* results, int* found), {
        for (int i = 0; i < requested; i++) results[i] = {};
        *found = requested;
    })
FUNCTION(cublasLtMatmulAlgoCheck, (void*, void*, void*, void*, void*, void*, const void*, Heuristic* result), *result = {})
IGNORED(cublasLtMatmul)

// ---- libcurand ----

FUNCTION(curandCreateGenerator, (void** generator, int), *generator = &something)
IGNORED(curandDestroyGenerator)
IGNORED(curandSetStream)
IGNORED(curandSetPseudoRandomGeneratorSeed)
IGNORED(curandSetGeneratorOffset)
IGNORED(curandGenerateUniform)
IGNORED(curandGenerateNormal)
