// libcublas: the products that candle's matmul asks for.
#include "matmul.hpp"

#include <cstdio>
#include <initializer_list>

using namespace emulator;

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

// Values of CUDA's enumerations.
enum DataType { R_32F = 0, R_16BF = 14 };
enum ComputeType { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_16BF = 75, COMPUTE_32F_FAST_TF32 = 77 };

struct Handle {
    void* stream = nullptr;
    int math_mode = 0;
};

bool is_known(int type) { return type == R_32F || type == R_16BF; }
Type type_of(int type) { return type == R_32F ? Type::F32 : Type::BF16; }

} // namespace

#define API extern "C" __attribute__((visibility("default")))

API Status cublasCreate_v2(Handle** handle) { return *handle = new Handle, SUCCESS; }
API Status cublasDestroy_v2(Handle* handle) { return delete handle, SUCCESS; }
API Status cublasSetStream_v2(Handle* handle, void* stream) { return handle->stream = stream, SUCCESS; }
API Status cublasGetStream_v2(Handle* handle, void** stream) { return *stream = handle->stream, SUCCESS; }
API Status cublasSetWorkspace_v2(Handle*, void*, size_t) { return SUCCESS; }
API Status cublasSetMathMode(Handle* handle, int mode) { return handle->math_mode = mode, SUCCESS; }
API Status cublasGetMathMode(Handle* handle, int* mode) { return *mode = handle->math_mode, SUCCESS; }
API Status cublasGetPointerMode_v2(Handle*, int* mode) { return *mode = 0, SUCCESS; }
API Status cublasGetVersion_v2(Handle*, int* version) { return *version = 130100, SUCCESS; }

// Alpha and beta are floats: only products that sum in f32 are emulated.
API Status cublasGemmStridedBatchedEx(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
    const void* a, int type_a, int lda, long long stride_a, const void* b, int type_b, int ldb, long long stride_b, const void* beta,
    void* c, int type_c, int ldc, long long stride_c, int batch, int compute_type, int) {
    if (transpose_a > 1 || transpose_b > 1 || m < 0 || n < 0 || k < 0 || batch < 0) return INVALID_VALUE;
    int rows_a = transpose_a ? k : m, rows_b = transpose_b ? n : k;
    if (lda < rows_a || ldb < rows_b || ldc < m) return INVALID_VALUE;
    bool sums_f32 = compute_type == COMPUTE_32F || compute_type == COMPUTE_32F_PEDANTIC || compute_type == COMPUTE_32F_FAST_16BF ||
        compute_type == COMPUTE_32F_FAST_TF32;
    bool types_fit = is_known(type_a) && type_a == type_b && is_known(type_c) && (type_a == R_16BF || type_c == R_32F);
    if (!sums_f32 || !types_fit) {
        fprintf(stderr, "emulated GPU: cublas refuses a product of types %d and %d to %d, computed as %d\n", type_a, type_b, type_c, compute_type);
        return NOT_SUPPORTED;
    }
    if (m == 0 || n == 0 || batch == 0) return SUCCESS;
    size_t columns_a = size_t(transpose_a ? m : k), columns_b = size_t(transpose_b ? k : n);
    Matrix result{c, type_of(type_c), size_t(m), size_t(n), size_t(ldc), ptrdiff_t(stride_c)};
    Matmul matmul{"cublasGemm", *static_cast<const float*>(alpha), *static_cast<const float*>(beta), transpose_a == 1, transpose_b == 1,
        {const_cast<void*>(a), type_of(type_a), size_t(rows_a), columns_a, size_t(lda), ptrdiff_t(stride_a)},
        {const_cast<void*>(b), type_of(type_b), size_t(rows_b), columns_b, size_t(ldb), ptrdiff_t(stride_b)}, result, result};
    matmul.batch = size_t(batch);
    matmul.tf32 = compute_type == COMPUTE_32F_FAST_TF32;
    enqueue_matmul(matmul, handle->stream);
    return SUCCESS;
}

API Status cublasGemmEx(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int type_a,
    int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc, int compute_type, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
        type_c, ldc, 0, 1, compute_type, algorithm);
}

API Status cublasSgemmStridedBatched(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha,
    const float* a, int lda, long long stride_a, const float* b, int ldb, long long stride_b, const float* beta, float* c, int ldc,
    long long stride_c, int batch) {
    return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, R_32F, lda, stride_a, b, R_32F, ldb, stride_b,
        beta, c, R_32F, ldc, stride_c, batch, COMPUTE_32F, 0);
}

API Status cublasSgemm_v2(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha, const float* a,
    int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
    return cublasSgemmStridedBatched(handle, transpose_a, transpose_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}
