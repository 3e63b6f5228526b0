//! How a kernel is launched: on a grid of threads, with arguments of which every array is checked.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::function::set_function_attribute;
use candle_core::cuda_backend::cudarc::driver::result::{launch_kernel, module};
use candle_core::cuda_backend::cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};

use super::array::{Array, Buffer, Element, Indices};
use super::gpu::Gpu;
use super::launches;
use crate::operations::dropout::Dropout;

// Of `common.cuh`.
const WARP: usize = 32;
const ROWS_PER_BLOCK: usize = 4;
const SUM_COLUMNS: usize = 32;
const SUM_ROWS: usize = 8;

/// How many blocks of how many threads run a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub blocks: (usize, usize),
    pub threads: (usize, usize),
    /// Bytes of dynamic shared memory of a block.
    pub shared: usize,
}

impl Grid {
    /// A thread for every eight of `count` numbers.
    pub(super) fn eights(count: usize) -> Self {
        const THREADS: usize = 256;
        Self::blocks(count.div_ceil(8 * THREADS), THREADS)
    }

    /// A warp for every row.
    pub(super) fn rows(rows: usize) -> Self {
        Self { blocks: (rows.div_ceil(ROWS_PER_BLOCK), 1), threads: (WARP, ROWS_PER_BLOCK), shared: 0 }
    }

    /// Blocks that sum rows, each over [`SUM_COLUMNS`] columns, for each of so many sums.
    pub(super) fn sums(columns: usize, sums: usize) -> Self {
        Self { blocks: (columns.div_ceil(SUM_COLUMNS), sums), threads: (SUM_COLUMNS, SUM_ROWS), shared: 0 }
    }

    /// So many blocks of so many threads.
    pub(super) fn blocks(blocks: usize, threads: usize) -> Self {
        Self { blocks: (blocks, 1), threads: (threads, 1), shared: 0 }
    }
}

/// Shared memory that a block may have without being allowed more.
const PLAIN_SHARED: usize = 48 << 10;

/// As many arguments as most kernels have.
const ARGUMENTS: usize = 24;

/// The name of a kernel, and the type of numbers that it ends in, if it says that.
pub(super) type Name = (Cow<'static, str>, Option<Element>);

/// A kernel and its arguments, in the order in which it takes them. Of each array it is said how many numbers the kernel reads or writes
/// there; one that is shorter, or of another type, is an error of [`Kernel::launch`].
pub(crate) struct Kernel<'a> {
    name: Name,
    element: Element,
    /// The bits of each number and address; those of 32 bits are the lower half of a word.
    arguments: Vec<u64>,
    misfit: Option<String>,
    /// The arrays stay alive until the launch. What is freed later is freed behind it on the same stream.
    arrays: PhantomData<&'a Buffer>,
}

impl<'a> Kernel<'a> {
    fn new(name: Name, element: Element) -> Self {
        Self { name, element, arguments: Vec::with_capacity(ARGUMENTS), misfit: None, arrays: PhantomData }
    }

    /// A kernel for f32.
    pub(super) fn f32(name: &'static str) -> Self {
        Self::new((name.into(), None), Element::F32)
    }

    /// A kernel for bf16.
    pub(super) fn bf16(name: &'static str) -> Self {
        Self::new((name.into(), None), Element::Bf16)
    }

    /// The kernel of that name for hidden states of this type.
    pub(super) fn of(name: impl Into<Cow<'static, str>>, element: Element) -> Self {
        Self::new((name.into(), Some(element)), element)
    }

    fn array(mut self, pointer: u64, (found, count): (Element, usize), (element, least): (Element, usize)) -> Self {
        if (found, count < least) != (element, false) && self.misfit.is_none() {
            let place = self.arguments.len() + 1;
            self.misfit = Some(format!("argument {place}: {least} {element:?} expected, {count} {found:?} found"));
        }
        self.address(pointer)
    }

    /// Numbers of the kernel's type that it reads.
    pub(super) fn read(self, array: Array<'a>, count: usize) -> Self {
        let element = self.element;
        self.array(array.pointer, (array.element, array.count()), (element, count))
    }

    /// Numbers in f32 that it reads, whatever its type.
    pub(super) fn read_f32(self, array: Array<'a>, count: usize) -> Self {
        self.array(array.pointer, (array.element, array.count()), (Element::F32, count))
    }

    /// As [`Kernel::read`], or no array.
    pub(super) fn read_if(self, array: Option<Array<'a>>, count: usize) -> Self {
        match array {
            Some(array) => self.read(array, count),
            None => self.nothing(),
        }
    }

    /// Numbers of the kernel's type that it writes.
    pub(super) fn write(self, buffer: &'a Buffer, count: usize) -> Self {
        let element = self.element;
        self.array(buffer.pointer(), (buffer.element(), buffer.count()), (element, count))
    }

    /// Numbers in f32 that it writes, whatever its type.
    pub(super) fn write_f32(self, buffer: &'a Buffer, count: usize) -> Self {
        self.array(buffer.pointer(), (buffer.element(), buffer.count()), (Element::F32, count))
    }

    /// Numbers of rows that it reads.
    pub(super) fn indices(mut self, indices: &'a Indices, count: usize) -> Self {
        if indices.count() < count && self.misfit.is_none() {
            self.misfit = Some(format!("{count} row numbers expected, {} found", indices.count()));
        }
        self.address(indices.pointer())
    }

    /// The address of nothing, in place of an array.
    pub(super) fn nothing(self) -> Self {
        self.address(0)
    }

    pub(super) fn count(self, count: usize) -> Self {
        self.word(u64::from(count as u32))
    }

    pub(super) fn counts<const N: usize>(self, counts: [usize; N]) -> Self {
        counts.into_iter().fold(self, Self::count)
    }

    pub(super) fn float(self, value: f32) -> Self {
        self.word(u64::from(value.to_bits()))
    }

    pub(super) fn double(self, value: f64) -> Self {
        self.word(value.to_bits())
    }

    /// The threshold, the scale and the seed of a dropout; without any, nothing is dropped.
    pub(super) fn dropout(self, dropout: Option<Dropout>) -> Self {
        let (dropped_below, scale, seed) =
            dropout.map_or((0, 1.0, 0), |dropout| (dropout.dropped_below, dropout.scale, dropout.seed));
        self.word(u64::from(dropped_below)).float(scale as f32).word(seed)
    }

    /// An address within an array, or 0. What lies there is the caller's to know: see [`Kernel::launch`].
    pub(super) fn address(self, address: u64) -> Self {
        self.word(address)
    }

    fn word(mut self, bits: u64) -> Self {
        self.arguments.push(bits);
        self
    }

    /// Puts the kernel in the line of what the GPU does.
    ///
    /// # Safety
    /// The arguments must be those of the kernel of that name, in its order. On that grid it must read and write no more numbers of an
    /// array than was said, and at an [`address`](Kernel::address) no more than lie there.
    pub(super) unsafe fn launch(self, gpu: &Gpu, grid: Grid) -> Result<()> {
        let (Grid { blocks, threads, shared }, dimension) = (grid, |n: usize| n as u32);
        if let Some(misfit) = self.misfit {
            candle_core::bail!("the kernel {}: {misfit}", spelled(&self.name))
        }
        if blocks.0 * blocks.1 == 0 {
            return Ok(());
        }
        let mut addresses: Vec<*mut c_void> = Vec::with_capacity(self.arguments.len());
        addresses.extend(self.arguments.iter().map(|word| std::ptr::from_ref(word).cast_mut().cast()));
        gpu.stream.context().bind_to_thread().w()?;
        launches::note(|| spelled(&self.name));
        let function = gpu.function(self.name, shared)?;
        // SAFETY: as the caller promises. The driver reads each argument, of 32 or 64 bits, before it returns: processors that it runs
        // on have the lower half of a word first.
        unsafe {
            launch_kernel(
                function,
                (dimension(blocks.0), dimension(blocks.1), 1),
                (dimension(threads.0), dimension(threads.1), 1),
                dimension(shared),
                gpu.stream.cu_stream(),
                &mut addresses,
            )
        }
        .w()?;
        Ok(())
    }
}

/// As the image of the kernels has it.
fn spelled((name, element): &Name) -> String {
    match element {
        Some(element) => format!("{name}_{}", element.suffix()),
        None => name.to_string(),
    }
}

/// A kernel that has been looked up in the image.
struct Function {
    handle: CUfunction,
    /// The most shared memory that a block of it may have.
    shared: usize,
}

// SAFETY: a handle is an address that the driver takes from any thread.
unsafe impl Send for Function {}

/// The kernels' image on a GPU, and those of its kernels that were looked up.
pub(super) struct Module {
    handle: CUmodule,
    functions: Mutex<HashMap<Name, Function>>,
}

// SAFETY: a handle is an address that the driver takes from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads the image to the GPU of this thread's context, where it stays.
    pub(super) fn load() -> Result<Self> {
        let aligned = kernels::IMAGE.to_vec(); // The driver reads words; constants lie at any address.
        // SAFETY: the image is what nvcc has made. The driver has a copy of what it needs when it returns.
        let handle = unsafe { module::load_data(aligned.as_ptr().cast()) }.w()?;
        Ok(Self { handle, functions: Mutex::default() })
    }
}

impl Gpu {
    /// The kernel of that name, whose blocks may have so much shared memory.
    fn function(&self, name: Name, shared: usize) -> Result<CUfunction> {
        let mut functions = self.module.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match functions.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let name = CString::new(spelled(entry.key())).map_err(candle_core::Error::wrap)?;
                // SAFETY: the module is never unloaded.
                let handle = unsafe { module::get_function(self.module.handle, name) }.w()?;
                entry.insert(Function { handle, shared: PLAIN_SHARED })
            }
        };
        if shared > function.shared {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is the module's.
            unsafe { set_function_attribute(function.handle, most, shared as i32) }.w()?;
            function.shared = shared;
        }
        Ok(function.handle)
    }
}
