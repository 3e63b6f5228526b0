//! How a kernel is launched: on a grid of threads, with arguments of which every array is checked.

use std::borrow::Cow;
use std::marker::PhantomData;

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};

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

/// One number or address that a kernel is given.
#[derive(Clone, Copy)]
enum Argument {
    Pointer(u64),
    Count(u32),
    Seed(u64),
    Float(f32),
    Double(f64),
}

/// A kernel and its arguments, in the order in which it takes them. Of each array it is said how many numbers the kernel reads or writes
/// there; one that is shorter, or of another type, is an error of [`Kernel::launch`].
pub(crate) struct Kernel<'a> {
    name: Cow<'static, str>,
    element: Element,
    arguments: Vec<Argument>,
    misfit: Option<String>,
    /// The arrays stay alive until the launch. What is freed later is freed behind it on the same stream.
    arrays: PhantomData<&'a Buffer>,
}

impl<'a> Kernel<'a> {
    fn new(name: Cow<'static, str>, element: Element) -> Self {
        Self { name, element, arguments: Vec::with_capacity(16), misfit: None, arrays: PhantomData }
    }

    /// A kernel for f32.
    pub(super) fn f32(name: &'static str) -> Self {
        Self::new(name.into(), Element::F32)
    }

    /// A kernel for bf16.
    pub(super) fn bf16(name: &'static str) -> Self {
        Self::new(name.into(), Element::Bf16)
    }

    /// The kernel of that name for hidden states of this type.
    pub(super) fn of(name: &str, element: Element) -> Self {
        Self::new(format!("{name}_{}", element.suffix()).into(), element)
    }

    fn array(mut self, pointer: u64, (found, count): (Element, usize), (element, least): (Element, usize)) -> Self {
        if (found, count < least) != (element, false) && self.misfit.is_none() {
            let place = self.arguments.len() + 1;
            self.misfit = Some(format!("argument {place}: {least} {element:?} expected, {count} {found:?} found"));
        }
        self.with(Argument::Pointer(pointer))
    }

    fn with(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
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
        self.with(Argument::Pointer(indices.pointer()))
    }

    /// The address of nothing, in place of an array.
    pub(super) fn nothing(self) -> Self {
        self.with(Argument::Pointer(0))
    }

    pub(super) fn count(self, count: usize) -> Self {
        self.with(Argument::Count(count as u32))
    }

    pub(super) fn counts<const N: usize>(self, counts: [usize; N]) -> Self {
        counts.into_iter().fold(self, Self::count)
    }

    pub(super) fn float(self, value: f32) -> Self {
        self.with(Argument::Float(value))
    }

    pub(super) fn double(self, value: f64) -> Self {
        self.with(Argument::Double(value))
    }

    /// The threshold, the scale and the seed of a dropout; without any, nothing is dropped.
    pub(super) fn dropout(self, dropout: Option<Dropout>) -> Self {
        let (dropped_below, scale, seed) =
            dropout.map_or((0, 1.0, 0), |dropout| (dropout.dropped_below, dropout.scale, dropout.seed));
        self.with(Argument::Count(dropped_below)).float(scale as f32).with(Argument::Seed(seed))
    }

    /// An address within an array, or 0. What lies there is the caller's to know: see [`Kernel::launch`].
    pub(super) fn address(self, address: u64) -> Self {
        self.with(Argument::Pointer(address))
    }

    /// Puts the kernel in the line of what the GPU does.
    ///
    /// # Safety
    /// The arguments must be those of the kernel of that name, in its order. On that grid it must read and write no more numbers of an
    /// array than was said, and at an [`address`](Kernel::address) no more than lie there.
    pub(super) unsafe fn launch(self, gpu: &Gpu, grid: Grid) -> Result<()> {
        let (Grid { blocks, threads, shared }, dimension) = (grid, |n: usize| n as u32);
        if let Some(misfit) = self.misfit {
            candle_core::bail!("the kernel {}: {misfit}", self.name)
        }
        if blocks.0 * blocks.1 == 0 {
            return Ok(());
        }
        launches::note(&self.name);
        let function = gpu.function(&self.name)?;
        if shared > PLAIN_SHARED {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32).w()?;
        }
        let mut builder = gpu.stream.launch_builder(&function);
        for argument in &self.arguments {
            match argument {
                Argument::Pointer(value) | Argument::Seed(value) => builder.arg(value),
                Argument::Count(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
                Argument::Double(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (dimension(blocks.0), dimension(blocks.1), 1),
            block_dim: (dimension(threads.0), dimension(threads.1), 1),
            shared_mem_bytes: dimension(shared),
        };
        // SAFETY: as the caller promises.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}
