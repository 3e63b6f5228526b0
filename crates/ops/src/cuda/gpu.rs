//! A GPU with the kernels loaded, and how they are launched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDType, DeviceId, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Result};
use half::bf16;

use super::array::{Array, Buffer, Element, Indices};
use super::attention::Plan;
use super::product::Products;
use super::rotary::Turns;

/// The kernels, for all cards that they are built for.
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// One number or address that a kernel is given.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    Pointer(u64),
    Count(u32),
    Seed(u64),
    Float(f32),
    Double(f64),
}

impl Argument {
    /// The address of nothing.
    pub const NULL: Self = Self::Pointer(0);
}

impl From<Array<'_>> for Argument {
    fn from(array: Array) -> Self {
        Self::Pointer(array.pointer)
    }
}

impl From<&Indices> for Argument {
    fn from(indices: &Indices) -> Self {
        Self::Pointer(indices.pointer())
    }
}

impl From<usize> for Argument {
    fn from(count: usize) -> Self {
        Self::Count(count as u32)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

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
    /// A thread for every four of `count` numbers.
    pub fn fours(count: usize) -> Self {
        const THREADS: usize = 256;
        Self::blocks(count.div_ceil(4 * THREADS), THREADS)
    }

    /// A warp for every row.
    pub fn rows(rows: usize) -> Self {
        Self { blocks: (rows.div_ceil(ROWS_PER_BLOCK), 1), threads: (WARP, ROWS_PER_BLOCK), shared: 0 }
    }

    /// Blocks that sum rows, each over [`SUM_COLUMNS`] columns, for each of so many sums.
    pub fn sums(columns: usize, sums: usize) -> Self {
        Self { blocks: (columns.div_ceil(SUM_COLUMNS), sums), threads: (SUM_COLUMNS, SUM_ROWS), shared: 0 }
    }

    /// So many blocks of so many threads.
    pub fn blocks(blocks: usize, threads: usize) -> Self {
        Self { blocks: (blocks, 1), threads: (threads, 1), shared: 0 }
    }
}

/// A GPU, its kernels and its matrix products. All its work is put on the one stream of candle's device.
pub(crate) struct Gpu {
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    pub(super) products: Products,
    plans: Mutex<Vec<Plan>>,
    pub(super) turns: Turns,
}

/// Shared memory that a block may have without being allowed more.
const PLAIN_SHARED: usize = 48 << 10;

impl Gpu {
    /// The GPU of one of candle's devices; its kernels are loaded the first time.
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        static GPUS: Mutex<Vec<(DeviceId, Arc<Gpu>)>> = Mutex::new(Vec::new());
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpu)) = gpus.iter().find(|(id, _)| *id == device.id()) {
            return Ok(gpu.clone());
        }
        let stream = device.cuda_stream();
        let module = stream.context().load_module(Ptx::from_binary(IMAGE.to_vec())).w()?;
        let gpu = Arc::new(Self {
            products: Products::new(stream.clone())?,
            device: device.clone(),
            stream,
            module,
            functions: Mutex::default(),
            plans: Mutex::default(),
            turns: Turns::default(),
        });
        gpus.push((device.id(), gpu.clone()));
        Ok(gpu)
    }

    /// What the last batches' attention was planned as.
    pub(super) fn plans(&self) -> MutexGuard<'_, Vec<Plan>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of candle's devices it is.
    pub fn id(&self) -> DeviceId {
        self.device.id()
    }

    /// Memory for so many numbers, whatever lies in it.
    pub fn empty(&self, element: Element, count: usize) -> Result<Buffer> {
        fn of<T: CudaDType + DeviceRepr>(gpu: &Gpu, count: usize) -> Result<CudaStorage> {
            // SAFETY: who asks for it writes every number before one is read.
            Ok(CudaStorage::wrap_cuda_slice(unsafe { gpu.device.alloc::<T>(count) }?, gpu.device.clone()))
        }
        Ok(Buffer::new(match element {
            Element::F32 => of::<f32>(self, count)?,
            Element::Bf16 => of::<bf16>(self, count)?,
        }))
    }

    /// Zeros.
    pub fn zeros(&self, element: Element, count: usize) -> Result<Buffer> {
        let device = self.device.clone();
        Ok(Buffer::new(match element {
            Element::F32 => CudaStorage::wrap_cuda_slice(self.device.alloc_zeros::<f32>(count)?, device),
            Element::Bf16 => CudaStorage::wrap_cuda_slice(self.device.alloc_zeros::<bf16>(count)?, device),
        }))
    }

    /// A copy of numbers of the CPU.
    pub fn copy<T: CudaDType + DeviceRepr + 'static>(&self, values: &[T]) -> Result<Buffer> {
        let slice = self.device.clone_htod(values)?;
        Ok(Buffer::new(CudaStorage::wrap_cuda_slice(slice, self.device.clone())))
    }

    /// A copy of words.
    pub fn words(&self, words: &[u64]) -> Result<CudaSlice<u64>> {
        self.stream.clone_htod(words).w()
    }

    /// Memory for so many f64, whatever lies in it.
    pub fn doubles(&self, count: usize) -> Result<CudaSlice<f64>> {
        // SAFETY: who asks for it writes every number before one is read.
        unsafe { self.device.alloc::<f64>(count) }
    }

    /// A copy of numbers of rows.
    pub fn indices(&self, indices: &[u32]) -> Result<Indices> {
        Ok(Indices::new(self.device.clone_htod(indices)?, self.device.id()))
    }

    /// Puts a kernel in the line of what the GPU does.
    ///
    /// Its arguments must be those it is written for, and every address in them that of memory as large as it takes it for.
    pub fn launch(&self, kernel: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let (Grid { blocks, threads, shared }, dimension) = (grid, |n: usize| n as u32);
        if blocks.0 * blocks.1 == 0 {
            return Ok(());
        }
        let function = self.function(kernel)?;
        if shared > PLAIN_SHARED {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32).w()?;
        }
        let mut builder = self.stream.launch_builder(&function);
        for argument in arguments {
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
        // SAFETY: the callers, all in this module, hold to what is said above; the tests run every kernel.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    fn function(&self, kernel: &str) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(kernel).w()?;
        functions.insert(kernel.into(), function.clone());
        Ok(function)
    }
}
