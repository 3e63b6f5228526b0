//! The devices that runs are computed on, CPU or GPUs: their names and their memory.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use tokenizers::utils::parallelism;

use crate::error::{Error, Result};

/// A device by its name: `auto`, `cpu`, `cuda:0`, or several GPUs as in `cuda:0,1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The first GPU, if this was built for GPUs and there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of that number, counted from 0.
    Cuda(usize),
    /// Several of them, each with a shard of every batch of a run. The first evaluates.
    Cards(Vec<usize>),
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = || unknown(name);
        match name.split_once(':') {
            None if name == "auto" => Ok(Self::Auto),
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", numbers)) => {
                let numbers: Vec<usize> =
                    numbers.split(',').map(|number| number.parse().map_err(|_| wrong())).collect::<Result<_>>()?;
                match numbers.as_slice() {
                    [number] => Ok(Self::Cuda(*number)),
                    cards if are_different(cards) => Ok(Self::Cards(numbers)),
                    _ => Err(wrong()),
                }
            }
            _ => Err(wrong()),
        }
    }
}

fn unknown(name: &str) -> Error {
    let expected = "auto, cpu, cuda:0, or several GPUs, each once, as in cuda:0,1";
    Error::Setting { name: "device", found: name.into(), expected: expected.into() }
}

fn are_different(numbers: &[usize]) -> bool {
    numbers.iter().enumerate().all(|(place, number)| !numbers[..place].contains(number))
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Cards(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
                write!(f, "cuda:{}", numbers.join(","))
            }
        }
    }
}

impl DeviceName {
    /// The devices, ready for work: one, or each of several GPUs.
    ///
    /// # Errors
    /// When there is no such GPU, its driver or the card itself is too old, or this was built without `cuda`.
    pub fn open(&self) -> Result<Vec<Device>> {
        match self {
            Self::Cpu => Ok(vec![cpu()]),
            Self::Cuda(number) => Ok(vec![gpu(*number)?]),
            Self::Cards(numbers) if numbers.is_empty() || !are_different(numbers) => Err(unknown(&self.to_string())),
            Self::Cards(numbers) => numbers.iter().map(|&number| gpu(number)).collect(),
            Self::Auto if gpus() > 0 => Ok(vec![gpu(0)?]),
            Self::Auto => Ok(vec![cpu()]),
        }
    }
}

/// The CPU. All threads take their memory from one place from then on, as the large pieces of training want it. Tokenizing takes many
/// small ones, for which its threads would wait for each other longer than one thread works: it has one, unless `TOKENIZERS_PARALLELISM`
/// says otherwise. Training on a GPU needs no such memory.
fn cpu() -> Device {
    ops::keep_freed_memory();
    if !parallelism::is_parallelism_configured() {
        parallelism::set_parallelism(false);
    }
    Device::Cpu
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

/// The device of a slot for concurrent runs: of a GPU with a stream of its own. Slot 0 has the device itself.
pub(crate) fn stream(device: &Device, slot: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    if let candle_core::DeviceLocation::Cuda { gpu_id } = device.location() {
        return Ok(ops::cuda_stream(gpu_id, slot)?);
    }
    let _ = slot;
    Ok(device.clone())
}

/// A device's name, as in `cuda:0`.
pub(crate) fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        _ => "cpu".into(),
    }
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

/// Whether a device's memory did not suffice.
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::Tensor(error) | Error::Model(peft::Error::Tensor(error)) => ops::is_out_of_memory(error),
        _ => false,
    }
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
        return format!("{}, {card}, has {} MiB, of which {} are free now", name(device), all >> 20, free >> 20);
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
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "cuda:0,1", "cuda:2,0,5"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceName>().unwrap(), DeviceName::Cuda(0));
        assert_eq!("cuda:2,0".parse::<DeviceName>().unwrap(), DeviceName::Cards(vec![2, 0]));
        for wrong in ["gpu", "cuda:", "cuda:x", "cpu:0", "", "cuda:0,", "cuda:1,1", "cuda:0,1,0", "cuda:0,x"] {
            let message = wrong.parse::<DeviceName>().unwrap_err().to_string();
            assert!(message.contains(&format!("device is {wrong}")) && message.contains("cuda:0"), "{message}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_auto_is_the_cpu_and_a_gpu_is_refused_with_what_to_do() {
        assert!(matches!(DeviceName::Auto.open().unwrap().as_slice(), [Device::Cpu]));
        let message = DeviceName::Cuda(1).open().unwrap_err().to_string();
        assert!(message.contains("cuda:1") && message.contains("make cuda"), "{message}");
    }
}
