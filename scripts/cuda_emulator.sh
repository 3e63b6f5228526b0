#!/usr/bin/env bash
# Builds the emulated GPU (crates/emulator) into a folder that looks like a CUDA installation, for builds with the feature `cuda`
# and tests of it on machines without a GPU:
#
#   scripts/cuda_emulator.sh [--test] [FOLDER]     FOLDER: target/cuda-emulator
#
# --test runs the emulator's own tests. A step already done is skipped. Prints the variables that cargo needs:
#
#   eval "$(scripts/cuda_emulator.sh)" && cargo test -p peft-glue-ops --features cuda
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

say() { printf '[emulator] %s\n' "$*" >&2; }
fail() { printf '[emulator] error: %s\n' "$*" >&2; exit 1; }

goal=all
if [ "${1:-}" = --test ]; then
    goal=test
    shift
fi
folder=$(realpath -m "${1:-target/cuda-emulator}")

command -v g++ >/dev/null || fail "no g++ was found; install a C++17 compiler (Debian: apt-get install g++ make)"
command -v make >/dev/null || fail "no make was found (Debian: apt-get install make)"

# crate NAME-VERSION: its folder, with any last number of the version.
crate() { find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -type d -name "$1.*" 2>/dev/null | sort -V | tail -n 1; }

# candle's feature `cuda` brings them: the names of CUDA's functions, and kernels.
crates=(cudarc-0.19 candle-kernels-0.11)
for name in "${crates[@]}"; do
    [ -n "$(crate "$name")" ] || cargo fetch --locked >&2
    [ -n "$(crate "$name")" ] || fail "cargo fetch brought no $name; is candle-core's feature cuda in Cargo.lock?"
done

say "building into $folder"
make --silent --directory crates/emulator --jobs 2 "$goal" OUT="$folder" SANITIZE="${SANITIZE:-}" \
    CUDARC="$(crate "${crates[0]}")" CANDLE_KERNELS="$(crate "${crates[1]}")" >&2

set_variable() { printf 'export %s=%q\n' "$1" "$2"; }
for name in CUDA_HOME CUDA_PATH CUDA_ROOT CUDA_TOOLKIT_ROOT_DIR; do set_variable "$name" "$folder"; done
set_variable PATH "$folder/bin:$PATH"
set_variable LD_LIBRARY_PATH "$folder/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
set_variable CUDA_COMPUTE_CAP 90
# The emulator watches over memory only as long as each piece is the driver's.
set_variable PEFT_NO_CUDA_MEMORY_CACHING 1
# A notebook's kernel loads the emulator late, when glibc has little room left for the variables of threads.
set_variable GLIBC_TUNABLES glibc.rtld.optional_static_tls=1048576
