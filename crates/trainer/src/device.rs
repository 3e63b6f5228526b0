//! Where runs are computed.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::error::{Error, Result};

/// A device by its name: `auto`, `cpu` or `cuda:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The first GPU, if this was built for GPUs and there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of that number, counted from 0.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = || Error::Setting { name: "device", found: name.into(), expected: "auto, cpu or cuda:0".into() };
        match name.split_once(':') {
            None if name == "auto" => Ok(Self::Auto),
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceName {
    /// The device, ready for work.
    ///
    /// # Errors
    /// When there is no such GPU, its driver or the card itself is too old, or this was built without `cuda`.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => gpu(number),
            Self::Auto if gpus() > 0 => gpu(0),
            Self::Auto => Ok(Device::Cpu),
        }
    }
}

#[cfg(feature = "cuda")]
use ops::cuda_devices as gpus;

#[cfg(not(feature = "cuda"))]
fn gpus() -> usize {
    0
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device> {
    Ok(ops::cuda_device(number)?)
}

#[cfg(not(feature = "cuda"))]
fn gpu(number: usize) -> Result<Device> {
    Err(Error::Setting {
        name: "device",
        found: format!("cuda:{number}"),
        expected: "cpu, since this was built without CUDA; build it with the feature `cuda` (`make cuda`)".into(),
    })
}

/// The device as one of several runs at once has it: of a GPU with a stream of its own, counted from 0, which is the device itself.
pub(crate) fn stream(device: &Device, number: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    if let candle_core::DeviceLocation::Cuda { gpu_id } = device.location() {
        return Ok(ops::cuda_stream(gpu_id, number)?);
    }
    let _ = number;
    Ok(device.clone())
}

/// What a device is called in records: the card's name for a GPU, nothing for the CPU.
pub(crate) fn card(device: &Device) -> Option<String> {
    #[cfg(feature = "cuda")]
    if let Ok(card) = ops::card(device) {
        return Some(card);
    }
    let _ = device;
    None
}

/// Whether a device's memory did not suffice. The driver's own words, since the error comes through candle, ops and peft.
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("CUDA_ERROR_OUT_OF_MEMORY") || text.contains("STATUS_ALLOC_FAILED")
}

/// The most memory that tensors on a GPU have taken at one time, in bytes.
pub(crate) fn peak_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return ops::card_peak_memory(device).ok();
    }
    let _ = device;
    None
}

/// How much memory a device has, in words.
pub(crate) fn memory(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if let (Ok(card), Ok((free, all))) = (ops::card(device), ops::card_memory(device)) {
        return format!("{card} has {} MiB, of which {} are free now", all >> 20, free >> 20);
    }
    let _ = device;
    "the device does not tell its memory".into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn a_device_is_found_by_the_name_it_prints() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceName>().unwrap(), DeviceName::Cuda(0));
        for wrong in ["gpu", "cuda:", "cuda:x", "cpu:0", ""] {
            let message = wrong.parse::<DeviceName>().unwrap_err().to_string();
            assert!(message.contains(&format!("device is {wrong}")) && message.contains("cuda:0"), "{message}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_auto_is_the_cpu_and_a_gpu_is_refused_with_what_to_do() {
        assert!(DeviceName::Auto.open().unwrap().is_cpu());
        let message = DeviceName::Cuda(1).open().unwrap_err().to_string();
        assert!(message.contains("cuda:1") && message.contains("make cuda"), "{message}");
    }
}
