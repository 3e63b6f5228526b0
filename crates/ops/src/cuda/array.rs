//! Memory on a GPU.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CpuStorage, CudaStorage, DType, Layout, Result, bail};

use super::gpu::Gpu;

/// The type of numbers that a kernel reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
}

impl Element {
    /// The kernel of that name for these numbers.
    pub fn kernel(self, name: &str) -> String {
        match self {
            Self::F32 => format!("{name}_f32"),
            Self::Bf16 => format!("{name}_bf16"),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A contiguous tensor as a kernel sees it, while its storage is borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Array<'a> {
    /// The address of the first number.
    pub pointer: u64,
    pub element: Element,
    pub shape: &'a [usize],
    storage: PhantomData<&'a CudaStorage>,
}

impl<'a> Array<'a> {
    pub fn new(storage: &'a CudaStorage, layout: &'a Layout, name: &str) -> Result<Self> {
        let Some((first, _)) = layout.contiguous_offsets() else { bail!("{name}: expected contiguous tensors") };
        let (start, element) = start(storage, name)?;
        let pointer = start + (first * element.bytes()) as u64;
        Ok(Self { pointer, element, shape: layout.dims(), storage: PhantomData })
    }

    /// How many numbers.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// `(rows, columns)`, all dimensions but the last folded into the rows.
    pub fn matrix(&self) -> (usize, usize) {
        let columns = self.shape.last().copied().unwrap_or(1);
        (self.count() / columns.max(1), columns)
    }
}

/// New memory on a GPU. It is freed in the order of the device's work, when the last that was asked of it before is done.
#[derive(Debug)]
pub(crate) struct Buffer(CudaStorage);

impl Buffer {
    pub fn new(storage: CudaStorage) -> Self {
        Self(storage)
    }

    /// All of it, in a shape of so many numbers.
    pub fn array<'a>(&'a self, shape: &'a [usize]) -> Result<Array<'a>> {
        let (pointer, element) = start(&self.0, "buffer")?;
        Ok(Array { pointer, element, shape, storage: PhantomData })
    }

    /// The address of the first number.
    pub fn pointer(&self) -> Result<u64> {
        Ok(start(&self.0, "buffer")?.0)
    }

    /// How many numbers.
    pub fn count(&self) -> usize {
        match &self.0.slice {
            CudaStorageSlice::F32(slice) => slice.len(),
            CudaStorageSlice::BF16(slice) => slice.len(),
            _ => 0,
        }
    }

    /// A copy on the CPU. Waits for the GPU.
    pub fn to_cpu(&self) -> Result<CpuStorage> {
        self.0.to_cpu_storage()
    }

    pub fn into_storage(self) -> CudaStorage {
        self.0
    }
}

/// Numbers of rows on a GPU.
#[derive(Debug)]
pub(crate) struct Indices {
    slice: CudaSlice<u32>,
    /// Where they lie.
    pub device: DeviceId,
}

impl Indices {
    pub fn new(slice: CudaSlice<u32>, device: DeviceId) -> Self {
        Self { slice, device }
    }

    /// The address of the first.
    pub fn pointer(&self) -> u64 {
        pointer(&self.slice)
    }
}

/// Numbers that were copied to a GPU when an operation there first asked for them. All clones share the copy, and whatever holds it is
/// equal to what holds another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uploaded(Arc<OnceLock<Arc<Indices>>>);

impl Uploaded {
    /// The copy of those numbers, always the same, on that GPU.
    pub fn or_upload(&self, gpu: &Gpu, numbers: &[usize]) -> Result<Arc<Indices>> {
        if let Some(found) = self.0.get().filter(|found| found.device == gpu.id()) {
            return Ok(found.clone());
        }
        let numbers: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
        let indices = Arc::new(gpu.indices(&numbers)?);
        let _ = self.0.set(indices.clone()); // The first GPU's are kept.
        Ok(indices)
    }
}

impl PartialEq for Uploaded {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Uploaded {}

/// All work on a device is put on one stream, so that nobody needs to wait for what is done with this memory.
pub(super) fn pointer<T>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

/// The address of a storage's first number.
fn start(storage: &CudaStorage, name: &str) -> Result<(u64, Element)> {
    match &storage.slice {
        CudaStorageSlice::F32(slice) => Ok((pointer(slice), Element::F32)),
        CudaStorageSlice::BF16(slice) => Ok((pointer(slice), Element::Bf16)),
        _ => {
            let found: DType = storage.dtype();
            bail!("{name}: expected f32 or bf16 on a GPU, found {found:?}; f64 is computed on the CPU only")
        }
    }
}
