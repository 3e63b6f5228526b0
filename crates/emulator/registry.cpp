#include "registry.hpp"

#include <map>

namespace emulator {
namespace {

// Libraries of kernels fill it as they are loaded, so it is made when first used.
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

} // namespace

void add_kernel(const Kernel& kernel) { kernels()[kernel.name] = kernel; }

const Kernel* find_kernel(const std::string& name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

} // namespace emulator
