#!/usr/bin/env bash
# Runs a command that builds or runs code with CUDA: `scripts/with_cuda.sh COMMAND...`. Sets what the crates' build scripts, the
# linker and the loader read, for the toolkit that scripts/cuda_toolkit.sh has made ready.
set -euo pipefail
toolkit=$(cd "$(dirname "$0")/.." && pwd)/target/cuda-toolkit

[ -x "$toolkit/bin/nvcc" ] || { echo "error: there is no CUDA toolkit in $toolkit; type: scripts/cuda_toolkit.sh" >&2; exit 1; }
export CUDA_HOME="$toolkit"
export PATH="$toolkit/bin:$PATH"
export LIBRARY_PATH="$toolkit/lib64:$toolkit/lib64/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
export LD_LIBRARY_PATH="$toolkit/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Without a driver the stand-in answers in its place, so that the CPU can still be chosen. A driver's own library comes first.
ldconfig -p | grep -q 'libcuda\.so\.1' || export LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$toolkit/lib64/stubs"
# candle's kernels are compiled for one architecture, to code that newer cards translate: the oldest that has bf16.
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
# They are compiled on half of the cores otherwise.
export CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-$(nproc)}"
exec "$@"
