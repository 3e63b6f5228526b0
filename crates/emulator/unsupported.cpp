// What a library declares and the emulator lacks: says its name, and answers that it is not supported. Compiled once for each library,
// with the list of its functions; those that are emulated win over these weak ones.
#include "device.hpp"

#define UNSUPPORTED(name, answer) \
    extern "C" __attribute__((weak, visibility("default"))) long name() { return emulator::tell_unsupported(#name), answer; }

#include FUNCTIONS
