//! Matrix products by cuBLASLt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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

    /// Columns and rows as it lies there, which the library takes column by column: as the transpose.
    fn matrix(&self) -> (usize, usize) {
        let (rows, columns) = self.array.matrix();
        (columns, rows)
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

/// What tells one product from another by how the library is to compute it. Packed batches have other numbers of tokens at every step,
/// and to choose takes the CPU as long as many products: all from one multiple of 64 tokens, or of a sixteenth, to the next have one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    /// (rows, inner, columns); what counts tokens is rounded up.
    numbers: [usize; 3],
    transposed: (bool, bool),
    element: Element,
    output: Element,
    is_tf32: bool,
    bias: bool,
    added: bool,
}

/// The next of the numbers of tokens that products are chosen for.
fn rounded(tokens: usize) -> usize {
    const UNIT: usize = 64;
    let power = (tokens + 1).next_power_of_two() / 2; // The greatest that is no more.
    tokens.next_multiple_of(UNIT.max(power / 16))
}

/// A product as the library takes it: its description, those of its matrices, and how it is computed.
struct Described {
    task: Task,
    /// Of the left and the right factor and of the output, as [`Factor::matrix`] has them.
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library's handle, its scratch memory, and the products that were described before.
struct Products {
    handle: sys::cublasLtHandle_t,
    scratch: CudaSlice<u8>,
    described: Mutex<HashMap<Shape, Described>>,
}

// SAFETY: the library's handles may be used from any thread; the descriptions are behind a lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

/// What NVIDIA recommends on Hopper and later ("cublasSetWorkspace").
const SCRATCH: usize = 32 << 20;

/// So that a process that lives long does not keep all shapes that it ever met.
const REMEMBERED: usize = 1 << 14;

impl Products {
    fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // SAFETY: the library writes to its scratch memory before it reads it.
        let scratch = unsafe { stream.alloc::<u8>(SCRATCH) }.w()?;
        Ok(Self { handle: result::create_handle().map_err(failed)?, scratch, described: Mutex::default() })
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
        let bias = match plus {
            Plus::Bias(bias) => Some(self.convert(bias, result_array.element)?),
            _ => None,
        };
        let bias = bias.as_ref().map(|bias| bias.array()).transpose()?;
        let added = matches!(plus, Plus::Output);
        // What strides are made of counts no tokens: columns of what lies in rows.
        let counts_tokens = |is_stride: bool, number: usize| if is_stride { number } else { rounded(number) };
        let shape = Shape {
            numbers: [counts_tokens(a.transposed, rows), counts_tokens(!a.transposed || b.transposed, inner), columns],
            transposed: (a.transposed, b.transposed),
            element: a.array.element,
            output: result_array.element,
            is_tf32: precision == Precision::Tf32 && a.array.element == Element::F32,
            bias: bias.is_some(),
            added,
        };
        self.stream.context().bind_to_thread().w()?;
        let products = self.state(|| Products::new(&self.stream))?;
        let (scale, beta) = (scale, if added { 1.0f32 } else { 0.0 });
        let address = |pointer: u64| pointer as *const c_void;
        // A row-major matrix is the transpose of a column-major one: the library is asked for (a b)ᵀ = bᵀ aᵀ.
        let matrices = [b.matrix(), a.matrix(), (columns, rows)];
        products.with_description(shape, matrices, bias, |Described { task, layouts, algorithm }| {
            let [left, right, layout] = layouts;
            // SAFETY: the layouts are those of the arrays, whose memory is alive as long as they are borrowed; what is freed later is
            // freed behind this work on the same stream. The library reads the two factors before it returns.
            unsafe {
                result::matmul(
                    products.handle,
                    task.0,
                    (&raw const scale).cast(),
                    (&raw const beta).cast(),
                    address(b.array.pointer),
                    left.handle,
                    address(a.array.pointer),
                    right.handle,
                    address(result_array.pointer),
                    layout.handle,
                    result_array.pointer as *mut c_void,
                    layout.handle,
                    algorithm,
                    products.scratch.device_ptr(&self.stream).0 as *mut c_void,
                    SCRATCH,
                    self.stream.cu_stream().cast(),
                )
            }
        })
    }
}

impl Products {
    /// Has a product of matrices of these columns and rows computed by its description.
    fn with_description(
        &self,
        shape: Shape,
        matrices: [(usize, usize); 3],
        bias: Option<Array>,
        compute: impl Fn(&Described) -> std::result::Result<(), result::CublasError>,
    ) -> Result<()> {
        let mut described = self.described.lock().unwrap_or_else(PoisonError::into_inner);
        if described.len() >= REMEMBERED && !described.contains_key(&shape) {
            described.clear();
        }
        let found = match described.entry(shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.describe(shape, bias)?),
        };
        for (layout, (columns, rows)) in found.layouts.iter_mut().zip(matrices) {
            layout.resize(columns, rows)?;
        }
        if let Some(bias) = bias {
            found.task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.pointer)?;
        }
        match compute(found) {
            // Chosen for the rounded number of tokens; not all can do with any.
            Err(result::CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
            )) => {
                let rounded = std::mem::replace(&mut found.algorithm, self.choose(&found.task, &found.layouts)?);
                let computed = compute(found);
                found.algorithm = rounded; // What others get depends on no order.
                computed
            }
            computed => computed,
        }
        .map_err(failed)
    }

    /// A product of the rounded numbers.
    fn describe(&self, shape: Shape, bias: Option<Array>) -> Result<Described> {
        let Shape { numbers: [rows, inner, columns], transposed, element, output, is_tf32, .. } = shape;
        let task = Task::new(is_tf32)?;
        task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, operation(transposed.1))?;
        task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, operation(transposed.0))?;
        if let Some(bias) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.pointer)?;
        }
        let turned = |is_transposed: bool, (a, b)| if is_transposed { (b, a) } else { (a, b) };
        let (left, right) = (turned(transposed.1, (columns, inner)), turned(transposed.0, (inner, rows)));
        let layouts = [
            Layout::new(element, left.0, left.1)?,
            Layout::new(element, right.0, right.1)?,
            Layout::new(output, columns, rows)?,
        ];
        let algorithm = self.choose(&task, &layouts)?;
        Ok(Described { task, layouts, algorithm })
    }

    /// How the library computes such a product.
    fn choose(&self, task: &Task, [left, right, output]: &[Layout; 3]) -> Result<sys::cublasLtMatmulAlgo_t> {
        let preference = Preference::new(SCRATCH)?;
        let (left, right, output) = (left.handle, right.handle, output.handle);
        // SAFETY: all handles are alive.
        let found = unsafe {
            result::get_matmul_algo_heuristic(self.handle, task.0, left, right, output, output, preference.0)
        };
        Ok(found.map_err(failed)?.algo)
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

/// The library's description of a matrix, column by column: of columns of what lies there in rows.
struct Layout {
    handle: sys::cublasLtMatrixLayout_t,
    size: (usize, usize),
}

impl Layout {
    fn new(element: Element, columns: usize, rows: usize) -> Result<Self> {
        let handle = result::create_matrix_layout(data_type(element), columns as u64, rows as u64, columns as i64);
        Ok(Self { handle: handle.map_err(failed)?, size: (columns, rows) })
    }

    /// Describes one of as many columns, of other rows.
    fn resize(&mut self, columns: usize, rows: usize) -> Result<()> {
        if self.size == (columns, rows) {
            return Ok(());
        }
        if self.size.0 != columns {
            candle_core::bail!("product: a matrix of {columns} columns is described as one of {}", self.size.0)
        }
        let (number, value) = (sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS, rows as u64);
        // SAFETY: the value is of the attribute's type, and read before this returns.
        unsafe {
            result::set_matrix_layout_attribute(self.handle, number, (&raw const value).cast(), size_of::<u64>())
        }
        .map_err(failed)?;
        self.size = (columns, rows);
        Ok(())
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: the description is this one's own.
        let _ = unsafe { result::destroy_matrix_layout(self.handle) };
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
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>()) }
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
            result::set_matmul_pref_attribute(preference.0, most, (&raw const scratch).cast(), size_of::<usize>())
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

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn a_number_of_tokens_is_rounded_up_by_less_than_64_or_a_sixteenth_and_what_is_rounded_stays() {
        for tokens in (0..5000).chain([8192, 8193, 100_000]) {
            let found = rounded(tokens);
            assert!(found >= tokens && found - tokens < 64.max(tokens.div_ceil(16)), "{tokens}: {found}");
            assert_eq!(rounded(found), found);
        }
    }
}
