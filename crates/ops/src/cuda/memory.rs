//! Running out of a GPU's memory.

use candle_core::Error;
use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t as CublasStatus;
use candle_core::cuda_backend::cudarc::cublaslt::result::CublasError as CublasLtError;
use candle_core::cuda_backend::cudarc::cublaslt::sys::cublasStatus_t as CublasLtStatus;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;

/// Whether the GPU's memory did not suffice, by what the driver or one of its libraries returned.
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::Cuda(source) => match (source.downcast_ref(), source.downcast_ref()) {
            (Some(CudaError::Cuda(driver)), _) => driver.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            (Some(CudaError::Cublas(cublas)), _) => cublas.0 == CublasStatus::CUBLAS_STATUS_ALLOC_FAILED,
            (_, Some(CublasLtError(status))) => *status == CublasLtStatus::CUBLAS_STATUS_ALLOC_FAILED,
            _ => false,
        },
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } | Error::WithPath { inner, .. } => {
            is_out_of_memory(inner)
        }
        _ => false,
    }
}
