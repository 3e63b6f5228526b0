//! Compiles the CUDA kernels for the feature `cuda`, to `kernels.fatbin`. Without it there is nothing to do.

#![allow(clippy::print_stdout)] // Cargo reads what a build script prints.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Compute capabilities, as in CMake's variable `CUDAARCHS`, which chooses others: Ampere (A100; the rest), Ada, Hopper and
/// Blackwell (data centers; the rest). candle's `CUDA_COMPUTE_CAP` names one only, so that it cannot serve here too.
const ARCHITECTURES: &str = "80;86;89;90;100;120";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed=cuda");
    for name in ["CUDA_HOME", "CUDAARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let compiler = compiler();
    let folder = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; build with cargo")?;
    let status = Command::new(&compiler)
        .args(["-fatbin", "-O3", "-std=c++17", "--threads=0"])
        .args(architectures()?)
        .arg("-o")
        .arg(Path::new(&folder).join("kernels.fatbin"))
        .arg("cuda/all.cu")
        .status()
        .map_err(|error| {
            let name = compiler.display();
            format!("the feature `cuda` needs the CUDA compiler, and {name} does not run ({error}); type: make cuda")
        })?;
    if !status.success() {
        return Err(format!("{} did not compile crates/kernels/cuda/all.cu ({status})", compiler.display()));
    }
    Ok(())
}

/// The compiler of the toolkit that `CUDA_HOME` names, or else the one on the PATH.
fn compiler() -> PathBuf {
    let installed = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    installed.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("nvcc"))
}

/// The compiler's arguments: code for each architecture, and for the newest also PTX, which the driver translates for cards
/// that are newer still.
fn architectures() -> Result<Vec<String>, String> {
    let list = env::var_os("CUDAARCHS").unwrap_or_else(|| OsString::from(ARCHITECTURES));
    let mut capabilities = Vec::new();
    for word in list.to_string_lossy().split(';') {
        let capability: u32 = word.trim().parse().map_err(|_| {
            format!("CUDAARCHS: expected compute capabilities as in {ARCHITECTURES}, found {}", list.to_string_lossy())
        })?;
        capabilities.push(capability);
    }
    let newest = capabilities.iter().max().map(|c| format!("-gencode=arch=compute_{c},code=compute_{c}"));
    Ok(capabilities.iter().map(|c| format!("-gencode=arch=compute_{c},code=sm_{c}")).chain(newest).collect())
}
