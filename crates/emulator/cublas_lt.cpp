// libcublasLt: matrix products with an epilogue. Refuses what NVIDIA's tables of supported combinations leave out.
#include "device.hpp"
#include "matmul.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

using namespace emulator;

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };

// Values of CUDA's enumerations.
enum DataType { R_32F = 0, R_16BF = 14 };
enum ComputeType { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77 };
enum EpilogueCode { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4, EPILOGUE_BGRADA = 256, EPILOGUE_BGRADB = 512 };
enum PointerMode { POINTER_MODE_HOST = 0 };
enum Order { ORDER_COLUMNS = 0 };

constexpr uint32_t REQUIRED_ALIGNMENT = 16; // of what tensor cores load

struct Description {
    int32_t compute_type, scale_type;
    int32_t pointer_mode = POINTER_MODE_HOST;
    int32_t transpose_a = 0, transpose_b = 0, transpose_c = 0;
    int32_t epilogue = EPILOGUE_DEFAULT;
    void* bias = nullptr;
    int64_t bias_stride = 0;
    int32_t bias_type = -1; // that of D
};

struct Layout {
    int32_t type;
    uint64_t rows, columns;
    int64_t ld;
    int32_t order = ORDER_COLUMNS;
    int32_t batch = 1;
    int64_t stride = 0;
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t alignment_a = 256, alignment_b = 256, alignment_c = 256, alignment_d = 256;
};

// The one algorithm there is: what it relies on. With CUDA_EMULATOR_ALGORITHMS=exact it computes products of the numbers that it was
// chosen for alone, which cublasLtMatmulAlgoCheck tells and cublasLtMatmul does not: a real algorithm that does not fit may do anything.
struct Algorithm {
    uint64_t mark;
    uint32_t alignment_a, alignment_b, alignment_c, alignment_d;
    uint64_t rows, inner, columns; // of the product that it was chosen for
    uint64_t unused[2];
};
constexpr uint64_t MARK = 0x656d756c61746564;

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};

bool are_exact() {
    const char* algorithms = getenv("CUDA_EMULATOR_ALGORITHMS");
    return algorithms && strcmp(algorithms, "exact") == 0;
}

Algorithm algorithm_for(const Description& description, const Layout& a, const Layout& d) {
    Algorithm algorithm{};
    algorithm.mark = MARK;
    algorithm.rows = d.rows;
    algorithm.inner = description.transpose_a ? a.rows : a.columns;
    algorithm.columns = d.columns;
    return algorithm;
}

bool fits(const Algorithm& algorithm, const Description& description, const Layout& a, const Layout& d) {
    Algorithm own = algorithm_for(description, a, d);
    return !are_exact() || (own.rows == algorithm.rows && own.inner == algorithm.inner && own.columns == algorithm.columns);
}

Status refuse(Status status, const char* why) {
    fprintf(stderr, "emulated GPU: cublasLt refuses a product: %s\n", why);
    return status;
}

template <typename T> Status set(T& attribute, const void* buffer, size_t bytes) {
    if (bytes != sizeof attribute) return refuse(INVALID_VALUE, "an attribute has another size");
    return memcpy(&attribute, buffer, bytes), SUCCESS;
}

bool is_known(int32_t type) { return type == R_32F || type == R_16BF; }
Type type_of(int32_t type) { return type == R_32F ? Type::F32 : Type::BF16; }

Status check(const Description& description, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    bool is_f32 = description.compute_type == COMPUTE_32F || description.compute_type == COMPUTE_32F_PEDANTIC;
    bool is_tf32 = description.compute_type == COMPUTE_32F_FAST_TF32;
    if (!is_f32 && !is_tf32) return refuse(NOT_SUPPORTED, "the compute type is not 32F or 32F_FAST_TF32");
    if (description.scale_type != R_32F) return refuse(NOT_SUPPORTED, "the scale type is not 32F");
    if (description.pointer_mode != POINTER_MODE_HOST) return refuse(NOT_SUPPORTED, "alpha and beta are not on the host");
    if (description.transpose_a > 1 || description.transpose_b > 1) return refuse(INVALID_VALUE, "a transpose is neither N nor T");
    if (description.transpose_c != 0) return refuse(NOT_SUPPORTED, "C is transposed");
    for (const Layout* layout : {&a, &b, &c, &d}) {
        if (layout->order != ORDER_COLUMNS) return refuse(NOT_SUPPORTED, "a matrix is not by columns");
        if (!is_known(layout->type)) return refuse(NOT_SUPPORTED, "a matrix is neither f32 nor bf16");
        if (layout->rows == 0 || layout->columns == 0) return refuse(INVALID_VALUE, "a matrix is empty");
        if (layout->ld < int64_t(layout->rows)) return refuse(INVALID_VALUE, "a leading dimension is less than the rows");
        if (layout->batch < 1 || layout->batch != d.batch) return refuse(INVALID_VALUE, "batch counts differ");
    }
    if (a.type != b.type) return refuse(NOT_SUPPORTED, "A and B have different types");
    if (c.type != d.type) return refuse(NOT_SUPPORTED, "C and D have different types");
    if (a.type == R_32F && d.type != R_32F) return refuse(NOT_SUPPORTED, "f32 factors give only f32");
    if (is_tf32 && a.type != R_32F) return refuse(NOT_SUPPORTED, "32F_FAST_TF32 takes f32 factors");

    uint64_t rows = description.transpose_a ? a.columns : a.rows, inner = description.transpose_a ? a.rows : a.columns;
    uint64_t inner_b = description.transpose_b ? b.columns : b.rows, columns = description.transpose_b ? b.rows : b.columns;
    if (inner != inner_b || d.rows != rows || d.columns != columns || c.rows != rows || c.columns != columns) {
        return refuse(INVALID_VALUE, "the shapes do not fit");
    }
    switch (description.epilogue) {
        case EPILOGUE_DEFAULT: return SUCCESS;
        case EPILOGUE_BIAS: break;
        case EPILOGUE_BGRADA:
        case EPILOGUE_BGRADB:
            if (d.batch != 1) return refuse(NOT_SUPPORTED, "the gradient of a bias over a batch");
            break;
        default: return refuse(NOT_SUPPORTED, "the epilogue is not DEFAULT, BIAS, BGRADA or BGRADB");
    }
    if (description.bias_type != -1 && description.bias_type != d.type) {
        return refuse(NOT_SUPPORTED, "the bias has not the type of D");
    }
    return SUCCESS;
}

Matrix matrix(const void* data, const Layout& layout) {
    return {const_cast<void*>(data), type_of(layout.type), layout.rows, layout.columns, size_t(layout.ld), layout.stride};
}

} // namespace

#define API extern "C" __attribute__((visibility("default")))

API Status cublasLtCreate(void** handle) { return *handle = new char, SUCCESS; }
API Status cublasLtDestroy(void* handle) { return delete static_cast<char*>(handle), SUCCESS; }
API size_t cublasLtGetVersion() { return 130100; }

API Status cublasLtMatmulDescCreate(Description** description, int32_t compute_type, int32_t scale_type) {
    *description = new Description;
    (*description)->compute_type = compute_type;
    (*description)->scale_type = scale_type;
    return SUCCESS;
}
API Status cublasLtMatmulDescDestroy(Description* description) { return delete description, SUCCESS; }

API Status cublasLtMatmulDescSetAttribute(Description* description, int32_t attribute, const void* buffer, size_t bytes) {
    switch (attribute) {
        case 0: return set(description->compute_type, buffer, bytes);
        case 1: return set(description->scale_type, buffer, bytes);
        case 2: return set(description->pointer_mode, buffer, bytes);
        case 3: return set(description->transpose_a, buffer, bytes);
        case 4: return set(description->transpose_b, buffer, bytes);
        case 5: return set(description->transpose_c, buffer, bytes);
        case 7: return set(description->epilogue, buffer, bytes);
        case 8: return set(description->bias, buffer, bytes);
        case 10: return set(description->bias_stride, buffer, bytes);
        case 26: return set(description->bias_type, buffer, bytes);
        default: tell_unsupported(("cublasLt's descriptor attribute " + std::to_string(attribute)).c_str()); return NOT_SUPPORTED;
    }
}

API Status cublasLtMatrixLayoutCreate(Layout** layout, int32_t type, uint64_t rows, uint64_t columns, int64_t ld) {
    *layout = new Layout;
    (*layout)->type = type;
    (*layout)->rows = rows;
    (*layout)->columns = columns;
    (*layout)->ld = ld;
    return SUCCESS;
}
API Status cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, SUCCESS; }

API Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int32_t attribute, const void* buffer, size_t bytes) {
    switch (attribute) {
        case 0: return set(layout->type, buffer, bytes);
        case 1: return set(layout->order, buffer, bytes);
        case 2: return set(layout->rows, buffer, bytes);
        case 3: return set(layout->columns, buffer, bytes);
        case 4: return set(layout->ld, buffer, bytes);
        case 5: return set(layout->batch, buffer, bytes);
        case 6: return set(layout->stride, buffer, bytes);
        default: tell_unsupported(("cublasLt's layout attribute " + std::to_string(attribute)).c_str()); return NOT_SUPPORTED;
    }
}

API Status cublasLtMatmulPreferenceCreate(Preference** preference) { return *preference = new Preference, SUCCESS; }
API Status cublasLtMatmulPreferenceDestroy(Preference* preference) { return delete preference, SUCCESS; }

API Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, int32_t attribute, const void* buffer, size_t bytes) {
    switch (attribute) {
        case 1: return set(preference->workspace, buffer, bytes);
        case 5: return set(preference->alignment_a, buffer, bytes);
        case 6: return set(preference->alignment_b, buffer, bytes);
        case 7: return set(preference->alignment_c, buffer, bytes);
        case 8: return set(preference->alignment_d, buffer, bytes);
        default: return SUCCESS; // what only chooses between algorithms
    }
}

API Status cublasLtMatmulAlgoGetHeuristic(void*, const Description* description, const Layout* a, const Layout* b, const Layout* c,
    const Layout* d, const Preference* preference, int requested, HeuristicResult* results, int* found) {
    *found = 0;
    if (requested < 1) return INVALID_VALUE;
    Status status = check(*description, *a, *b, *c, *d);
    if (status != SUCCESS) return status;
    auto alignment = [](uint32_t promised) { return std::min(promised, REQUIRED_ALIGNMENT); };
    results[0] = {};
    Algorithm& algorithm = results[0].algorithm = algorithm_for(*description, *a, *d);
    algorithm.alignment_a = alignment(preference->alignment_a);
    algorithm.alignment_b = alignment(preference->alignment_b);
    algorithm.alignment_c = alignment(preference->alignment_c);
    algorithm.alignment_d = alignment(preference->alignment_d);
    results[0].waves = 1.0f;
    *found = 1;
    return SUCCESS;
}

API Status cublasLtMatmulAlgoCheck(void*, const Description* description, const Layout* a, const Layout* b, const Layout* c, const Layout* d,
    const Algorithm* algorithm, HeuristicResult* result) {
    Status status = check(*description, *a, *b, *c, *d);
    if (status != SUCCESS) return status;
    if (algorithm->mark != MARK) return refuse(INVALID_VALUE, "the algorithm is not one that the heuristic gave");
    if (!fits(*algorithm, *description, *a, *d)) return NOT_SUPPORTED;
    *result = {};
    result->algorithm = *algorithm;
    result->waves = 1.0f;
    return SUCCESS;
}

API Status cublasLtMatmul(void*, const Description* description, const float* alpha, const void* a, const Layout* layout_a, const void* b,
    const Layout* layout_b, const float* beta, const void* c, const Layout* layout_c, void* d, const Layout* layout_d,
    const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    Status status = check(*description, *layout_a, *layout_b, *layout_c, *layout_d);
    if (status != SUCCESS) return status;
    if (algorithm) {
        auto is_aligned = [](const void* data, uint64_t alignment) { return reinterpret_cast<size_t>(data) % alignment == 0; };
        if (algorithm->mark != MARK) return refuse(INVALID_VALUE, "the algorithm is not one that the heuristic gave");
        if (!fits(*algorithm, *description, *layout_a, *layout_d)) {
            return refuse(EXECUTION_FAILED, "the algorithm was chosen for another product, and does not fit this one");
        }
        if (!is_aligned(a, algorithm->alignment_a) || !is_aligned(b, algorithm->alignment_b) || !is_aligned(c, algorithm->alignment_c) ||
            !is_aligned(d, algorithm->alignment_d)) {
            return refuse(INVALID_VALUE, "a matrix is not aligned as the preference promised");
        }
    }
    if (workspace_bytes > 0 && (!is_allocated(workspace, workspace_bytes, stream_of(stream).card) || reinterpret_cast<size_t>(workspace) % 16 != 0)) {
        return refuse(INVALID_VALUE, "the workspace is not the card's memory, or not aligned to 16 bytes");
    }
    if (c == d && (layout_c->ld != layout_d->ld || layout_c->stride != layout_d->stride)) {
        return refuse(INVALID_VALUE, "C and D are one matrix with two layouts");
    }
    Matmul matmul{"cublasLtMatmul", *alpha, *beta, description->transpose_a == 1, description->transpose_b == 1, matrix(a, *layout_a),
        matrix(b, *layout_b), matrix(c, *layout_c), matrix(d, *layout_d)};
    matmul.batch = size_t(layout_d->batch);
    matmul.tf32 = description->compute_type == COMPUTE_32F_FAST_TF32;
    if (description->epilogue != EPILOGUE_DEFAULT) {
        if (!description->bias) return refuse(INVALID_VALUE, "the epilogue needs a bias pointer");
        matmul.epilogue = description->epilogue == EPILOGUE_BIAS ? Epilogue::BIAS
            : description->epilogue == EPILOGUE_BGRADA           ? Epilogue::SUM_A
                                                                 : Epilogue::SUM_B;
        matmul.bias = description->bias;
        matmul.bias_type = type_of(layout_d->type);
        matmul.bias_stride = description->bias_stride;
    }
    enqueue_matmul(matmul, stream);
    return SUCCESS;
}
