//! Compiles the CUDA kernels, where the feature `cuda` asks for them.

use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let output = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("kernels.fatbin");
    let compiler = std::env::var_os("CUDA_HOME").map_or("nvcc".into(), |home| PathBuf::from(home).join("bin/nvcc"));
    let status = Command::new(&compiler)
        .args(["-fatbin", "-O3", "-std=c++17", "-arch=compute_80", "-o"])
        .arg(&output)
        .arg("kernels/all.cu")
        .status()
        .map_err(|error| format!("{}: {error}; `make cuda` sets up the compiler", compiler.display()))?;
    if status.success() { Ok(()) } else { Err(format!("{} failed: {status}", compiler.display())) }
}
