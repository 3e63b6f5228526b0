// libcuda: the driver's functions that a program of cards, streams, events and graphs needs.
#include "attributes.hpp"
#include "device.hpp"
#include "registry.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

using namespace emulator;

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    UNSUPPORTED_LIMIT = 215,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_UNMATCHED = 903,
};

struct ResultName {
    Result result;
    const char* name;
    const char* text;
};

constexpr ResultName RESULT_NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {UNSUPPORTED_LIMIT, "CUDA_ERROR_UNSUPPORTED_LIMIT", "limit is not supported on this architecture"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not initiated in this stream"},
};

// Things of each card that only have an address.
char contexts[MAX_CARDS], modules[MAX_CARDS], pools[MAX_CARDS];
thread_local void* current_context = nullptr;

bool is_card(int number) { return 0 <= number && number < card_count(); }

// What every call answers once a card has broken down.
Result state_of(int card) { return is_broken(card) ? ILLEGAL_ADDRESS : SUCCESS; }

// A kernel as a program holds it, with what the program asked for.
struct Function {
    const Kernel* kernel;
    int card;
    int max_dynamic_shared = MAX_SHARED;
};

struct Event {
    std::chrono::steady_clock::time_point time;
    std::weak_ptr<Recording> recording; // of the stream that recorded it, when that was capturing
};

struct Graph {
    std::shared_ptr<Recording> recording;
};

bool is_capturing(void* stream) { return stream_of(stream).recording != nullptr; }

void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

Result copy(void* to, const void* from, size_t bytes, void* stream) {
    int card = stream_of(stream).card;
    if (is_broken(card)) return state_of(card);
    enqueue(stream, [=] { memcpy(to, from, bytes); });
    return SUCCESS;
}

// Memory of the program's is read before the call returns, and written when it returns: the driver does so with what is not pinned.
Result copy_in(void* to, const void* from, size_t bytes, void* stream) {
    if (!is_late() || is_capturing(stream)) return copy(to, from, bytes, stream);
    int card = stream_of(stream).card;
    if (is_broken(card)) return state_of(card);
    auto* first = static_cast<const unsigned char*>(from);
    enqueue(stream, [to, own = std::vector<unsigned char>(first, first + bytes)] { memcpy(to, own.data(), own.size()); });
    return SUCCESS;
}

Result copy_out(void* to, const void* from, size_t bytes, void* stream) {
    Result result = copy(to, from, bytes, stream);
    finish(stream_of(stream));
    return result;
}

template <typename T> Result fill(uint64_t to, T value, size_t count, void* stream) {
    int card = stream_of(stream).card;
    if (is_broken(card)) return state_of(card);
    if (!is_allocated(pointer(to), count * sizeof(T), card) || to % sizeof(T) != 0) return INVALID_VALUE;
    enqueue(stream, [=] {
        T* values = static_cast<T*>(pointer(to));
        for (size_t i = 0; i < count; i++) values[i] = value;
    });
    return SUCCESS;
}

// The kernel's parameters as they are now: they may be gone when a graph runs.
struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    size_t shared_bytes;
    std::vector<std::vector<unsigned char>> parameters;

    Launch(const Kernel* kernel, dim3 grid, dim3 block, size_t shared_bytes, void** given)
        : kernel(kernel), grid(grid), block(block), shared_bytes(shared_bytes) {
        for (unsigned i = 0; i < kernel->parameter_count; i++) {
            auto* bytes = static_cast<const unsigned char*>(given[i]);
            parameters.emplace_back(bytes, bytes + kernel->parameter_sizes[i]);
        }
    }

    // Of the kernel's parameters those that are addresses are known by what lies there. Addresses within memory are not looked at.
    void check_memory(int card) const {
        for (size_t i = 0; i < parameters.size(); i++) {
            uint64_t address;
            if (parameters[i].size() != sizeof address) continue;
            memcpy(&address, parameters[i].data(), sizeof address);
            int owner = card_of(pointer(address));
            if (owner >= 0 && owner != card) fail("%s on card %d is given memory of card %d", kernel->name, card, owner);
        }
    }

    void operator()() {
        std::vector<void*> pointers;
        for (auto& parameter : parameters) pointers.push_back(parameter.data());
        run(*kernel, grid, block, shared_bytes, pointers.data());
        if (getenv("CUDA_EMULATOR_CHECK")) check_guards();
    }
};

} // namespace

#define API extern "C" __attribute__((visibility("default")))

// ---- Errors, device, context ----

API Result cuGetErrorName(Result error, const char** name) {
    for (const ResultName& known : RESULT_NAMES) {
        if (known.result == error) return *name = known.name, SUCCESS;
    }
    return *name = nullptr, INVALID_VALUE;
}

API Result cuGetErrorString(Result error, const char** text) {
    for (const ResultName& known : RESULT_NAMES) {
        if (known.result == error) return *text = known.text, SUCCESS;
    }
    return *text = nullptr, INVALID_VALUE;
}

API Result cuInit(unsigned) { return SUCCESS; }
API Result cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
API Result cuDeviceGetCount(int* count) { return *count = card_count(), SUCCESS; }
API Result cuDeviceGet(int* device, int ordinal) { return is_card(ordinal) ? (*device = ordinal, SUCCESS) : INVALID_DEVICE; }
API Result cuDeviceGetName(char* name, int length, int) { return snprintf(name, size_t(length), "Emulated GPU"), SUCCESS; }
API Result cuDeviceGetUuid_v2(unsigned char* uuid, int device) { return memset(uuid, device, 16), SUCCESS; }
API Result cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = memory_total(device), SUCCESS; }

API Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    auto known = DEVICE_ATTRIBUTES.find(attribute);
    if (known == DEVICE_ATTRIBUTES.end()) {
        tell_unsupported(("device attribute " + std::to_string(attribute)).c_str());
        return INVALID_VALUE;
    }
    return *value = attribute == 33 ? device : known->second, SUCCESS;
}

API Result cuDevicePrimaryCtxRetain(void** context, int device) {
    return is_card(device) ? (*context = &contexts[device], SUCCESS) : INVALID_DEVICE;
}
API Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API Result cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
API Result cuCtxGetCurrent(void** context) { return *context = current_context, SUCCESS; }
API Result cuCtxSetCurrent(void* context) {
    set_current_card(context ? int(static_cast<char*>(context) - contexts) : 0);
    return current_context = context, SUCCESS;
}
API Result cuCtxGetDevice(int* device) { return *device = current_card(), current_context ? SUCCESS : INVALID_CONTEXT; }
API Result cuCtxSynchronize() { return finish_card(current_card()), state_of(current_card()); }
API Result cuCtxSetFlags(unsigned) { return SUCCESS; }
API Result cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = *greatest = 0, SUCCESS; }

// ---- Memory ----

API Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = memory_total(current_card());
    *free = *total - std::min(*total, memory_used(current_card()));
    return SUCCESS;
}

static Result allocate_on(int card, uint64_t* address, size_t bytes, bool pooled) {
    if (is_broken(card)) return state_of(card);
    if (bytes == 0) return INVALID_VALUE;
    void* memory = allocate(bytes, card, pooled);
    if (!memory) {
        finish_card(card); // What is to be freed then is.
        memory = allocate(bytes, card, pooled);
    }
    *address = reinterpret_cast<uint64_t>(memory);
    return memory ? SUCCESS : OUT_OF_MEMORY;
}

API Result cuMemAlloc_v2(uint64_t* address, size_t bytes) { return allocate_on(current_card(), address, bytes, false); }

API Result cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    Result result = allocate_on(busy_stream_of(stream).card, address, bytes, true);
    if (result == SUCCESS && is_capturing(stream)) {
        stream_of(stream).recording->allocations.push_back(pointer(*address));
        enqueue(stream, [memory = pointer(*address)] { forget(memory); });
    }
    return result;
}

API Result cuMemFree_v2(uint64_t address) {
    finish_card(current_card());
    return address == 0 || release(pointer(address)) ? SUCCESS : INVALID_VALUE;
}

// What a capturing stream allocated belongs to its graph: it is only forgotten.
API Result cuMemFreeAsync(uint64_t address, void* stream) {
    Stream& of = stream_of(stream);
    int owner = card_of(pointer(address));
    if (owner >= 0 && owner != of.card) return INVALID_VALUE;
    if (!of.recording && is_late()) {
        if (address != 0 && owner < 0) return INVALID_VALUE;
        enqueue(stream, [=] {
            if (address != 0 && !release(pointer(address))) fail("memory was freed twice");
        });
        return SUCCESS;
    }
    if (!of.recording) {
        std::lock_guard<std::mutex> guard(of.running);
        return cuMemFree_v2(address);
    }
    if (!of.recording->owns(pointer(address))) return INVALID_VALUE;
    enqueue(stream, [=] { forget(pointer(address)); });
    return SUCCESS;
}

API Result cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}
API Result cuMemAllocHost_v2(void** address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
API Result cuMemFreeHost(void* address) { return free(address), SUCCESS; }

API Result cuDeviceGetDefaultMemPool(void** pool, int device) { return *pool = &pools[device], SUCCESS; }
API Result cuDeviceGetMemPool(void** pool, int device) { return *pool = &pools[device], SUCCESS; }
API Result cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API Result cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

API Result cuDeviceCanAccessPeer(int* can, int device, int peer) { return *can = device != peer, SUCCESS; }

struct Access {
    int kind, card, flags;
};

// Of the second kind, a device, by flags 3: to read and to write.
API Result cuMemPoolSetAccess(void* pool, const Access* accesses, size_t count) {
    int card = int(static_cast<char*>(pool) - pools);
    for (const Access* access = accesses; access < accesses + count; access++) {
        if (access->kind != 1 || access->flags != 3 || !is_card(access->card) || access->card == card) return INVALID_VALUE;
        open_pool(card, access->card);
    }
    return SUCCESS;
}

// 4 to 8: the release threshold; reserved memory now and at most; used memory now and at most.
API Result cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    if (attribute != 5 && attribute != 7) return NOT_SUPPORTED;
    return *static_cast<uint64_t*>(value) = memory_used(int(static_cast<char*>(pool) - pools)), SUCCESS;
}

API Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    bool known = is_allocated(pointer(to), bytes, stream_of(stream).card);
    return known ? copy_in(pointer(to), from, bytes, stream) : INVALID_VALUE;
}
API Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    bool known = is_allocated(pointer(from), bytes, stream_of(stream).card);
    return known ? copy_out(to, pointer(from), bytes, stream) : INVALID_VALUE;
}
API Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    int card = stream_of(stream).card;
    bool known = is_allocated(pointer(to), bytes, card) && is_allocated(pointer(from), bytes, card);
    return known ? copy(pointer(to), pointer(from), bytes, stream) : INVALID_VALUE;
}
// What is asked for without a stream is done when the call returns. Streams do not wait for it, nor it for them.
static Result finished(Result result) { return finish(stream_of(nullptr)), result; }

API Result cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) { return finished(cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr)); }
API Result cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr); }
API Result cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return finished(cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr)); }

API Result cuMemsetD8Async(uint64_t to, uint8_t value, size_t count, void* stream) { return fill(to, value, count, stream); }
API Result cuMemsetD16Async(uint64_t to, uint16_t value, size_t count, void* stream) { return fill(to, value, count, stream); }
API Result cuMemsetD32Async(uint64_t to, uint32_t value, size_t count, void* stream) { return fill(to, value, count, stream); }
API Result cuMemsetD8_v2(uint64_t to, uint8_t value, size_t count) { return finished(fill(to, value, count, nullptr)); }
API Result cuMemsetD16_v2(uint64_t to, uint16_t value, size_t count) { return finished(fill(to, value, count, nullptr)); }
API Result cuMemsetD32_v2(uint64_t to, uint32_t value, size_t count) { return finished(fill(to, value, count, nullptr)); }

// ---- Streams and events ----

API Result cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, SUCCESS; }
API Result cuStreamCreateWithPriority(void** stream, unsigned, int) { return *stream = new Stream, SUCCESS; }
API Result cuStreamDestroy_v2(void* stream) { return finish(stream_of(stream)), delete &stream_of(stream), SUCCESS; }
API Result cuStreamSynchronize(void* stream) {
    if (is_capturing(stream)) return STREAM_CAPTURE_UNSUPPORTED;
    finish(stream_of(stream));
    return state_of(stream_of(stream).card);
}
API Result cuStreamQuery(void* stream) { return cuStreamSynchronize(stream); }

API Result cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    enqueue(stream, [=] { function(data); });
    return SUCCESS;
}

API Result cuEventCreate(void** event, unsigned) { return *event = new Event, SUCCESS; }
API Result cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), SUCCESS; }
API Result cuEventQuery(void*) { return SUCCESS; }
API Result cuEventSynchronize(void*) { return SUCCESS; }

API Result cuEventRecord(void* handle, void* stream) {
    auto* event = static_cast<Event*>(handle);
    if (!is_capturing(stream)) finish(stream_of(stream)); // Who waits for the event finds it done.
    event->time = std::chrono::steady_clock::now();
    event->recording = stream_of(stream).recording;
    return SUCCESS;
}

// A stream that waits for a capturing one is captured with it.
API Result cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    auto recording = static_cast<Event*>(handle)->recording.lock();
    if (recording && recording != stream_of(stream).recording) {
        stream_of(stream).recording = recording;
        recording->streams.push_back(&stream_of(stream));
    }
    return SUCCESS;
}

API Result cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    auto time = static_cast<Event*>(end)->time - static_cast<Event*>(start)->time;
    *milliseconds = std::chrono::duration<float, std::milli>(time).count();
    return SUCCESS;
}
API Result cuEventElapsedTime(float* milliseconds, void* start, void* end) { return cuEventElapsedTime_v2(milliseconds, start, end); }

// ---- Graphs: work recorded once, run many times ----

API Result cuStreamIsCapturing(void* stream, int* status) { return *status = is_capturing(stream), SUCCESS; }

API Result cuStreamBeginCapture_v2(void* stream, int) {
    bool is_default = reinterpret_cast<size_t>(stream) <= 1;
    if (is_default || is_capturing(stream)) return STREAM_CAPTURE_UNSUPPORTED;
    stream_of(stream).recording = std::make_shared<Recording>();
    return SUCCESS;
}

API Result cuStreamEndCapture(void* stream, void** graph) {
    if (!is_capturing(stream)) return *graph = nullptr, STREAM_CAPTURE_UNMATCHED;
    *graph = new Graph{std::move(stream_of(stream).recording)};
    stream_of(stream).recording = nullptr;
    for (Stream* joined : static_cast<Graph*>(*graph)->recording->streams) joined->recording = nullptr;
    return SUCCESS;
}

API Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    return *executable = new Graph(*static_cast<Graph*>(graph)), SUCCESS;
}

API Result cuGraphLaunch(void* executable, void* stream) {
    auto recording = static_cast<Graph*>(executable)->recording;
    enqueue(stream, [recording] {
        for (const Work& work : recording->work) work();
    });
    return SUCCESS;
}

API Result cuGraphUpload(void*, void*) { return SUCCESS; }
API Result cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), SUCCESS; }
API Result cuGraphExecDestroy(void* executable) { return delete static_cast<Graph*>(executable), SUCCESS; }
API Result cuGraphGetNodes(void* graph, void**, size_t* count) {
    return *count = static_cast<Graph*>(graph)->recording->work.size(), SUCCESS;
}

// ---- Modules and launches ----

// Any image will do: the kernels are those that were compiled for the host.
API Result cuModuleLoadData(void** module, const void*) { return *module = &modules[current_card()], SUCCESS; }
API Result cuModuleLoad(void** module, const char*) { return *module = &modules[current_card()], SUCCESS; }
API Result cuModuleUnload(void*) { return SUCCESS; }

API Result cuModuleGetFunction(void** function, void* module, const char* name) {
    static std::mutex lock;
    static std::map<std::string, Function> functions[MAX_CARDS];
    int card = module ? int(static_cast<char*>(module) - modules) : current_card();
    const Kernel* kernel = find_kernel(name);
    if (!kernel) return tell_unsupported(("kernel " + std::string(name)).c_str()), NOT_FOUND;
    std::lock_guard<std::mutex> guard(lock);
    return *function = &functions[card].insert({name, Function{kernel, card}}).first->second, SUCCESS;
}

// 8 is CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.
API Result cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != 8) return SUCCESS;
    if (value < 0 || value > MAX_SHARED_OPT_IN) return INVALID_VALUE;
    return static_cast<Function*>(function)->max_dynamic_shared = value, SUCCESS;
}

API Result cuFuncGetAttribute(int* value, int attribute, void* function) {
    switch (attribute) {
        case 0: return *value = 1024, SUCCESS; // MAX_THREADS_PER_BLOCK
        case 8: return *value = static_cast<Function*>(function)->max_dynamic_shared, SUCCESS;
        default: return NOT_SUPPORTED;
    }
}

API Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int block_size, size_t dynamic_shared) {
    *blocks = block_size <= 1024 && dynamic_shared <= size_t(MAX_SHARED_OPT_IN) ? 1 : 0;
    return SUCCESS;
}

API Result cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared_bytes, void* stream, void** parameters, void** extra) {
    auto* function = static_cast<Function*>(handle);
    bool none = grid_x == 0 || grid_y == 0 || grid_z == 0 || block_x == 0 || block_y == 0 || block_z == 0;
    bool too_many = grid_x > 2147483647u || grid_y > 65535 || grid_z > 65535 || block_x > 1024 || block_y > 1024 || block_z > 64 ||
        uint64_t(block_x) * block_y * block_z > 1024;
    if (none || too_many || extra || int(shared_bytes) > function->max_dynamic_shared) {
        fprintf(stderr, "emulated GPU: no launch of %s with grid (%u, %u, %u), block (%u, %u, %u) and %u of %d bytes of shared memory\n",
            function->kernel->name, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, function->max_dynamic_shared);
        return INVALID_VALUE;
    }
    int card = stream_of(stream).card;
    if (function->card != card || current_card() != card) {
        fprintf(stderr, "emulated GPU: no launch of %s, which was loaded on card %d, on a stream of card %d in a context of card %d\n",
            function->kernel->name, function->card, card, current_card());
        return INVALID_HANDLE;
    }
    if (is_broken(card)) return state_of(card);
    count_launch(card);
    if (is_broken(card)) return SUCCESS; // As it does on a GPU, the next call tells.
    Launch launch(function->kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, parameters);
    launch.check_memory(card);
    enqueue(stream, std::move(launch));
    return SUCCESS;
}
