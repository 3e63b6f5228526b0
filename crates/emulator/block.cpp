#include "block.hpp"

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <memory>
#include <pthread.h>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

__thread uint3 threadIdx;
__thread uint3 blockIdx;
__thread dim3 blockDim;
__thread dim3 gridDim;

namespace emulator {
namespace {

constexpr size_t STACK = 64 << 10;
constexpr size_t PAGE = 64 << 10; // the largest of any processor's
constexpr size_t SHARED_GUARD = 256;
constexpr unsigned char POISON = 0xff; // NaN, in float and in bf16
constexpr unsigned char GUARD = 0xa5;

// Threads and blocks run in descending order when asked to: what depends on the order lacks a barrier.
bool descending() {
    const char* order = getenv("CUDA_EMULATOR_ORDER");
    return order && strcmp(order, "descending") == 0;
}

void run_threads();

// AddressSanitizer must know which stack is in use: told before each switch, and told the end of it after.
#ifdef __SANITIZE_ADDRESS__
void leave_for(const void* stack, size_t bytes) {
    void* unused;
    __sanitizer_start_switch_fiber(&unused, stack, bytes);
}
void arrive(const void** stack_left = nullptr, size_t* bytes_left = nullptr) {
    __sanitizer_finish_switch_fiber(nullptr, stack_left, bytes_left);
}
#else
void leave_for(const void*, size_t) {}
void arrive(const void** = nullptr, size_t* = nullptr) {}
#endif

// A stack with a page below it that faults. It runs thread after thread, and rests when the last waits or is done.
struct Fiber {
    unsigned char* stack;
    jmp_buf resume;

    explicit Fiber(size_t number) {
        stack = static_cast<unsigned char*>(
            mmap(nullptr, PAGE + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stack == MAP_FAILED || mprotect(stack, PAGE, PROT_NONE) != 0) fail("no memory for the stack of a thread");
        ucontext_t here, there;
        getcontext(&there);
        there.uc_stack.ss_sp = stack + PAGE;
        // Stacks that begin at the same place of their pages would share a few lines of the cache.
        there.uc_stack.ss_size = STACK - number % 16 * 256;
        there.uc_link = nullptr;
        makecontext(&there, reinterpret_cast<void (*)()>(&enter), 0);
        entering = this;
        creator = &here;
        leave_for(stack + PAGE, STACK);
        swapcontext(&here, &there);
        arrive();
    }
    Fiber(const Fiber&) = delete;
    ~Fiber() { munmap(stack, PAGE + STACK); }

  private:
    static thread_local Fiber* entering;
    static thread_local ucontext_t* creator;

    static void enter() {
        ucontext_t self;
        const void* stack_left = nullptr;
        size_t bytes_left = 0;
        arrive(&stack_left, &bytes_left);
        leave_for(stack_left, bytes_left);
        if (_setjmp(entering->resume) == 0) swapcontext(&self, creator);
        arrive();
        for (;;) run_threads();
    }
};

thread_local Fiber* Fiber::entering;
thread_local ucontext_t* Fiber::creator;

enum class State { NEW, RUNNING, READY, AT_BARRIER, IN_MEETING, RETURNED };

// What a thread has asked to be copied.
struct Copy {
    void* to;
    const void* from;
    unsigned read, group;
};

struct Thread {
    unsigned number; // within the block
    uint3 index;
    State state;
    Fiber* fiber;
    // Of the meeting it waits for.
    const char* function;
    unsigned mask;
    void* message;
    Answer answer;
    std::vector<Copy> copies; // not yet made
    unsigned groups;          // of copies, that it has closed
};

struct Warp {
    unsigned living;  // lanes that have not returned
    unsigned waiting; // lanes in a meeting
};

// What a host thread keeps from launch to launch, and the block that runs on it.
struct Runner {
    const Kernel* kernel = nullptr;
    void* const* parameters = nullptr;
    std::string kernel_name;

    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned living = 0, at_barrier = 0;
    Thread* current = nullptr;

    // Threads that may run, first come first served. A thread stands in it at most once.
    std::vector<Thread*> queue;
    size_t queue_head = 0, queue_length = 0;

    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> idle;
    jmp_buf scheduler;
    void* scheduler_stack; // the host thread's
    size_t scheduler_bytes;

    Runner() {
        pthread_attr_t attributes;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &scheduler_stack, &scheduler_bytes);
        pthread_attr_destroy(&attributes);
    }

    std::vector<unsigned char> shared_memory;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;

    void push(Thread& thread) {
        size_t end = queue_head + queue_length++;
        queue[end < queue.size() ? end : end - queue.size()] = &thread;
    }

    Thread* pop() {
        if (queue_length == 0) return nullptr;
        Thread* thread = queue[queue_head];
        if (++queue_head == queue.size()) queue_head = 0;
        queue_length--;
        return thread;
    }

    void wake(Thread& thread) {
        thread.state = State::READY;
        push(thread);
    }

    Warp& warp_of(const Thread& thread) { return warps[thread.number / WARP]; }
    Thread* lanes_of(const Thread& thread) { return &threads[thread.number / WARP * WARP]; }
};

// This host thread's.
__thread __attribute__((tls_model("initial-exec"))) Runner* runner;

void make_current(Thread& thread) {
    runner->current = &thread;
    thread.state = State::RUNNING;
    threadIdx = thread.index;
}

// Goes on where `next` stopped; with none, in the scheduler.
[[noreturn]] void leave_to(Thread* next) {
    if (!next) {
        leave_for(runner->scheduler_stack, runner->scheduler_bytes);
        _longjmp(runner->scheduler, 1);
    }
    if (!next->fiber) {
        if (runner->idle.empty()) {
            runner->fibers.push_back(std::make_unique<Fiber>(runner->fibers.size()));
            runner->idle.push_back(runner->fibers.back().get());
        }
        next->fiber = runner->idle.back();
        runner->idle.pop_back();
    }
    make_current(*next);
    leave_for(next->fiber->stack + PAGE, STACK);
    _longjmp(next->fiber->resume, 1);
}

// Leaves `fiber` here until a thread on it goes on. Not inlined: _setjmp keeps no variables.
__attribute__((noinline)) void switch_from(Fiber& fiber, Thread* next) {
    if (_setjmp(fiber.resume) == 0) leave_to(next);
    arrive();
}

// The current thread stops here until it is woken.
void suspend() { switch_from(*runner->current->fiber, runner->pop()); }

// Answers the meeting of `thread` if everyone is there, and wakes all of it but the current thread.
void hold_meeting(Thread& thread) {
    Warp& warp = runner->warp_of(thread);
    Thread* lanes = runner->lanes_of(thread);
    unsigned expected = thread.mask & warp.living;
    if ((warp.waiting & expected) != expected) return;
    void* messages[WARP] = {};
    for (unsigned i = 0; i < WARP; i++) {
        if (!(expected >> i & 1)) continue;
        bool same = lanes[i].function == thread.function || strcmp(lanes[i].function, thread.function) == 0;
        if (!same || lanes[i].answer != thread.answer || lanes[i].mask != thread.mask) {
            fail("lane %u is in %s of lanes %08x while lane %u is in %s of lanes %08x", thread.number % WARP, thread.function,
                thread.mask, i, lanes[i].function, lanes[i].mask);
        }
        messages[i] = lanes[i].message;
    }
    if (thread.answer) thread.answer(messages);
    warp.waiting &= ~expected;
    for (unsigned i = 0; i < WARP; i++) {
        if (!(expected >> i & 1)) continue;
        if (&lanes[i] == runner->current) lanes[i].state = State::RUNNING;
        else runner->wake(lanes[i]);
    }
}

void open_barrier() {
    runner->at_barrier = 0;
    for (Thread& thread : runner->threads) {
        if (thread.state != State::AT_BARRIER) continue;
        if (&thread == runner->current) thread.state = State::RUNNING;
        else runner->wake(thread);
    }
}

// A thread that returns is waited for no more.
void retire(Thread& thread) {
    if (!thread.copies.empty()) fail("a thread returned without waiting for its copies into shared memory");
    thread.state = State::RETURNED;
    Warp& warp = runner->warp_of(thread);
    Thread* lanes = runner->lanes_of(thread);
    warp.living &= ~(1u << thread.number % WARP);
    runner->living--;
    for (unsigned i = 0; i < WARP; i++) {
        if (warp.waiting >> i & 1) hold_meeting(lanes[i]);
    }
    if (runner->living > 0 && runner->at_barrier == runner->living) open_barrier();
}

// Runs the current thread to its end, and those after it that have not begun: without barriers one fiber runs them all.
void run_threads() {
    for (;;) {
        Thread& thread = *runner->current;
        runner->kernel->call(runner->kernel->function, runner->parameters);
        Fiber* fiber = thread.fiber;
        retire(thread);
        Thread* next = runner->pop();
        if (next && next->state == State::NEW) {
            next->fiber = fiber;
            make_current(*next);
            continue;
        }
        runner->idle.push_back(fiber);
        switch_from(*fiber, next);
        return;
    }
}

const char* state_name(const Thread& thread) {
    switch (thread.state) {
        case State::AT_BARRIER: return "__syncthreads";
        case State::IN_MEETING: return thread.function;
        case State::RETURNED: return "its end";
        default: return "no barrier";
    }
}

// A thread that waits for others that never come.
void check_all_returned() {
    if (runner->living == 0) return;
    for (const Thread& thread : runner->threads) {
        if (thread.state == State::RETURNED) continue;
        for (const Thread& other : runner->threads) {
            if (strcmp(state_name(thread), state_name(other)) == 0) continue;
            fail("thread (%u, %u, %u) waits at %s while thread (%u, %u, %u) is at %s", thread.index.x, thread.index.y, thread.index.z,
                state_name(thread), other.index.x, other.index.y, other.index.z, state_name(other));
        }
        fail("every thread waits at %s for lanes that never come: masks differ", state_name(thread));
    }
}

extern "C" void* __tls_get_addr(size_t module_and_offset[2]);

// Static shared memory is the thread-local storage of the library that holds the kernel: this host thread's, to be poisoned.
struct Region {
    const void* function;
    unsigned char* begin;
    size_t size;
};

Region static_shared_of(const void* function) {
    Region region{function, nullptr, 0};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            Region& region = *static_cast<Region*>(data);
            size_t address = reinterpret_cast<size_t>(region.function), thread_local_bytes = 0;
            bool holds_it = false;
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto& header = info->dlpi_phdr[i];
                size_t begin = info->dlpi_addr + header.p_vaddr;
                if (header.p_type == PT_LOAD && begin <= address && address < begin + header.p_memsz) holds_it = true;
                if (header.p_type == PT_TLS) thread_local_bytes = header.p_memsz;
            }
            if (!holds_it) return 0;
            region.size = thread_local_bytes;
            // dlpi_tls_data is null until this host thread first uses the storage; asked for its first byte, it is made.
            size_t first[] = {info->dlpi_tls_modid, 0};
            if (region.size > 0) region.begin = static_cast<unsigned char*>(__tls_get_addr(first));
            return 1;
        },
        &region);
    return region;
}

void prepare_threads(dim3 block) {
    unsigned count = block.x * block.y * block.z, whole = (count + WARP - 1) / WARP * WARP;
    runner->threads.resize(whole);
    runner->warps.resize(whole / WARP);
    runner->queue.resize(whole);
    for (unsigned i = 0; i < whole; i++) {
        runner->threads[i].number = i;
        runner->threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    }
}

void run_block(unsigned count, bool last_first) {
    for (Thread& thread : runner->threads) {
        thread.state = thread.number < count ? State::NEW : State::RETURNED;
        thread.fiber = nullptr;
        thread.groups = 0;
    }
    for (size_t i = 0; i < runner->warps.size(); i++) {
        unsigned lanes = count - unsigned(i) * WARP;
        runner->warps[i] = {lanes >= WARP ? ~0u : (1u << lanes) - 1, 0};
    }
    runner->living = count;
    runner->at_barrier = 0;
    runner->queue_head = runner->queue_length = 0;
    for (unsigned i = 0; i < count; i++) runner->push(runner->threads[last_first ? count - 1 - i : i]);
    if (_setjmp(runner->scheduler) == 0) leave_to(runner->pop());
    arrive();
    check_all_returned();
}

} // namespace

void fail(const char* format, ...) {
    fprintf(stderr, "emulated GPU: kernel %s, block (%u, %u, %u): ", last_kernel(), blockIdx.x, blockIdx.y, blockIdx.z);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

const char* last_kernel() { return runner ? runner->kernel_name.c_str() : "none"; }

unsigned lane() { return runner->current->number % WARP; }

void* dynamic_shared() { return runner->shared; }

void wait_for_block() {
    runner->current->state = State::AT_BARRIER;
    runner->at_barrier++;
    if (runner->at_barrier == runner->living) open_barrier();
    else suspend();
}

void meet(const char* function, unsigned mask, void* message, Answer answer) {
    Thread& thread = *runner->current;
    if (!(mask >> lane() & 1)) fail("lane %u calls %s of lanes %08x, without itself", lane(), function, mask);
    thread.state = State::IN_MEETING;
    thread.function = function;
    thread.mask = mask;
    thread.message = message;
    thread.answer = answer;
    runner->warp_of(thread).waiting |= 1u << lane();
    hold_meeting(thread);
    if (thread.state == State::IN_MEETING) suspend();
}

void check_shared(const char* function, const void* address, size_t bytes) {
    auto* first = static_cast<const unsigned char*>(address);
    if (reinterpret_cast<size_t>(first) % 16 != 0) fail("%s at %p, which is not a multiple of 16 bytes", function, address);
    if (first < runner->shared || first + bytes > runner->shared + runner->shared_bytes) {
        fail("%s at %p, outside of the block's dynamic shared memory", function, address);
    }
}

void copy_later(void* to, const void* from, unsigned read) {
    check_shared("cp.async", to, 16);
    if (reinterpret_cast<size_t>(from) % 16 != 0) fail("cp.async from %p, which is not a multiple of 16 bytes", from);
    Thread& thread = *runner->current;
    thread.copies.push_back({to, from, read, thread.groups});
}

void commit_copies() { runner->current->groups++; }

void wait_for_copies(unsigned groups_left) {
    Thread& thread = *runner->current;
    auto rest = thread.copies.begin();
    for (; rest != thread.copies.end() && rest->group + groups_left < thread.groups; rest++) {
        memcpy(rest->to, rest->from, rest->read);
        memset(static_cast<unsigned char*>(rest->to) + rest->read, 0, 16 - rest->read);
    }
    thread.copies.erase(thread.copies.begin(), rest);
}

void run(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes, void* const* parameters) {
    constexpr size_t ALIGNMENT = 1024;
    static thread_local Runner own;
    runner = &own;
    runner->kernel = &kernel;
    runner->kernel_name = kernel.name;
    runner->parameters = parameters;
    runner->shared_memory.resize(ALIGNMENT + shared_bytes + SHARED_GUARD);
    size_t begin = reinterpret_cast<size_t>(runner->shared_memory.data());
    runner->shared = reinterpret_cast<unsigned char*>((begin + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    runner->shared_bytes = shared_bytes;
    memset(runner->shared + shared_bytes, GUARD, SHARED_GUARD);
    prepare_threads(block);
    Region static_shared = static_shared_of(kernel.function);
    gridDim = grid;
    blockDim = block;
    bool last_first = descending();
    unsigned long long blocks = 1ull * grid.x * grid.y * grid.z;
    for (unsigned long long i = 0; i < blocks; i++) {
        unsigned long long number = last_first ? blocks - 1 - i : i;
        blockIdx = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
        memset(runner->shared, POISON, shared_bytes);
        if (static_shared.size > 0) memset(static_shared.begin, POISON, static_shared.size);
        run_block(block.x * block.y * block.z, last_first);
        for (size_t byte = 0; byte < SHARED_GUARD; byte++) {
            if (runner->shared[shared_bytes + byte] != GUARD) fail("wrote behind its %zu bytes of dynamic shared memory", shared_bytes);
        }
    }
}

} // namespace emulator
