//! Matrix products by cuBLASLt.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::array::{Array, Buffer, Element};
use super::gpu::Gpu;
use crate::operations::linear::Precision;

/// A row-major matrix on the GPU, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    array: Array<'a>,
    transposed: bool,
}

impl<'a> From<Array<'a>> for Factor<'a> {
    fn from(array: Array<'a>) -> Self {
        Self { array, transposed: false }
    }
}

impl<'a> Array<'a> {
    /// The transpose, without a copy.
    pub(crate) fn t(self) -> Factor<'a> {
        Factor { array: self, transposed: true }
    }
}

impl Factor<'_> {
    fn rows(&self) -> usize {
        let (rows, columns) = self.array.matrix();
        if self.transposed { columns } else { rows }
    }

    fn columns(&self) -> usize {
        let (rows, columns) = self.array.matrix();
        if self.transposed { rows } else { columns }
    }

    /// As the library takes it, column by column: the transpose of what lies there in rows.
    fn layout(&self) -> Result<Layout> {
        let (rows, columns) = self.array.matrix();
        Layout::new(self.array.element, columns, rows)
    }
}

/// What is added to a product.
#[derive(Clone, Copy)]
pub(crate) enum Plus<'a> {
    Nothing,
    /// A vector, `(columns)`, to each row.
    Bias(Array<'a>),
    /// What lies in the output already.
    Output,
}

/// The numbers of a shape of product, by which the library chooses how to compute it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    inner: usize,
    columns: usize,
    transposed: (bool, bool),
    element: Element,
    output: Element,
    is_tf32: bool,
    bias: bool,
    added: bool,
}

/// The library's handle, its scratch memory, and what it chose for the shapes of before.
struct Products {
    handle: sys::cublasLtHandle_t,
    scratch: CudaSlice<u8>,
    chosen: Mutex<HashMap<Shape, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: the library's handles may be used from any thread; the choices are behind a lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

/// What NVIDIA recommends on Hopper and later ("cublasSetWorkspace").
const SCRATCH: usize = 32 << 20;

/// Choosing costs the CPU some microseconds. Batches come in so many shapes that what was chosen is forgotten at times.
const REMEMBERED: usize = 1 << 14;

impl Products {
    fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // SAFETY: the library writes to its scratch memory before it reads it.
        let scratch = unsafe { stream.alloc::<u8>(SCRATCH) }.w()?;
        Ok(Self { handle: result::create_handle().map_err(failed)?, scratch, chosen: Mutex::default() })
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: the handle is this one's own.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Gpu {
    /// `scale * a b`, plus what is to be added, as a new matrix of type `element`. Both factors are of one type; of f32 ones TF32 reads
    /// the first bits. Sums are taken in f32.
    pub(crate) fn product(
        &self,
        precision: Precision,
        scale: f32,
        a: Factor,
        b: Factor,
        bias: Option<Array>,
        element: Element,
    ) -> Result<Buffer> {
        let output = self.empty(element, a.rows() * b.columns())?;
        self.multiply(precision, scale, a, b, bias.map_or(Plus::Nothing, Plus::Bias), &output)?;
        Ok(output)
    }

    /// The same, into memory that is there.
    pub(crate) fn multiply(
        &self,
        precision: Precision,
        scale: f32,
        a: Factor,
        b: Factor,
        plus: Plus,
        output: &Buffer,
    ) -> Result<()> {
        let (rows, inner, columns) = (a.rows(), a.columns(), b.columns());
        if inner != b.rows() || a.array.element != b.array.element {
            candle_core::bail!(
                "product: {:?} and {:?} of {:?} and {:?} do not fit",
                a.array.shape,
                b.array.shape,
                a.array.element,
                b.array.element
            )
        }
        let dimensions = [rows, columns];
        let result_array = output.array(&dimensions)?;
        if a.array.element == Element::F32 && result_array.element == Element::Bf16 {
            // The library knows no such product.
            let exact = self.empty(Element::F32, rows * columns)?;
            if let Plus::Output = plus {
                candle_core::bail!("product: an f32 product cannot be added to bf16")
            }
            self.multiply(precision, scale, a, b, plus, &exact)?;
            return self.convert_into(exact.array(&dimensions)?, output);
        }
        // A row-major matrix is the transpose of a column-major one: the library is asked for (a b)ᵀ = bᵀ aᵀ.
        let (left, right) = (b.layout()?, a.layout()?);
        let layout = Layout::new(result_array.element, columns, rows)?;
        let is_tf32 = precision == Precision::Tf32 && a.array.element == Element::F32;
        let task = Task::new(is_tf32)?;
        task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, operation(b.transposed))?;
        task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, operation(a.transposed))?;
        let bias = match plus {
            Plus::Bias(bias) => Some(self.convert(bias, result_array.element)?),
            _ => None,
        };
        if let Some(bias) = &bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            let pointer = bias.array()?.pointer;
            task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, pointer)?;
        }
        let added = matches!(plus, Plus::Output);
        let shape = Shape {
            rows,
            inner,
            columns,
            transposed: (a.transposed, b.transposed),
            element: a.array.element,
            output: result_array.element,
            is_tf32,
            bias: bias.is_some(),
            added,
        };
        self.stream.context().bind_to_thread().w()?;
        let products = self.state(|| Products::new(&self.stream))?;
        let algorithm = products.choose(shape, &task, [&left, &right, &layout])?;
        let (scale, beta) = (scale, if added { 1.0f32 } else { 0.0 });
        let address = |pointer: u64| pointer as *const c_void;
        // SAFETY: the layouts are those of the arrays, whose memory is alive as long as they are borrowed; what is freed later is
        // freed behind this work on the same stream. The library reads the two factors before it returns.
        unsafe {
            result::matmul(
                products.handle,
                task.0,
                (&raw const scale).cast(),
                (&raw const beta).cast(),
                address(b.array.pointer),
                left.0,
                address(a.array.pointer),
                right.0,
                address(result_array.pointer),
                layout.0,
                result_array.pointer as *mut c_void,
                layout.0,
                &raw const algorithm,
                products.scratch.device_ptr(&self.stream).0 as *mut c_void,
                SCRATCH,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(failed)?;
        Ok(())
    }
}

impl Products {
    /// How the library computes products of that shape.
    fn choose(&self, shape: Shape, task: &Task, layouts: [&Layout; 3]) -> Result<sys::cublasLtMatmulAlgo_t> {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = chosen.get(&shape) {
            return Ok(*algorithm);
        }
        let preference = Preference::new(SCRATCH)?;
        let [left, right, output] = layouts;
        // SAFETY: all handles are alive.
        let found = unsafe {
            result::get_matmul_algo_heuristic(self.handle, task.0, left.0, right.0, output.0, output.0, preference.0)
        }
        .map_err(failed)?;
        if chosen.len() >= REMEMBERED {
            chosen.clear();
        }
        chosen.insert(shape, found.algo);
        Ok(found.algo)
    }
}

fn failed(error: result::CublasError) -> candle_core::Error {
    candle_core::Error::Cuda(Box::new(error)).context("cuBLASLt")
}

/// `cublasOperation_t`: as it lies there, or its transpose.
fn operation(transposed: bool) -> i32 {
    i32::from(transposed)
}

fn data_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Element::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

/// The library's description of a matrix, column by column.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(element: Element, rows: usize, columns: usize) -> Result<Self> {
        let (rows, columns) = (rows as u64, columns as u64);
        Ok(Self(result::create_matrix_layout(data_type(element), rows, columns, rows as i64).map_err(failed)?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: the description is this one's own.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The library's description of a product.
struct Task(sys::cublasLtMatmulDesc_t);

impl Task {
    fn new(is_tf32: bool) -> Result<Self> {
        let compute = match is_tf32 {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        Ok(Self(result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).map_err(failed)?))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
        // SAFETY: the value is of the attribute's type, and read before this returns.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), std::mem::size_of::<T>())
        }
        .map_err(failed)?;
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // SAFETY: the description is this one's own.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What the library is to consider when it chooses.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(scratch: usize) -> Result<Self> {
        let preference = Self(result::create_matmul_pref().map_err(failed)?);
        let most = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the value is of the attribute's type, and read before this returns.
        unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                most,
                (&raw const scratch).cast(),
                std::mem::size_of::<usize>(),
            )
        }
        .map_err(failed)?;
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: the preference is this one's own.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
