//! A GPU with the kernels loaded, and its memory.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Result};
use half::bf16;

use super::array::{Buffer, Element, Indices};
use super::kernel::Module;

/// A GPU and its kernels. All its work is put on the one stream of candle's device.
pub(crate) struct Gpu {
    pub device: CudaDevice,
    pub stream: Arc<CudaStream>,
    pub(super) module: Module,
    states: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Gpu {
    /// The GPU of one of candle's devices; its kernels are loaded the first time.
    pub(crate) fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        thread_local! {
            /// That of this thread's last operation: runs on several threads need not wait for each other to find it.
            static LAST: RefCell<Option<Arc<Gpu>>> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| match last {
            Some(gpu) if gpu.id() == device.id() => Ok(gpu.clone()),
            _ => Ok(last.insert(Self::find(device)?).clone()),
        })
    }

    fn find(device: &CudaDevice) -> Result<Arc<Self>> {
        static GPUS: Mutex<Vec<Arc<Gpu>>> = Mutex::new(Vec::new());
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = gpus.iter().find(|gpu| gpu.id() == device.id()) {
            return Ok(gpu.clone());
        }
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let gpu = Arc::new(Self { device: device.clone(), stream, module: Module::load()?, states: Mutex::default() });
        gpus.push(gpu.clone());
        Ok(gpu)
    }

    /// Which of candle's devices it is.
    pub(crate) fn id(&self) -> DeviceId {
        self.device.id()
    }

    /// What is kept for this GPU between calls, made at the first one.
    pub(crate) fn state<S: Send + Sync + 'static>(&self, make: impl FnOnce() -> Result<S>) -> Result<Arc<S>> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = states.get(&TypeId::of::<S>()) {
            // The type is the key, so that this always is one.
            if let Ok(state) = state.clone().downcast() {
                return Ok(state);
            }
        }
        let state = Arc::new(make()?);
        states.insert(TypeId::of::<S>(), state.clone());
        Ok(state)
    }

    /// Memory for so many numbers, whatever lies in it: of the bits there, every pattern is a number.
    pub(crate) fn empty(&self, element: Element, count: usize) -> Result<Buffer> {
        fn of<T: CudaDType + DeviceRepr>(gpu: &Gpu, count: usize) -> Result<CudaStorage> {
            // SAFETY: every pattern of bits is a number of this type.
            Ok(CudaStorage::wrap_cuda_slice(unsafe { gpu.device.alloc::<T>(count) }?, gpu.device.clone()))
        }
        Buffer::new(match element {
            Element::F32 => of::<f32>(self, count)?,
            Element::Bf16 => of::<bf16>(self, count)?,
        })
    }

    /// Zeros.
    pub(crate) fn zeros(&self, element: Element, count: usize) -> Result<Buffer> {
        let device = self.device.clone();
        Buffer::new(match element {
            Element::F32 => CudaStorage::wrap_cuda_slice(self.device.alloc_zeros::<f32>(count)?, device),
            Element::Bf16 => CudaStorage::wrap_cuda_slice(self.device.alloc_zeros::<bf16>(count)?, device),
        })
    }

    /// A copy of numbers of the CPU.
    pub(crate) fn copy<T: CudaDType + DeviceRepr + 'static>(&self, values: &[T]) -> Result<Buffer> {
        let slice = self.device.clone_htod(values)?;
        Buffer::new(CudaStorage::wrap_cuda_slice(slice, self.device.clone()))
    }

    /// A copy of words.
    pub(crate) fn words(&self, words: &[u64]) -> Result<CudaSlice<u64>> {
        self.device.clone_htod(words)
    }

    /// Memory for so many f64, whatever lies in it.
    pub(crate) fn doubles(&self, count: usize) -> Result<CudaSlice<f64>> {
        // SAFETY: every pattern of bits is a number of this type.
        unsafe { self.device.alloc::<f64>(count) }
    }

    /// A copy of numbers of rows.
    pub(crate) fn indices(&self, indices: &[u32]) -> Result<Indices> {
        Ok(Indices::new(self.device.clone_htod(indices)?))
    }

    /// A copy of numbers of rows that many operations ask for: of the same list it is made once, and kept as long as the list.
    pub(crate) fn shared_indices(&self, numbers: &Arc<[usize]>) -> Result<Arc<Indices>> {
        let copies = self.state(|| Ok(Copies::default()))?;
        let mut copies = copies.lock().unwrap_or_else(PoisonError::into_inner);
        let address = numbers.as_ptr() as usize;
        // A list that is remembered keeps its address, also when it is empty by now.
        if let Some((_, copy)) = copies.get(&address).filter(|(list, _)| list.strong_count() > 0) {
            return Ok(copy.clone());
        }
        let words: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
        let copy = Arc::new(self.indices(&words)?);
        copies.retain(|_, (list, _)| list.strong_count() > 0);
        copies.insert(address, (Arc::downgrade(numbers), copy.clone()));
        Ok(copy)
    }
}

/// Lists of the CPU by their address, and their copies.
type Copies = Mutex<HashMap<usize, (Weak<[usize]>, Arc<Indices>)>>;
