// The kernels that a library of kernels brings, by name.
#pragma once

#include "block.hpp"

#include <string>
#include <type_traits>
#include <utility>

namespace emulator {

void add_kernel(const Kernel& kernel);

// Null when there is none.
const Kernel* find_kernel(const std::string& name);

// The kernel that a C++ function is: its parameters' types tell how each is read.
template <typename... Parameters> struct Signature {
    static constexpr size_t sizes[sizeof...(Parameters) + 1] = {sizeof(Parameters)..., 0};

    template <size_t... I>
    static void call_with(void (*function)(Parameters...), void* const* parameters, std::index_sequence<I...>) {
        function(*static_cast<const Parameters*>(parameters[I])...);
    }

    static void call(const void* function, void* const* parameters) {
        call_with(reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(function)), parameters,
            std::index_sequence_for<Parameters...>());
    }
};

template <typename... Parameters> bool add_kernel(const char* name, void (*function)(Parameters...)) {
    static_assert(((std::is_trivially_copyable_v<Parameters> && sizeof(Parameters) <= 8) && ...), "a kernel takes pointers and numbers");
    typedef Signature<Parameters...> Of;
    add_kernel({name, reinterpret_cast<const void*>(function), Of::sizes, sizeof...(Parameters), &Of::call});
    return true;
}

// For tests: launches a kernel by name, and checks that the arguments have the sizes of its parameters.
template <typename... Arguments>
void launch(const std::string& name, dim3 grid, dim3 block, size_t shared_bytes, Arguments... arguments) {
    const Kernel* kernel = find_kernel(name);
    if (!kernel) fail("there is no kernel %s", name.c_str());
    size_t sizes[] = {sizeof(Arguments)..., 0};
    if (kernel->parameter_count != sizeof...(Arguments)) fail("%s takes %u arguments", name.c_str(), kernel->parameter_count);
    for (unsigned i = 0; i < kernel->parameter_count; i++) {
        if (sizes[i] != kernel->parameter_sizes[i]) fail("argument %u of %s takes %zu bytes", i, name.c_str(), kernel->parameter_sizes[i]);
    }
    void* parameters[] = {static_cast<void*>(&arguments)..., nullptr};
    run(*kernel, grid, block, shared_bytes, parameters);
}

} // namespace emulator
