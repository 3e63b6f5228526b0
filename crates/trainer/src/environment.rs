//! The machine and program that a run is computed by: version, commit, processor, threads and peak memory.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use glue::project_root;

use crate::record::Environment;

/// The environment of this process, on the CPU.
pub fn environment() -> Environment {
    Environment {
        version: env!("CARGO_PKG_VERSION").into(),
        commit: commit(),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        processor: system_value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
        gpu: None,
        cards: None,
        at_once: None,
        threads: ops::threads(),
        finished_at: now(),
    }
}

/// The most memory this process has held, in bytes; 0 where the system does not tell.
pub(crate) fn peak_memory() -> u64 {
    let kibibytes = system_value("/proc/self/status", "VmHWM");
    kibibytes.and_then(|value| value.split(' ').next()?.parse::<u64>().ok()).map_or(0, |value| value * 1024)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The first value of a line `key ...: value` in one of Linux' process files.
fn system_value(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The commit of the repository that the program works in.
fn commit() -> Option<String> {
    let arguments = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    let output = Command::new("git").args(arguments).current_dir(project_root()).output().ok()?;
    let name = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !name.is_empty()).then_some(name)
}
