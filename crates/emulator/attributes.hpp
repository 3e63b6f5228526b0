// What the stand-in cards say of themselves: a GPU with compute capability 9.0.
#pragma once

#include <map>

namespace emulator {

constexpr int MAX_SHARED = 48 << 10;
constexpr int MAX_SHARED_OPT_IN = 99 << 10; // The least of the cards that kernels are built for: sm_86, 89, 120.

// By their numbers in CUdevice_attribute.
const std::map<int, int> DEVICE_ATTRIBUTES = {
    {1, 1024},                // MAX_THREADS_PER_BLOCK
    {2, 1024},                // MAX_BLOCK_DIM_X
    {3, 1024},                // MAX_BLOCK_DIM_Y
    {4, 64},                  // MAX_BLOCK_DIM_Z
    {5, 2147483647},          // MAX_GRID_DIM_X
    {6, 65535},               // MAX_GRID_DIM_Y
    {7, 65535},               // MAX_GRID_DIM_Z
    {8, MAX_SHARED},          // MAX_SHARED_MEMORY_PER_BLOCK
    {10, 32},                 // WARP_SIZE
    {12, 65536},              // MAX_REGISTERS_PER_BLOCK
    {13, 1000000},            // CLOCK_RATE, kHz
    {16, 132},                // MULTIPROCESSOR_COUNT
    {18, 0},                  // INTEGRATED
    {31, 1},                  // CONCURRENT_KERNELS
    {33, 0},                  // PCI_BUS_ID, of the first card
    {34, 0},                  // PCI_DEVICE_ID
    {36, 1000000},            // MEMORY_CLOCK_RATE, kHz
    {37, 4096},               // GLOBAL_MEMORY_BUS_WIDTH
    {38, 50 << 20},           // L2_CACHE_SIZE
    {39, 2048},               // MAX_THREADS_PER_MULTIPROCESSOR
    {41, 1},                  // UNIFIED_ADDRESSING
    {50, 0},                  // PCI_DOMAIN_ID
    {75, 9},                  // COMPUTE_CAPABILITY_MAJOR
    {76, 0},                  // COMPUTE_CAPABILITY_MINOR
    {81, 228 << 10},          // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    {82, 65536},              // MAX_REGISTERS_PER_MULTIPROCESSOR
    {83, 0},                  // MANAGED_MEMORY
    {95, 0},                  // COOPERATIVE_LAUNCH
    {97, MAX_SHARED_OPT_IN},  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    {106, 32},                // MAX_BLOCKS_PER_MULTIPROCESSOR
    {115, 1},                 // MEMORY_POOLS_SUPPORTED
};

} // namespace emulator
