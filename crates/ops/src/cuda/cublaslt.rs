//! Matrix products by cuBLASLt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::array::{Array, Buffer, Element};
use super::gpu::Gpu;
use super::kernel::{Grid, Kernel};
use super::launches;
use super::operations::conversion::Converted;
use crate::operations::linear::Precision;

/// A row-major matrix on the GPU, or the transpose of one. Of a batch it is the first.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    array: Array<'a>,
    transposed: bool,
    /// How many numbers lie from the beginning of a row to that of the next, if they are more than a row has.
    pitch: Option<usize>,
    /// How many lie from the beginning of a batch's matrix to that of the next.
    distance: usize,
}

impl<'a> From<Array<'a>> for Factor<'a> {
    fn from(array: Array<'a>) -> Self {
        Self { array, transposed: false, pitch: None, distance: 0 }
    }
}

impl<'a> Array<'a> {
    /// The transpose, without a copy.
    pub(crate) fn t(self) -> Factor<'a> {
        Factor { transposed: true, ..self.into() }
    }
}

impl Factor<'_> {
    /// The same within a wider matrix, whose rows begin `pitch` numbers apart.
    pub(crate) fn pitch(self, pitch: usize) -> Self {
        Self { pitch: Some(pitch), ..self }
    }

    /// The first of a batch's matrices, which begin so many numbers apart.
    pub(crate) fn every(self, distance: usize) -> Self {
        Self { distance, ..self }
    }

    fn rows(&self) -> usize {
        let (rows, columns) = self.array.matrix();
        if self.transposed { columns } else { rows }
    }

    fn columns(&self) -> usize {
        let (rows, columns) = self.array.matrix();
        if self.transposed { rows } else { columns }
    }

    /// How it lies there, of a batch of so many.
    fn place(&self, batch: usize) -> Place {
        let ((rows, columns), Array { pointer, element, .. }) = (self.array.matrix(), self.array);
        Place { pointer, element, rows, columns, pitch: self.pitch.unwrap_or(columns), batch, distance: self.distance }
    }
}

/// Where the results of products lie: the rows of a matrix, and of a batch those of the next ones.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a>(Factor<'a>);

impl<'a> Target<'a> {
    /// The numbers of an array that nobody else reads or writes meanwhile.
    pub(crate) fn new(array: Array<'a>) -> Self {
        Self(array.into())
    }

    /// See [`Factor::pitch`].
    pub(crate) fn pitch(self, pitch: usize) -> Self {
        Self(self.0.pitch(pitch))
    }

    /// See [`Factor::every`].
    pub(crate) fn every(self, distance: usize) -> Self {
        Self(self.0.every(distance))
    }
}

/// What is added to a product.
#[derive(Clone, Copy)]
pub(crate) enum Plus<'a> {
    Nothing,
    /// A vector, `(columns)`, to each row; of a batch one vector behind the other, of the type of the output.
    Bias(Array<'a>),
    /// What lies in the output already.
    Output,
    /// A matrix of the output's shape and type, to a new output.
    Matrix(Array<'a>),
}

/// How a matrix of a product lies in memory, in rows; of a batch, how all of them do.
#[derive(Clone, Copy)]
struct Place {
    pointer: u64,
    element: Element,
    rows: usize,
    columns: usize,
    /// How many numbers lie from the beginning of a row to that of the next, and of a matrix to that of the next.
    pitch: usize,
    distance: usize,
    batch: usize,
}

impl Place {
    /// That of one matrix of the batch.
    fn of(self, index: usize) -> Self {
        Self {
            pointer: self.pointer + (index * self.distance * self.element.bytes()) as u64,
            distance: 0,
            batch: 1,
            ..self
        }
    }

    /// How many bytes divide the addresses of all matrices. The library takes 256 for granted unless it is told otherwise; less than
    /// that, tensor cores want 16.
    fn alignment(&self) -> u32 {
        let distance = (self.distance * self.element.bytes()) as u64;
        match 1 << (self.pointer | distance | 256).trailing_zeros() {
            256 if self.batch == 1 => 256,
            bytes => 16.min(bytes),
        }
    }

    /// The same of so many rows; matrices that follow one another do so.
    fn with_rows(self, rows: usize) -> Self {
        let follow = self.rows > 0 && self.distance.is_multiple_of(self.rows * self.pitch);
        let distance = if follow { self.distance / self.rows * rows } else { self.distance };
        Self { rows, distance, ..self }
    }
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
    batch: usize,
    /// Of both factors and of the output: [`Place::pitch`], [`Place::distance`] for the rounded number of tokens, and
    /// [`Place::alignment`].
    pitches: [usize; 3],
    distances: [usize; 3],
    alignments: [u32; 3],
    /// That of what is added.
    added_alignment: u32,
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
    /// Of the left and the right factor and of the output.
    layouts: [Layout; 3],
    /// Chosen for the rounded number of tokens.
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// What computes each of the (rows, inner) that came so far: that algorithm, or where the library does not take it for so many
    /// tokens, one that was chosen for them. None depends on what came before.
    of_numbers: HashMap<[usize; 2], sys::cublasLtMatmulAlgo_t>,
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
        self.multiply_batch(precision, scale, [a, b], plus, Target::new(output.array(&[a.rows(), b.columns()])?), 1)
    }

    /// As many products of one shape as `batch` says, of matrices at equal distances.
    pub(crate) fn multiply_batch(
        &self,
        precision: Precision,
        scale: f32,
        [a, b]: [Factor; 2],
        plus: Plus,
        Target(output): Target,
        batch: usize,
    ) -> Result<()> {
        let (rows, inner, columns) = (a.rows(), a.columns(), b.columns());
        if inner != b.rows() || a.array.element != b.array.element || output.array.matrix() != (rows, columns) {
            candle_core::bail!(
                "product: {:?} and {:?} of {:?} and {:?} do not fit {:?}",
                a.array.shape,
                b.array.shape,
                a.array.element,
                b.array.element,
                output.array.shape
            )
        }
        let element = output.array.element;
        if a.array.element == Element::F32 && element == Element::Bf16 {
            // The library knows no such product.
            if batch != 1 || output.pitch.is_some() || matches!(plus, Plus::Output | Plus::Matrix(_)) {
                candle_core::bail!("product: f32 factors, and a bf16 result that is no new matrix")
            }
            let dimensions = [rows, columns];
            let exact = self.empty(Element::F32, rows * columns)?;
            self.multiply(precision, scale, a, b, plus, &exact)?;
            let values = exact.array(&dimensions)?;
            let kernel = Kernel::bf16("to_bf16").address(output.array.pointer).read_f32(values, values.count());
            // SAFETY: pointwise.cu, to_bf16: the output has as many numbers as the product.
            return unsafe { kernel.count(values.count()).launch(self, Grid::eights(values.count())) };
        }
        let bias = match plus {
            Plus::Bias(bias) => Some(self.convert(bias, element)?),
            _ => None,
        };
        let is_wide = output.pitch.is_some();
        let output = output.place(batch);
        let added = match plus {
            Plus::Matrix(matrix)
                if matrix.matrix() != (rows, columns) || matrix.element != element || batch != 1 || is_wide =>
            {
                candle_core::bail!("product: {:?} of {:?} cannot be added to it", matrix.shape, matrix.element)
            }
            Plus::Matrix(matrix) => Some(Factor::from(matrix).place(1)),
            Plus::Output => Some(output),
            Plus::Nothing | Plus::Bias(_) => None,
        };
        let task = Product {
            precision,
            scale,
            transposed: (a.transposed, b.transposed),
            factors: [a.place(batch), b.place(batch)],
            bias: bias.as_ref().map(Converted::array).transpose()?.map(|bias| bias.pointer),
            added,
            output,
        };
        self.stream.context().bind_to_thread().w()?;
        let products = self.state(|| Products::new(&self.stream))?;
        match products.run(&self.stream, &task) {
            // The library may know no kernel for such a batch; one by one, these are plain products.
            Err(error) if batch > 1 && is_unsupported(&error) => {
                (0..batch).try_for_each(|index| products.run(&self.stream, &task.of(index)))
            }
            result => result,
        }
    }
}

/// A product, or a batch of them.
struct Product {
    precision: Precision,
    scale: f32,
    transposed: (bool, bool),
    factors: [Place; 2],
    /// The address of the first vector.
    bias: Option<u64>,
    added: Option<Place>,
    output: Place,
}

impl Product {
    /// One of the batch.
    fn of(&self, index: usize) -> Self {
        let bias = self.bias.map(|bias| bias + (index * self.output.columns * self.output.element.bytes()) as u64);
        Self {
            factors: self.factors.map(|factor| factor.of(index)),
            bias,
            added: self.added.map(|added| added.of(index)),
            output: self.output.of(index),
            ..*self
        }
    }

    /// The same product for the rounded number of tokens.
    fn rounded(&self) -> Self {
        let ([a, b], output) = (self.factors, self.output);
        // What strides are made of counts no tokens: columns of what lies in rows.
        let is_stride_of_inner = !self.transposed.0 || self.transposed.1;
        let inner = |number: usize| if is_stride_of_inner { number } else { rounded(number) };
        let rows = |number: usize| if self.transposed.0 { number } else { rounded(number) };
        Self {
            factors: [
                a.with_rows(if self.transposed.0 { inner(a.rows) } else { rows(a.rows) }),
                b.with_rows(if self.transposed.1 { b.rows } else { inner(b.rows) }),
            ],
            added: self.added.map(|added| added.with_rows(rows(added.rows))),
            output: output.with_rows(rows(output.rows)),
            ..*self
        }
    }

    /// (rows, inner)
    fn numbers(&self) -> [usize; 2] {
        let Self { factors: [a, _], output, transposed, .. } = self;
        [output.rows, if transposed.0 { a.rows } else { a.columns }]
    }

    fn shape(&self) -> Shape {
        let rounded = self.rounded();
        let ([rows, inner], Self { factors: [a, b], output, transposed, .. }) = (rounded.numbers(), rounded);
        let places = [a, b, output];
        Shape {
            numbers: [rows, inner, output.columns],
            transposed,
            element: a.element,
            output: output.element,
            is_tf32: self.precision == Precision::Tf32 && a.element == Element::F32,
            bias: self.bias.is_some(),
            added: self.added.is_some(),
            batch: output.batch,
            pitches: places.map(|place| place.pitch),
            distances: places.map(|place| place.distance),
            alignments: [self.factors[0], self.factors[1], self.output].map(|place| place.alignment()),
            added_alignment: self.added.map_or(256, |added| added.alignment()),
        }
    }

    /// Its matrices as the library takes them. A row-major matrix is the transpose of a column-major one: it is asked for
    /// (a b)ᵀ = bᵀ aᵀ.
    fn matrices(&self) -> [Place; 3] {
        [self.factors[1], self.factors[0], self.output]
    }
}

/// Whether the library has no way to compute what it was asked for.
fn is_unsupported(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::Cuda(source) => source.downcast_ref::<result::CublasError>().is_some_and(|error| {
            use sys::cublasStatus_t as Status;
            [Status::CUBLAS_STATUS_NOT_SUPPORTED, Status::CUBLAS_STATUS_INVALID_VALUE].contains(&error.0)
        }),
        candle_core::Error::Context { inner, .. } | candle_core::Error::WithBacktrace { inner, .. } => {
            is_unsupported(inner)
        }
        _ => false,
    }
}

impl Products {
    /// Has a product computed by its description.
    fn run(&self, stream: &Arc<CudaStream>, product: &Product) -> Result<()> {
        let shape = product.shape();
        let mut described = self.described.lock().unwrap_or_else(PoisonError::into_inner);
        if described.len() >= REMEMBERED && !described.contains_key(&shape) {
            described.clear();
        }
        let found = match described.entry(shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.describe(&shape, &product.rounded())?),
        };
        for (layout, place) in found.layouts.iter_mut().zip(product.matrices()) {
            layout.move_to(&place)?;
        }
        if let Some(bias) = product.bias {
            found.task.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        launches::note(|| "product".into());
        let numbers = product.numbers();
        let algorithm = match found.of_numbers.get(&numbers) {
            Some(algorithm) => *algorithm,
            None => self.fitting(&shape, found)?,
        };
        let algorithm = match self.compute(stream, product, found, &algorithm) {
            Err(result::CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
            )) => {
                let chosen = self.choose(&shape, &found.task, &found.layouts)?;
                self.compute(stream, product, found, &chosen).map_err(failed)?;
                chosen
            }
            computed => computed.map(|()| algorithm).map_err(failed)?,
        };
        found.of_numbers.insert(numbers, algorithm);
        Ok(())
    }

    /// What computes a product of the numbers that its layouts have by now.
    fn fitting(&self, shape: &Shape, described: &Described) -> Result<sys::cublasLtMatmulAlgo_t> {
        let Described { task, layouts: [left, right, output], algorithm, .. } = described;
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all handles are alive, and the result has room for what the library writes; where it writes nothing, zeros are a result.
        let (status, result) = unsafe {
            let status = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                task.0,
                left.handle,
                right.handle,
                output.handle,
                output.handle,
                &raw const *algorithm,
                result.as_mut_ptr(),
            );
            (status, result.assume_init())
        };
        let fits = status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= SCRATCH;
        if fits { Ok(*algorithm) } else { self.choose(shape, task, &described.layouts) }
    }

    fn compute(
        &self,
        stream: &Arc<CudaStream>,
        product: &Product,
        Described { task, layouts: [left, right, layout], .. }: &Described,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> std::result::Result<(), result::CublasError> {
        let Product { scale, output, .. } = *product;
        let (beta, added) = product.added.map_or((0.0f32, output), |added| (1.0, added));
        let [left_place, right_place, _] = product.matrices();
        let address = |pointer: u64| pointer as *const c_void;
        // SAFETY: the layouts are those of the arrays, whose memory is alive as long as they are borrowed; what is freed later is
        // freed behind this work on the same stream. What is added lies as the output does. The library reads the two factors before
        // it returns.
        unsafe {
            result::matmul(
                self.handle,
                task.0,
                (&raw const scale).cast(),
                (&raw const beta).cast(),
                address(left_place.pointer),
                left.handle,
                address(right_place.pointer),
                right.handle,
                address(added.pointer),
                layout.handle,
                output.pointer as *mut c_void,
                layout.handle,
                &raw const *algorithm,
                self.scratch.device_ptr(stream).0 as *mut c_void,
                SCRATCH,
                stream.cu_stream().cast(),
            )
        }
    }

    /// A product of the rounded numbers.
    fn describe(&self, shape: &Shape, product: &Product) -> Result<Described> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let task = Task::new(shape.is_tf32)?;
        task.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(shape.transposed.1))?;
        task.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(shape.transposed.0))?;
        if let Some(pointer) = product.bias {
            task.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            task.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, pointer)?;
            if shape.batch > 1 {
                task.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, product.output.columns as i64)?;
            }
        }
        let [left, right, output] = product.matrices();
        let layouts = [Layout::new(&left)?, Layout::new(&right)?, Layout::new(&output)?];
        let algorithm = self.choose(shape, &task, &layouts)?;
        Ok(Described { task, layouts, algorithm, of_numbers: HashMap::new() })
    }

    /// How the library computes such a product.
    fn choose(
        &self,
        shape: &Shape,
        task: &Task,
        [left, right, output]: &[Layout; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        // The library's left side is the second factor.
        let [a, b, of_output] = shape.alignments;
        let preference = Preference::new(SCRATCH, [b, a, shape.added_alignment.min(of_output), of_output])?;
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
    rows: usize,
    distance: usize,
}

impl Layout {
    fn new(place: &Place) -> Result<Self> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let Place { element, rows, columns, pitch, distance, batch, .. } = *place;
        let handle = result::create_matrix_layout(data_type(element), columns as u64, rows as u64, pitch as i64);
        let layout = Self { handle: handle.map_err(failed)?, rows, distance };
        if batch > 1 {
            layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch as i32)?;
            layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, distance as i64)?;
        }
        Ok(layout)
    }

    /// Describes one that has other rows only, and in a batch another distance.
    fn move_to(&mut self, place: &Place) -> Result<()> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        if self.rows != place.rows {
            self.set(Attribute::CUBLASLT_MATRIX_LAYOUT_COLS, place.rows as u64)?;
            self.rows = place.rows;
        }
        if place.batch > 1 && self.distance != place.distance {
            self.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, place.distance as i64)?;
            self.distance = place.distance;
        }
        Ok(())
    }

    fn set<T>(&self, attribute: sys::cublasLtMatrixLayoutAttribute_t, value: T) -> Result<()> {
        // SAFETY: the value is of the attribute's type, and read before this returns.
        unsafe {
            result::set_matrix_layout_attribute(self.handle, attribute, (&raw const value).cast(), size_of::<T>())
        }
        .map_err(failed)
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
    /// So many bytes of scratch memory, and how both sides, what is added and the output are aligned.
    fn new(scratch: usize, alignments: [u32; 4]) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(result::create_matmul_pref().map_err(failed)?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, scratch)?;
        let attributes = [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        attributes.into_iter().zip(alignments).try_for_each(|(attribute, bytes)| preference.set(attribute, bytes))?;
        Ok(preference)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<()> {
        // SAFETY: the value is of the attribute's type, and read before this returns.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>()) }
            .map_err(failed)
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
