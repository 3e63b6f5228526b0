//! Choosing a GPU.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{Device, Result, bail};

use super::pool;

/// The GPU of that number, counted from 0, ready for the operations of this crate: the same device whenever it is asked for.
///
/// All of its work is put on one stream, and memory that is freed is kept for what is asked for next.
///
/// # Errors
/// When there is no such GPU, or its driver or the card is too old.
pub fn cuda_device(ordinal: usize) -> Result<Device> {
    cuda_stream(ordinal, 0)
}

/// The same GPU as a device of its own for each of several streams, counted from 0, which is [`cuda_device`]: the work of one waits
/// for no other's. Their tensors do not go together, and each has its own scratch memory of 32 MiB.
///
/// # Errors
/// As [`cuda_device`].
pub fn cuda_stream(ordinal: usize, stream: usize) -> Result<Device> {
    static OPENED: Mutex<Vec<((usize, usize), Device)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = opened.iter().find(|(numbers, _)| *numbers == (ordinal, stream)) {
        return Ok(device.clone());
    }
    let device = open(ordinal)?;
    pool::open(&device.as_cuda_device()?.cuda_stream());
    opened.push(((ordinal, stream), device.clone()));
    Ok(device)
}

fn open(ordinal: usize) -> Result<Device> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        candle_core::Error::Msg(format!("cuda:{ordinal}: {what}: {error}; choose another device, or cpu")).bt()
    };
    result::init().map_err(|error| failed("the NVIDIA driver does not start", &error))?;
    let count = result::device::get_count().map_err(|error| failed("the GPUs cannot be counted", &error))?;
    if ordinal >= count as usize {
        bail!("cuda:{ordinal}: this machine has {count} GPUs, counted from 0; choose another device, or cpu")
    }
    let device = result::device::get(ordinal as i32).w()?;
    let major = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    let minor = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
    // SAFETY: the device was found just now.
    let (major, minor) = unsafe {
        (result::device::get_attribute(device, major).w()?, result::device::get_attribute(device, minor).w()?)
    };
    if major < LEAST_CAPABILITY {
        bail!(
            "cuda:{ordinal}: its compute capability is {major}.{minor}; bf16 and the kernels here take {LEAST_CAPABILITY}.0 \
             (Ampere) or later; choose another device, or cpu"
        )
    }
    let found = Device::new_cuda_with_stream(ordinal).map_err(|error| failed("it does not start", &error))?;
    let cuda = found.as_cuda_device()?;
    // SAFETY: a device has one stream, so that nothing is used by another before it is written, or after it is freed.
    unsafe { cuda.disable_event_tracking() };
    keep_freed_memory(device)?;
    Ok(found)
}

/// How many NVIDIA GPUs this machine has; 0 where the driver does not start.
pub fn cuda_devices() -> usize {
    result::init().and_then(|()| result::device::get_count()).map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

/// The name of a GPU, such as `NVIDIA H200`.
///
/// # Errors
/// When the device is none.
pub fn card(device: &Device) -> Result<String> {
    device.as_cuda_device()?.cuda_stream().context().name().w()
}

/// The bytes of a GPU's memory that are free, and all it has.
///
/// # Errors
/// When the device is none.
pub fn card_memory(device: &Device) -> Result<(usize, usize)> {
    device.as_cuda_device()?.cuda_stream().context().mem_get_info().w()
}

/// The most bytes that tensors on a GPU have taken at one time in this process.
///
/// # Errors
/// When the device is none.
pub fn card_peak_memory(device: &Device) -> Result<u64> {
    Ok(pool::peak(device.as_cuda_device()?.cuda_stream().context().ordinal()))
}

/// Has [`card_peak_memory`] tell of what tensors take from now on.
///
/// # Errors
/// When the device is none.
pub fn forget_card_peak_memory(device: &Device) -> Result<()> {
    pool::forget_peak(device.as_cuda_device()?.cuda_stream().context().ordinal());
    Ok(())
}

/// Ampere, the first with bf16.
const LEAST_CAPABILITY: i32 = 8;

/// By default all freed memory is given back to the system whenever the CPU waits for the GPU.
fn keep_freed_memory(device: sys::CUdevice) -> Result<()> {
    let mut most = u64::MAX;
    // SAFETY: the attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(device).w()?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut most).cast()).w()
    }
}
