// libcurand: uniform and normal numbers, not those of any of NVIDIA's generators.
#include "device.hpp"

#include <cstdint>
#include <memory>
#include <random>

using namespace emulator;

namespace {

enum Status { SUCCESS = 0, LENGTH_NOT_MULTIPLE = 105 };

struct Generator {
    void* stream = nullptr;
    std::shared_ptr<std::mt19937_64> engine = std::make_shared<std::mt19937_64>();
};

template <typename T, typename Distribution> Status generate(Generator* generator, T* numbers, size_t count, Distribution distribution) {
    enqueue(generator->stream, [=, engine = generator->engine]() mutable {
        for (size_t i = 0; i < count; i++) numbers[i] = distribution(*engine);
    });
    return SUCCESS;
}

} // namespace

#define API extern "C" __attribute__((visibility("default")))

API Status curandCreateGenerator(Generator** generator, int) { return *generator = new Generator, SUCCESS; }
API Status curandDestroyGenerator(Generator* generator) { return delete generator, SUCCESS; }
API Status curandSetStream(Generator* generator, void* stream) { return generator->stream = stream, SUCCESS; }
API Status curandSetPseudoRandomGeneratorSeed(Generator* generator, unsigned long long seed) {
    return generator->engine->seed(seed), SUCCESS;
}
API Status curandSetGeneratorOffset(Generator* generator, unsigned long long offset) {
    return generator->engine->discard(offset), SUCCESS;
}

// In (0, 1], as NVIDIA's.
API Status curandGenerateUniform(Generator* generator, float* numbers, size_t count) {
    return generate(generator, numbers, count, [](std::mt19937_64& engine) { return float((engine() >> 40) + 1) * 0x1p-24f; });
}
API Status curandGenerateUniformDouble(Generator* generator, double* numbers, size_t count) {
    return generate(generator, numbers, count, [](std::mt19937_64& engine) { return double((engine() >> 11) + 1) * 0x1p-53; });
}

// They come in pairs.
API Status curandGenerateNormal(Generator* generator, float* numbers, size_t count, float mean, float deviation) {
    return count % 2 == 0 ? generate(generator, numbers, count, std::normal_distribution<float>(mean, deviation)) : LENGTH_NOT_MULTIPLE;
}
API Status curandGenerateNormalDouble(Generator* generator, double* numbers, size_t count, double mean, double deviation) {
    return count % 2 == 0 ? generate(generator, numbers, count, std::normal_distribution<double>(mean, deviation)) : LENGTH_NOT_MULTIPLE;
}
