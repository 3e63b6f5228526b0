// The functions of CUDA's libraries that the tests call, as NVIDIA declares them.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
int cuMemAlloc_v2(uint64_t* address, size_t bytes);
int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream);
int cuMemFree_v2(uint64_t address);
int cuMemFreeAsync(uint64_t address, void* stream);
int cuMemGetInfo_v2(size_t* free, size_t* total);
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes);
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes);
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream);
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream);
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t count, void* stream);
int cuStreamCreate(void** stream, unsigned flags);
int cuStreamDestroy_v2(void* stream);
int cuStreamSynchronize(void* stream);
int cuStreamBeginCapture_v2(void* stream, int mode);
int cuStreamEndCapture(void* stream, void** graph);
int cuStreamWaitEvent(void* stream, void* event, unsigned flags);
int cuEventCreate(void** event, unsigned flags);
int cuEventRecord(void* event, void* stream);
int cuEventDestroy_v2(void* event);
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags);
int cuGraphLaunch(void* executable, void* stream);
int cuGraphDestroy(void* graph);
int cuGraphExecDestroy(void* executable);
int cuModuleLoadData(void** module, const void* image);
int cuModuleGetFunction(void** function, void* module, const char* name);
int cuFuncSetAttribute(void* function, int attribute, int value);
int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
    unsigned shared_bytes, void* stream, void** parameters, void** extra);
int cuMulticastCreate(void* handle, const void* properties);
int cuDeviceGetCount(int* count);
int cuDeviceGet(int* device, int ordinal);
int cuDevicePrimaryCtxRetain(void** context, int device);
int cuCtxSetCurrent(void* context);
int cuDeviceGetDefaultMemPool(void** pool, int device);
int cuMemPoolSetAccess(void* pool, const int* access, size_t count);

int cublasLtCreate(void** handle);
int cublasLtDestroy(void* handle);
int cublasLtMatmulDescCreate(void** description, int compute_type, int scale_type);
int cublasLtMatmulDescDestroy(void* description);
int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* buffer, size_t bytes);
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t ld);
int cublasLtMatrixLayoutDestroy(void* layout);
int cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, const void* buffer, size_t bytes);
int cublasLtMatmulPreferenceCreate(void** preference);
int cublasLtMatmulPreferenceDestroy(void* preference);
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b, void* c, void* d, void* preference, int requested,
    void* results, int* found);
int cublasLtMatmul(void* handle, void* description, const void* alpha, const void* a, void* layout_a, const void* b, void* layout_b,
    const void* beta, const void* c, void* layout_c, void* d, void* layout_d, const void* algorithm, void* workspace, size_t bytes,
    void* stream);

int cublasCreate_v2(void** handle);
int cublasDestroy_v2(void* handle);
int cublasGemmStridedBatchedEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
    int type_a, int lda, long long stride_a, const void* b, int type_b, int ldb, long long stride_b, const void* beta, void* c, int type_c,
    int ldc, long long stride_c, int batch, int compute_type, int algorithm);

int ncclCommInitAll(void** communicators, int count, const int* cards);
int ncclCommDestroy(void* communicator);
int ncclCommAbort(void* communicator);
int ncclGroupStart();
int ncclGroupEnd();
int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, void* communicator, void* stream);
}
