//! Sums over several GPUs, by NVIDIA's library NCCL. It is loaded when several GPUs are to work together, and not before: a program
//! starts without it.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{CpuStorage, Device, Result, Tensor, bail};

use super::{Element, Gpu, with_arrays};

/// `ncclComm_t`.
type Handle = *mut c_void;
/// `ncclResult_t`: 0 is success.
type Status = c_int;

// Of `ncclDataType_t` and `ncclRedOp_t`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// The library's functions, as `nccl.h` declares them since version 2.4.
struct Library {
    init_all: unsafe extern "C" fn(*mut Handle, c_int, *const c_int) -> Status,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    abort: unsafe extern "C" fn(Handle) -> Status,
    group_start: unsafe extern "C" fn() -> Status,
    group_end: unsafe extern "C" fn() -> Status,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

const FILE: &str = "libnccl.so.2";

impl Library {
    /// The library, loaded the first time.
    fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<std::result::Result<Library, libloading::Error>> = OnceLock::new();
        match LIBRARY.get_or_init(Self::load) {
            Ok(library) => Ok(library),
            Err(error) => bail!(
                "several GPUs work together by NVIDIA's library NCCL, and {FILE} does not load: {error}; install it by `pip install \
                 nvidia-nccl-cu13` or as the system's package libnccl2, with its folder in LD_LIBRARY_PATH, or choose one GPU"
            ),
        }
    }

    fn load() -> std::result::Result<Self, libloading::Error> {
        // SAFETY: what the library does as it is loaded is NVIDIA's, and it stays loaded: what is found in it may be called for
        // ever. The functions have the types of `nccl.h`.
        unsafe {
            let library = Box::leak(Box::new(libloading::Library::new(FILE)?));
            Ok(Self {
                init_all: *library.get("ncclCommInitAll")?,
                destroy: *library.get("ncclCommDestroy")?,
                abort: *library.get("ncclCommAbort")?,
                group_start: *library.get("ncclGroupStart")?,
                group_end: *library.get("ncclGroupEnd")?,
                all_reduce: *library.get("ncclAllReduce")?,
                error_string: *library.get("ncclGetErrorString")?,
            })
        }
    }

    fn check(&self, function: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the text is the library's, and stays.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy();
        bail!("{function}: {text} ({status}); with NCCL_DEBUG=WARN the library says more")
    }

    /// What is asked for in `calls` is begun as one, when all of it has been asked for.
    fn grouped(&self, calls: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: a group is of one thread, and ended below whatever happens in between.
        self.check("ncclGroupStart", unsafe { (self.group_start)() })?;
        let called = calls();
        // SAFETY: a group was begun.
        let ended = self.check("ncclGroupEnd", unsafe { (self.group_end)() });
        called.and(ended)
    }
}

/// A communicator of the library's.
struct Rank(Handle);

// SAFETY: a communicator may be used by any thread, by one at a time.
unsafe impl Send for Rank {}

/// GPUs of this process that add up what each has computed: rank `i` is the `i`th of them.
pub struct Communicators {
    library: &'static Library,
    gpus: Vec<Arc<Gpu>>,
    /// None once they have been aborted.
    ranks: RwLock<Vec<Mutex<Rank>>>,
}

impl Communicators {
    /// Connects GPUs, each of them another one, and tries the connection.
    ///
    /// # Errors
    /// When the library is not installed, or cannot connect them.
    pub fn new(devices: &[Device]) -> Result<Self> {
        let library = Library::get()?;
        let gpus = devices.iter().map(|device| Gpu::of(device.as_cuda_device()?)).collect::<Result<Vec<_>>>()?;
        open_memory(&gpus)?;
        let ordinals: Vec<c_int> = gpus.iter().map(|gpu| gpu.stream.context().ordinal() as c_int).collect();
        let mut handles: Vec<Handle> = vec![std::ptr::null_mut(); gpus.len()];
        // SAFETY: as many places and numbers as the library is told.
        let status = unsafe { (library.init_all)(handles.as_mut_ptr(), gpus.len() as c_int, ordinals.as_ptr()) };
        library.check("ncclCommInitAll", status)?;
        let ranks = handles.into_iter().map(|handle| Mutex::new(Rank(handle))).collect();
        let communicators = Self { library, gpus, ranks: RwLock::new(ranks) };
        communicators.try_out()?;
        Ok(communicators)
    }

    /// A first sum: for it the library takes memory, of which training may leave none.
    fn try_out(&self) -> Result<()> {
        let buffers = self.gpus.iter().map(|gpu| gpu.copy(&[1f32])).collect::<Result<Vec<_>>>()?;
        let ranks = self.ranks.read().unwrap_or_else(PoisonError::into_inner);
        self.library.grouped(|| {
            for ((gpu, rank), buffer) in self.gpus.iter().zip(&*ranks).zip(&buffers) {
                self.all_reduce(gpu, rank, buffer.pointer(), 1)?;
            }
            Ok(())
        })?;
        for buffer in &buffers {
            match buffer.to_cpu()? {
                CpuStorage::F32(sum) if sum == [self.gpus.len() as f32] => {}
                found => bail!("NCCL: the sum of {} ones is {found:?}; choose other GPUs, or one", self.gpus.len()),
            }
        }
        Ok(())
    }

    fn all_reduce(&self, gpu: &Gpu, rank: &Mutex<Rank>, address: u64, count: usize) -> Result<()> {
        let rank = rank.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = address as *mut c_void;
        // SAFETY: the memory holds so many floats, and is freed in the order of the stream's work.
        let status = unsafe {
            (self.library.all_reduce)(memory, memory, count, FLOAT32, SUM, rank.0, gpu.stream.cu_stream().cast())
        };
        self.library.check("ncclAllReduce", status)
    }

    /// Makes each f32 tensor of this rank's GPU the sum of all ranks', of which each must call this with as many tensors of the same
    /// sizes, from a thread of its own. Every rank gets the same bits.
    ///
    /// The tensors' own memory is written to: nobody else may need what it held. Nobody waits: the GPUs do.
    ///
    /// # Errors
    /// When a tensor is none of f32 on that GPU, or the communicators were aborted. The other ranks then wait until they are.
    pub fn sum<'a>(&self, rank: usize, tensors: impl IntoIterator<Item = &'a mut Tensor>) -> Result<()> {
        let tensors = apart(tensors)?;
        let ranks = self.ranks.read().unwrap_or_else(PoisonError::into_inner);
        let (Some(gpu), Some(rank)) = (self.gpus.get(rank), ranks.get(rank)) else {
            bail!("NCCL: rank {rank} of {} is not there any more: another GPU has failed", self.gpus.len())
        };
        with_arrays(&tensors, "sum over GPUs", |found, arrays| {
            if found.id() != gpu.id() || arrays.iter().any(|array| array.element != Element::F32) {
                bail!("sum over GPUs: expected f32 on the GPU of the rank")
            }
            gpu.stream.context().bind_to_thread().w()?;
            self.library.grouped(|| {
                arrays.iter().try_for_each(|array| self.all_reduce(gpu, rank, array.pointer, array.count()))
            })
        })
    }

    /// Ends what waits for a rank that will not come: GPUs go on with whatever lies in their memory, and nothing is summed any more.
    /// Whether that has not been done before.
    pub fn abort(&self) -> bool {
        let mut ranks = self.ranks.write().unwrap_or_else(PoisonError::into_inner);
        let is_first = !ranks.is_empty();
        for rank in ranks.drain(..) {
            let Rank(handle) = rank.into_inner().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: nobody else is in the library with it, and nobody finds it any more.
            unsafe { (self.library.abort)(handle) };
        }
        is_first
    }
}

impl Drop for Communicators {
    fn drop(&mut self) {
        let ranks = self.ranks.get_mut().unwrap_or_else(PoisonError::into_inner);
        for rank in ranks.drain(..) {
            let Rank(handle) = rank.into_inner().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: as above.
            unsafe { (self.library.destroy)(handle) };
        }
    }
}

/// Lets GPUs reach the memory of tensors of each other, which comes from pools. Where cards can, the library reads and writes tensors of
/// other cards directly, and leaves it to its user that they may (its documentation on `NCCL_P2P_DIRECT_DISABLE`).
fn open_memory(gpus: &[Arc<Gpu>]) -> Result<()> {
    let ordinal = |gpu: &Gpu| gpu.stream.context().ordinal() as c_int;
    for (owner, reader) in gpus.iter().flat_map(|owner| gpus.iter().map(move |reader| (owner, reader))) {
        if owner.id() == reader.id() {
            continue;
        }
        let (owner, reader) = (result::device::get(ordinal(owner)).w()?, result::device::get(ordinal(reader)).w()?);
        let mut can = 0;
        // CUmemAccessDesc: a location's type and number, and flags.
        let access: [c_int; 3] = [
            sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as c_int,
            reader,
            sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE as c_int,
        ];
        // SAFETY: the devices were found just now, and what is pointed to is what the driver declares.
        unsafe {
            sys::cuDeviceCanAccessPeer(&raw mut can, reader, owner).result().w()?;
            if can != 0 {
                let pool = result::device::get_default_mem_pool(owner).w()?;
                sys::cuMemPoolSetAccess(pool, access.as_ptr().cast(), 1).result().w()?;
            }
        }
    }
    Ok(())
}

/// The tensors, contiguous and none on another's memory: gradients of several parameters may be one tensor.
fn apart<'a>(tensors: impl IntoIterator<Item = &'a mut Tensor>) -> Result<Vec<&'a Tensor>> {
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new(); // ends by starts
    let mut place = |tensor: &Tensor| {
        with_arrays(&[tensor], "sum over GPUs", |_, arrays| {
            let start = arrays[0].pointer;
            let end = start + (arrays[0].count() * arrays[0].element.bytes()) as u64;
            let overlaps = taken.range(..end).next_back().is_some_and(|(_, &other)| other > start);
            if !overlaps {
                taken.insert(start, end);
            }
            Ok(!overlaps)
        })
    };
    let mut found = Vec::new();
    for tensor in tensors {
        *tensor = tensor.contiguous()?;
        if !place(tensor)? {
            *tensor = tensor.copy()?;
            place(tensor)?;
        }
        found.push(&*tensor);
    }
    Ok(found)
}
