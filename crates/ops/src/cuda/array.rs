//! Memory on a GPU.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};

/// The type of numbers that a kernel reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
}

impl Element {
    /// What the name of a kernel for these numbers ends in.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn bytes(self) -> usize {
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
    pub(crate) fn new(storage: &'a CudaStorage, layout: &'a Layout, name: &str) -> Result<Self> {
        let Some((first, _)) = layout.contiguous_offsets() else { bail!("{name}: expected contiguous tensors") };
        let (start, element) = start(storage, name)?;
        let pointer = start + (first * element.bytes()) as u64;
        Ok(Self { pointer, element, shape: layout.dims(), storage: PhantomData })
    }

    /// How many numbers.
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// `(rows, columns)`, all dimensions but the last folded into the rows.
    pub(crate) fn matrix(&self) -> (usize, usize) {
        let columns = self.shape.last().copied().unwrap_or(1);
        (self.count() / columns.max(1), columns)
    }
}

/// New memory on a GPU. It is freed in the order of the device's work, when the last that was asked of it before is done.
#[derive(Debug)]
pub(crate) struct Buffer {
    storage: CudaStorage,
    pointer: u64,
    element: Element,
}

impl Buffer {
    pub(crate) fn new(storage: CudaStorage) -> Result<Self> {
        let (pointer, element) = start(&storage, "buffer")?;
        Ok(Self { storage, pointer, element })
    }

    /// All of it, in a shape of so many numbers.
    pub(crate) fn array<'a>(&'a self, shape: &'a [usize]) -> Result<Array<'a>> {
        self.part(0, shape)
    }

    /// Its numbers from `first` on, in a shape of so many.
    pub(crate) fn part<'a>(&'a self, first: usize, shape: &'a [usize]) -> Result<Array<'a>> {
        let pointer = self.pointer + (first * self.element.bytes()) as u64;
        let array = Array { pointer, element: self.element, shape, storage: PhantomData };
        if first + array.count() > self.count() {
            bail!("a buffer of {} numbers has no room for {shape:?} from {first} on", self.count())
        }
        Ok(array)
    }

    /// The address of the first number.
    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    pub(crate) fn element(&self) -> Element {
        self.element
    }

    /// How many numbers.
    pub(crate) fn count(&self) -> usize {
        match &self.storage.slice {
            CudaStorageSlice::F32(slice) => slice.len(),
            CudaStorageSlice::BF16(slice) => slice.len(),
            _ => 0,
        }
    }

    /// A copy on the CPU. Waits for the GPU.
    pub(crate) fn to_cpu(&self) -> Result<CpuStorage> {
        self.storage.to_cpu_storage()
    }

    pub(crate) fn into_tensor(self, shape: &Shape) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.storage), shape.clone(), BackpropOp::none(), false)
    }

    pub(crate) fn into_storage(self) -> CudaStorage {
        self.storage
    }
}

/// Numbers of rows on a GPU.
#[derive(Debug)]
pub(crate) struct Indices(CudaSlice<u32>);

impl Indices {
    pub(crate) fn new(slice: CudaSlice<u32>) -> Self {
        Self(slice)
    }

    /// The address of the first.
    pub(crate) fn pointer(&self) -> u64 {
        pointer(&self.0)
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

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
