// cuBLASLt and cuBLAS, against plain loops over the documented formula.
#include "check.hpp"
#include "cuda_api.hpp"

#include <cstring>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_RELU = 2, EPILOGUE_BIAS = 4, EPILOGUE_BGRADA = 256, EPILOGUE_BGRADB = 512 };
enum { DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7, DESC_BIAS = 8, DESC_BIAS_TYPE = 26, LAYOUT_BATCH = 5, LAYOUT_STRIDE = 6 };

// Numbers in device memory, of either type. Small integers are exact in both.
struct Numbers {
    int type;
    size_t count;
    uint64_t address = 0;

    Numbers(int type, size_t count, unsigned seed) : type(type), count(count) {
        cuMemAlloc_v2(&address, bytes());
        std::vector<float> values(count);
        for (float& x : values) x = float(int((seed = seed * 1664525u + 1013904223u) >> 24) % 9 - 4);
        write(values);
    }
    Numbers(const Numbers&) = delete;
    ~Numbers() { cuMemFree_v2(address); }

    size_t bytes() const { return count * (type == R_32F ? 4 : 2); }
    void* data() const { return reinterpret_cast<void*>(address); }

    void write(const std::vector<float>& values) {
        std::vector<uint16_t> halves;
        for (float x : values) {
            uint32_t bits;
            memcpy(&bits, &x, 4);
            halves.push_back(uint16_t(bits >> 16));
        }
        cuMemcpyHtoD_v2(address, type == R_32F ? static_cast<const void*>(values.data()) : halves.data(), bytes());
    }

    std::vector<float> read() const {
        std::vector<float> values(count);
        if (type == R_32F) {
            cuMemcpyDtoH_v2(values.data(), address, bytes());
        } else {
            std::vector<uint16_t> halves(count);
            cuMemcpyDtoH_v2(halves.data(), address, bytes());
            for (size_t i = 0; i < count; i++) {
                uint32_t bits = uint32_t(halves[i]) << 16;
                memcpy(&values[i], &bits, 4);
            }
        }
        return values;
    }
};

struct Algorithm {
    uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// A product as a program asks for it.
struct Product {
    int m = 7, n = 5, k = 70, batch = 2;
    bool transpose_a = false, transpose_b = false;
    int type_a = R_32F, type_b = R_32F, type_d = R_32F, compute = COMPUTE_32F;
    int epilogue = EPILOGUE_DEFAULT, bias_type = -1;
    float alpha = 2.0f, beta = 0.5f;
    int gap = 3;          // rows between the columns of each matrix
    int misalignment = 0; // bytes of A

    int rows_a() const { return transpose_a ? k : m; }
    int columns_a() const { return transpose_a ? m : k; }
    int rows_b() const { return transpose_b ? n : k; }
    int columns_b() const { return transpose_b ? k : n; }
};

void* layout(int type, int rows, int columns, int ld, int batch) {
    void* layout;
    cublasLtMatrixLayoutCreate(&layout, type, uint64_t(rows), uint64_t(columns), ld);
    int64_t stride = int64_t(ld) * columns;
    check(cublasLtMatrixLayoutSetAttribute(layout, LAYOUT_BATCH, &batch, 4) == SUCCESS, "batch");
    check(cublasLtMatrixLayoutSetAttribute(layout, LAYOUT_STRIDE, &stride, 8) == SUCCESS, "stride");
    return layout;
}

// Multiplies through cublasLt; the status of the first call that refuses.
int multiply(const Product& p, const Numbers& a, const Numbers& b, const Numbers& d, const Numbers& bias) {
    void *handle, *description, *preference;
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&description, p.compute, R_32F);
    cublasLtMatmulPreferenceCreate(&preference);
    int transpose_a = p.transpose_a, transpose_b = p.transpose_b;
    void* bias_data = bias.data();
    cublasLtMatmulDescSetAttribute(description, DESC_TRANSA, &transpose_a, 4);
    cublasLtMatmulDescSetAttribute(description, DESC_TRANSB, &transpose_b, 4);
    cublasLtMatmulDescSetAttribute(description, DESC_EPILOGUE, &p.epilogue, 4);
    cublasLtMatmulDescSetAttribute(description, DESC_BIAS, &bias_data, 8);
    if (p.bias_type >= 0) cublasLtMatmulDescSetAttribute(description, DESC_BIAS_TYPE, &p.bias_type, 4);
    void* layout_a = layout(p.type_a, p.rows_a(), p.columns_a(), p.rows_a() + p.gap, p.batch);
    void* layout_b = layout(p.type_b, p.rows_b(), p.columns_b(), p.rows_b() + p.gap, p.batch);
    void* layout_d = layout(p.type_d, p.m, p.n, p.m + p.gap, p.batch);
    Heuristic heuristic;
    int found = 0;
    int status = cublasLtMatmulAlgoGetHeuristic(handle, description, layout_a, layout_b, layout_d, layout_d, preference, 1, &heuristic, &found);
    if (status == SUCCESS) {
        check(found == 1 && heuristic.state == SUCCESS, "one algorithm");
        status = cublasLtMatmul(handle, description, &p.alpha, static_cast<char*>(a.data()) + p.misalignment, layout_a, b.data(), layout_b,
            &p.beta, d.data(), layout_d, d.data(), layout_d, &heuristic.algorithm, nullptr, 0, nullptr);
    }
    for (void* layout : {layout_a, layout_b, layout_d}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(description);
    cublasLtDestroy(handle);
    return status;
}

// The matrices of a product, filled.
struct Operands {
    Numbers a, b, d, bias;
    explicit Operands(const Product& p)
        : a(p.type_a, size_t((p.rows_a() + p.gap) * p.columns_a() * p.batch), 1),
          b(p.type_b, size_t((p.rows_b() + p.gap) * p.columns_b() * p.batch), 2),
          d(p.type_d, size_t((p.m + p.gap) * p.n * p.batch), 3), bias(p.type_d, size_t(p.m > p.n ? p.m : p.n), 4) {}
};

// D = alpha op(A) op(B) + beta C + bias; `gradient` is the sum of op(A)'s rows or op(B)'s columns.
void check_product(const Product& p, const std::string& what) {
    Operands operands(p);
    std::vector<float> a = operands.a.read(), b = operands.b.read(), c = operands.d.read(), bias = operands.bias.read();
    check(multiply(p, operands.a, operands.b, operands.d, operands.bias) == SUCCESS, what + " is refused");
    std::vector<float> d = operands.d.read(), bias_after = operands.bias.read();
    double tolerance = p.type_d == R_32F ? 0.0 : 1.0 / 256; // exact sums, rounded once
    int lda = p.rows_a() + p.gap, ldb = p.rows_b() + p.gap, ldd = p.m + p.gap;
    auto at_a = [&](int batch, int i, int l) { return a[size_t(batch * lda * p.columns_a() + (p.transpose_a ? l + i * lda : i + l * lda))]; };
    auto at_b = [&](int batch, int l, int j) { return b[size_t(batch * ldb * p.columns_b() + (p.transpose_b ? j + l * ldb : l + j * ldb))]; };
    for (int batch = 0; batch < p.batch; batch++) {
        for (int j = 0; j < p.n; j++) {
            for (int i = 0; i < p.m + p.gap; i++) {
                size_t at = size_t(batch * ldd * p.n + i + j * ldd);
                double expected = c[at];
                if (i < p.m) {
                    expected = p.beta == 0.0f ? 0.0 : p.beta * c[at];
                    for (int l = 0; l < p.k; l++) expected += double(p.alpha) * at_a(batch, i, l) * at_b(batch, l, j);
                    if (p.epilogue == EPILOGUE_BIAS) expected += bias[size_t(i)];
                }
                check_close(d[at], expected, tolerance * std::abs(expected), what + ", row " + std::to_string(i));
            }
        }
    }
    if (p.epilogue != EPILOGUE_BGRADA && p.epilogue != EPILOGUE_BGRADB) return;
    int count = p.epilogue == EPILOGUE_BGRADA ? p.m : p.n;
    for (int i = 0; i < count; i++) {
        double expected = 0;
        for (int l = 0; l < p.k; l++) expected += p.epilogue == EPILOGUE_BGRADA ? at_a(0, i, l) : at_b(0, l, i);
        check_close(bias_after[size_t(i)], expected, tolerance * std::abs(expected), what + ", gradient of the bias");
    }
}

int status_of(const Product& p) {
    Operands operands(p);
    return multiply(p, operands.a, operands.b, operands.d, operands.bias);
}

} // namespace

void test_products() {
    test("cublasLt multiplies in all transposes, types and batches as its documentation tells", [] {
        struct Types { int factors, result; };
        for (Types types : {Types{R_32F, R_32F}, Types{R_16BF, R_16BF}, Types{R_16BF, R_32F}}) {
            for (int transposes = 0; transposes < 4; transposes++) {
                Product p;
                p.type_a = p.type_b = types.factors;
                p.type_d = types.result;
                p.transpose_a = transposes & 1;
                p.transpose_b = transposes & 2;
                std::string what = "types " + std::to_string(types.factors) + " and " + std::to_string(types.result) + ", transposes " + std::to_string(transposes);
                check_product(p, what);
                p.epilogue = EPILOGUE_BIAS;
                check_product(p, what + " with bias");
                p.batch = 1;
                for (int epilogue : {EPILOGUE_BGRADA, EPILOGUE_BGRADB}) {
                    p.epilogue = epilogue;
                    check_product(p, what + " with sums " + std::to_string(epilogue));
                }
                p.m = 131; // more than one tile
                p.gap = 0;
                check_product(p, what + ", tall");
            }
        }
    });
    test("with beta 0 what stood in D is not read", [] {
        Product p;
        p.beta = 0.0f;
        Operands operands(p);
        std::vector<float> before(operands.d.count, NAN);
        operands.d.write(before);
        check(multiply(p, operands.a, operands.b, operands.d, operands.bias) == SUCCESS, "refused");
        check(!std::isnan(operands.d.read()[0]), "NaN");
    });
    test("TF32 keeps ten bits of a factor, f32 all", [] {
        for (int compute : {COMPUTE_32F, COMPUTE_32F_FAST_TF32}) {
            Product p;
            p.m = p.n = p.k = p.batch = 1;
            p.gap = 0;
            p.alpha = 1.0f;
            p.beta = 0.0f;
            p.compute = compute;
            Operands operands(p);
            operands.a.write({1.0f + 0x1p-10f + 0x1p-13f});
            operands.b.write({1.0f});
            check(multiply(p, operands.a, operands.b, operands.d, operands.bias) == SUCCESS, "refused");
            check_close(operands.d.read()[0], compute == COMPUTE_32F ? 1.0f + 0x1p-10f + 0x1p-13f : 1.0f + 0x1p-10f, 0, "factor");
        }
    });
    test("cublasLt refuses what the real library refuses", [] {
        Product mixed;
        mixed.type_b = R_16BF;
        check(status_of(mixed) == NOT_SUPPORTED, "factors of two types");
        Product narrow;
        narrow.type_d = R_16BF;
        check(status_of(narrow) == NOT_SUPPORTED, "f32 to bf16");
        Product half;
        half.type_a = half.type_b = half.type_d = R_16F;
        check(status_of(half) == NOT_SUPPORTED, "f16");
        Product tf32;
        tf32.type_a = tf32.type_b = R_16BF;
        tf32.compute = COMPUTE_32F_FAST_TF32;
        check(status_of(tf32) == NOT_SUPPORTED, "bf16 as TF32");
        Product relu;
        relu.epilogue = EPILOGUE_RELU;
        check(status_of(relu) == NOT_SUPPORTED, "an epilogue that is not emulated");
        Product bias;
        bias.type_a = bias.type_b = R_16BF;
        bias.epilogue = EPILOGUE_BIAS;
        bias.bias_type = R_16BF;
        check(status_of(bias) == NOT_SUPPORTED, "a bf16 bias on an f32 result");
        Product short_columns;
        short_columns.gap = -1;
        check(status_of(short_columns) == INVALID_VALUE, "a leading dimension less than the rows");
        Product misaligned;
        misaligned.misalignment = 4;
        check(status_of(misaligned) == INVALID_VALUE, "a misaligned factor");
        Product no_bias;
        no_bias.epilogue = EPILOGUE_BIAS;
        Operands operands(no_bias);
        Numbers nothing(R_32F, 0, 0);
        nothing.address = 0;
        check(multiply(no_bias, operands.a, operands.b, operands.d, nothing) == INVALID_VALUE, "no bias");
    });
    test("a product that leaves its memory, or writes over its factors, ends the program", [] {
        check_aborts("cublasLtMatmul: A (7 rows, 70 columns, ld 10, number 1 of the batch) leaves its allocation", [] {
            Product p;
            Operands operands(p);
            p.batch = 1;
            Operands small(p);
            p.batch = 2;
            multiply(p, small.a, operands.b, operands.d, operands.bias);
        });
        check_aborts("cublasLtMatmul: D overlaps B", [] {
            Product p;
            Operands operands(p);
            multiply(p, operands.a, operands.b, operands.b, operands.bias);
        });
    });
    test("cublas multiplies batches as candle asks for them", [] {
        void* handle;
        cublasCreate_v2(&handle);
        for (int type : {R_32F, R_16BF}) {
            constexpr int M = 3, N = 4, K = 5;
            Numbers a(type, 2 * M * K, 1), b(type, K * N, 2), c(type, 2 * M * N, 3);
            float alpha = 1.0f, beta = 0.0f;
            // op(A) = A^T, and one B for the whole batch.
            check(cublasGemmStridedBatchedEx(handle, 1, 0, M, N, K, &alpha, a.data(), type, K, M * K, b.data(), type, K, 0, &beta, c.data(),
                      type, M, M * N, 2, COMPUTE_32F, 0) == SUCCESS, "refused");
            std::vector<float> left = a.read(), right = b.read(), product = c.read();
            for (int batch = 0; batch < 2; batch++) {
                for (int i = 0; i < M; i++) {
                    for (int j = 0; j < N; j++) {
                        float expected = 0;
                        for (int l = 0; l < K; l++) expected += left[size_t(batch * M * K + l + i * K)] * right[size_t(l + j * K)];
                        check_close(product[size_t(batch * M * N + i + j * M)], expected, 0, "type " + std::to_string(type));
                    }
                }
            }
        }
        cublasDestroy_v2(handle);
    });
}
