//! The memory that tensors on a GPU have had, kept for the next ones.
//!
//! candle has the driver asked for the memory of every tensor, by the crate cudarc, and gives it back when the tensor is dropped: some
//! thousand times in a training step, and every packed batch has other sizes. The two functions of the driver that cudarc calls for that
//! are defined here too, where a linker looks before it comes to the driver's library. What is freed on a stream is kept, and given to
//! whom asks next on the same stream: the stream's work is done in its order, so that nobody needs to wait. The driver is asked for
//! what is missing, and gets everything back that nobody has before a lack of memory is told.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_uchar;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdeviceptr, CUresult, CUstream};

/// With any value, freed memory goes back to the driver at once, so that tools that watch over memory see who uses what.
const SWITCH: &str = "PEFT_NO_CUDA_MEMORY_CACHING";

/// With any value, memory that is freed is filled with NaN in its stream's order before others have it, so that who uses it too late, or
/// reads what was never written, shows in numbers.
const POISONS: &str = "PEFT_POISON_CUDA_MEMORY";

fn poisons_memory() -> bool {
    static POISONED: OnceLock<bool> = OnceLock::new();
    *POISONED.get_or_init(|| std::env::var_os(POISONS).is_some_and(|value| !value.is_empty()))
}

fn keeps_memory() -> bool {
    static KEEPS: OnceLock<bool> = OnceLock::new();
    *KEEPS.get_or_init(|| std::env::var_os(SWITCH).is_none_or(|value| value.is_empty()))
}

/// Memory of one piece.
#[derive(Clone, Copy)]
struct Block {
    bytes: usize,
    /// What of it was asked for.
    used: usize,
}

/// The blocks of a stream, by their addresses.
#[derive(Default)]
struct Blocks {
    taken: HashMap<CUdeviceptr, Block>,
    /// Those that nobody has, by their sizes.
    idle: BTreeMap<usize, Vec<CUdeviceptr>>,
}

impl Blocks {
    /// The smallest idle block that so many bytes fit into, at most half as large again.
    fn take(&mut self, bytes: usize) -> Option<(CUdeviceptr, usize)> {
        let size = *self.idle.range(bytes..=bytes + bytes / 2).next()?.0;
        Some((self.remove(size)?, size))
    }

    /// The largest idle block that so many bytes would nearly fit into.
    fn take_smaller(&mut self, bytes: usize) -> Option<CUdeviceptr> {
        let size = *self.idle.range(bytes - bytes / 3..bytes).next_back()?.0;
        self.remove(size)
    }

    fn remove(&mut self, size: usize) -> Option<CUdeviceptr> {
        let addresses = self.idle.get_mut(&size)?;
        let address = addresses.pop();
        if addresses.is_empty() {
            self.idle.remove(&size);
        }
        address
    }

    fn keep(&mut self, address: CUdeviceptr, bytes: usize) {
        self.idle.entry(bytes).or_default().push(address);
    }
}

/// So that sizes that differ a little can have each other's blocks: up to a sixteenth more.
fn size(bytes: usize) -> usize {
    const UNIT: usize = 512; // The driver's alignment.
    let power = (bytes + 1).next_power_of_two() / 2; // The greatest that is no more.
    bytes.next_multiple_of(UNIT.max(power / 16))
}

/// What tensors on a card take, in bytes.
#[derive(Default)]
struct Usage {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// What is freed on a stream.
struct Pool {
    stream: usize,
    card: usize,
    usage: &'static Usage,
    blocks: Mutex<Blocks>,
}

/// Of all streams that were opened, which stay open.
static POOLS: RwLock<Vec<&'static Pool>> = RwLock::new(Vec::new());

fn pools() -> Vec<&'static Pool> {
    POOLS.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn pool(stream: CUstream) -> Option<&'static Pool> {
    let pools = POOLS.read().unwrap_or_else(PoisonError::into_inner);
    pools.iter().find(|pool| pool.stream == stream as usize).copied()
}

/// Keeps from now on what is freed on a stream, which must stay as long as the process.
pub(super) fn open(stream: &CudaStream) {
    let card = stream.context().ordinal();
    let mut pools = POOLS.write().unwrap_or_else(PoisonError::into_inner);
    let usage = pools.iter().find(|pool| pool.card == card).map(|pool| pool.usage);
    pools.push(Box::leak(Box::new(Pool {
        stream: stream.cu_stream() as usize,
        card,
        usage: usage.unwrap_or_else(|| Box::leak(Box::default())),
        blocks: Mutex::default(),
    })));
}

/// The most bytes that tensors on a card have taken at one time, of what was asked for; what is kept for others is not counted.
pub(super) fn peak(card: usize) -> u64 {
    let most = |pool: &&Pool| pool.usage.most.load(Ordering::Relaxed) as u64;
    pools().iter().find(|pool| pool.card == card).map_or(0, most)
}

/// Has [`peak`] tell of what is taken from now on.
pub(super) fn forget_peak(card: usize) {
    let pools = pools();
    if let Some(pool) = pools.iter().find(|pool| pool.card == card) {
        pool.usage.most.store(pool.usage.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Pool {
    fn stream(&self) -> CUstream {
        self.stream as CUstream
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for so many bytes, whatever lies in it.
    fn allocate(&self, driver: &Driver, bytes: usize) -> Result<CUdeviceptr, CUresult> {
        let kept = self.blocks().take(size(bytes));
        let (address, held) = match kept {
            Some(kept) => kept,
            None => (self.ask(driver, bytes)?, size(bytes)),
        };
        self.blocks().taken.insert(address, Block { bytes: held, used: bytes });
        let now = bytes + self.usage.now.fetch_add(bytes, Ordering::Relaxed);
        self.usage.most.fetch_max(now, Ordering::Relaxed);
        Ok(address)
    }

    /// Memory of the driver's. A block that was somewhat too small goes back for it: batches that grow have the larger ones instead of
    /// the smaller ones, not beside them.
    fn ask(&self, driver: &Driver, bytes: usize) -> Result<CUdeviceptr, CUresult> {
        let smaller = self.blocks().take_smaller(size(bytes));
        if let Some(smaller) = smaller {
            driver.free(smaller, self.stream())?;
        }
        match driver.allocate(size(bytes), self.stream()) {
            Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                for pool in pools().into_iter().filter(|pool| pool.card == self.card) {
                    pool.release(driver)?;
                }
                driver.allocate(size(bytes), self.stream())
            }
            found => found,
        }
    }

    /// Takes memory back; not if it does not come from here.
    fn free(&self, driver: &Driver, address: CUdeviceptr) -> Option<Result<(), CUresult>> {
        let mut blocks = self.blocks();
        let Block { bytes, used } = blocks.taken.remove(&address)?;
        self.usage.now.fetch_sub(used, Ordering::Relaxed);
        if !keeps_memory() {
            return Some(driver.free(address, self.stream()));
        }
        let poisoned = if poisons_memory() { driver.poison(address, bytes, self.stream()) } else { Ok(()) };
        blocks.keep(address, bytes);
        Some(poisoned)
    }

    /// Gives the driver back what nobody has.
    fn release(&self, driver: &Driver) -> Result<(), CUresult> {
        let idle = std::mem::take(&mut self.blocks().idle);
        idle.into_values().flatten().try_for_each(|address| driver.free(address, self.stream()))
    }
}

/// The driver's own functions.
struct Driver {
    allocate: unsafe extern "C" fn(*mut CUdeviceptr, usize, CUstream) -> CUresult,
    free: unsafe extern "C" fn(CUdeviceptr, CUstream) -> CUresult,
    fill: unsafe extern "C" fn(CUdeviceptr, c_uchar, usize, CUstream) -> CUresult,
}

impl Driver {
    fn get() -> Result<&'static Self, CUresult> {
        static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
        DRIVER.get_or_init(|| Self::load().ok()).as_ref().ok_or(CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND)
    }

    fn load() -> Result<Self, libloading::Error> {
        // SAFETY: the program is linked to this library, which is loaded by now and stays. The functions have the types of `cuda.h`.
        unsafe {
            let library = Box::leak(Box::new(libloading::Library::new("libcuda.so.1")?));
            Ok(Self {
                allocate: *library.get("cuMemAllocAsync")?,
                free: *library.get("cuMemFreeAsync")?,
                fill: *library.get("cuMemsetD8Async")?,
            })
        }
    }

    fn allocate(&self, bytes: usize, stream: CUstream) -> Result<CUdeviceptr, CUresult> {
        let mut address = 0;
        // SAFETY: the address is written before the call returns.
        match unsafe { (self.allocate)(&raw mut address, bytes, stream) } {
            CUresult::CUDA_SUCCESS => Ok(address),
            error => Err(error),
        }
    }

    fn free(&self, address: CUdeviceptr, stream: CUstream) -> Result<(), CUresult> {
        // SAFETY: whoever frees memory does so once; the driver refuses what is none.
        match unsafe { (self.free)(address, stream) } {
            CUresult::CUDA_SUCCESS => Ok(()),
            error => Err(error),
        }
    }

    /// Every bit set: NaN, in f32 and in bf16, and a row that no table has.
    fn poison(&self, address: CUdeviceptr, bytes: usize, stream: CUstream) -> Result<(), CUresult> {
        // SAFETY: nobody has this memory, and what was asked of it before comes first in the stream's order.
        match unsafe { (self.fill)(address, u8::MAX, bytes, stream) } {
            CUresult::CUDA_SUCCESS => Ok(()),
            error => Err(error),
        }
    }
}

/// What the driver's functions return.
fn status(result: Result<(), CUresult>) -> CUresult {
    result.map_or_else(|error| error, |()| CUresult::CUDA_SUCCESS)
}

/// In the place of the driver's function.
///
/// # Safety
/// As that.
#[unsafe(no_mangle)]
#[allow(non_snake_case)] // The driver's name.
unsafe extern "C" fn cuMemAllocAsync(address: *mut CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult {
    let allocate = || {
        let driver = Driver::get()?;
        match pool(stream) {
            Some(pool) if bytes > 0 => pool.allocate(driver, bytes),
            _ => driver.allocate(bytes, stream),
        }
    };
    // SAFETY: whoever calls has a place for the address.
    status(allocate().map(|found| unsafe { *address = found }))
}

/// In the place of the driver's function.
///
/// # Safety
/// As that.
#[unsafe(no_mangle)]
#[allow(non_snake_case)] // The driver's name.
unsafe extern "C" fn cuMemFreeAsync(address: CUdeviceptr, stream: CUstream) -> CUresult {
    status(Driver::get().and_then(|driver| {
        let freed = pool(stream).and_then(|pool| pool.free(driver, address));
        freed.unwrap_or_else(|| driver.free(address, stream))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_at_most_a_sixteenth_or_512_bytes_more_than_asked_for_and_its_own() {
        for bytes in (1..5000).chain([100_000, 1 << 20, (1 << 20) + 1, 3_000_001, (1 << 30) - 1]) {
            let found = size(bytes);
            assert!(
                found >= bytes && found - bytes <= (bytes / 16).max(511) && found.is_multiple_of(512),
                "{bytes}: {found}"
            );
            assert_eq!(size(found), found);
        }
    }

    #[test]
    fn the_smallest_block_that_fits_is_taken_and_none_that_is_half_as_large_again() {
        let mut blocks = Blocks::default();
        for (address, bytes) in [(1, 1024), (2, 2048), (3, 4096), (4, 2048)] {
            blocks.keep(address, bytes);
        }
        assert_eq!(blocks.take(1536), Some((4, 2048)));
        assert_eq!(blocks.take(1536), Some((2, 2048)));
        assert_eq!(blocks.take(1536), None); // 4096 is too large.
        assert_eq!(blocks.take(3072), Some((3, 4096)));
        assert_eq!(blocks.take(1024), Some((1, 1024)));
        assert!(blocks.idle.is_empty());
    }

    #[test]
    fn for_a_larger_block_the_one_goes_that_is_nearly_as_large_and_none_that_fits_or_is_far_smaller() {
        let mut blocks = Blocks::default();
        for (address, bytes) in [(1, 1024), (2, 2048), (3, 2560), (4, 3072)] {
            blocks.keep(address, bytes);
        }
        assert_eq!(blocks.take_smaller(3072), Some(3));
        assert_eq!(blocks.take_smaller(3072), Some(2));
        assert_eq!(blocks.take_smaller(3072), None);
    }
}
