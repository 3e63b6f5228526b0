#!/usr/bin/env bash
# Makes target/cuda-toolkit, what a build with CUDA needs; a step already done is skipped. No GPU and no driver is needed.
# An installed toolkit is linked to, where CUDA_HOME is set or nvcc is on the PATH and it is new enough; else NVIDIA's
# Python packages are put together to one, with a stand-in for the driver's library, which only a GPU's driver brings.
set -euo pipefail
cd "$(dirname "$0")/.."

toolkit=target/cuda-toolkit
oldest=13.0
# 1.2 GB unpacked. The libraries are only linked against, so that any of major version 13 (curand: 10) serves at run time.
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35
)

say() { printf '[cuda] %s\n' "$*"; }
fail() { printf '[cuda] error: %s\n' "$*" >&2; exit 1; }

# The version of a compiler, as in 13.0; empty where it does not run.
version() { "$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p'; }

# new_enough VERSION
new_enough() { [ -n "$1" ] && [ "$(printf '%s\n' "$oldest" "$1" | sort --version-sort | head -n 1)" = "$oldest" ]; }

# Prints the folder of an installed toolkit that is new enough; says why not of one that is too old.
find_installed() {
    local compilers=() compiler found
    [ -z "${CUDA_HOME:-}" ] || compilers+=("$CUDA_HOME/bin/nvcc")
    ! command -v nvcc >/dev/null || compilers+=("$(readlink --canonicalize "$(command -v nvcc)")")
    for compiler in "${compilers[@]}"; do
        found=$(version "$compiler")
        if new_enough "$found"; then
            dirname "$(dirname "$compiler")"
            return
        fi
        say "$compiler is not used: expected CUDA $oldest or newer, found ${found:-nothing that runs}" >&2
    done
    return 1
}

# The functions of the driver's library in all versions that its header declares, and the profiler's three, which it leaves out.
driver_functions() {
    local include=$1/include
    {
        gcc -E -x c "$include/cuda.h"
        gcc -E -x c -D__CUDA_API_VERSION_INTERNAL "$include/cuda.h"
    } | grep --only-matching --extended-regexp '\bcu[A-Z][A-Za-z0-9_]*\(' | tr --delete '('
    printf '%s\n' cuProfilerInitialize cuProfilerStart cuProfilerStop
}

# write_driver_stub FOLDER: a library to link against, and by which a binary starts without a driver. As in NVIDIA's own,
# every function answers that it is one (CUDA_ERROR_STUB_LIBRARY, 34).
write_driver_stub() {
    local stubs=$1/lib/stubs
    mkdir "$stubs"
    driver_functions "$1" | sort --unique | sed 's/.*/int &(void) { return 34; }/' >"$stubs/cuda.c"
    gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so.1" "$stubs/cuda.c"
    ln -s libcuda.so.1 "$stubs/libcuda.so"
}

# link_libraries FOLDER: under the names that a linker and other toolkits' users look for.
link_libraries() {
    local library
    ln -s lib "$1/lib64"
    for library in "$1"/lib/lib*.so.*; do
        library=$(basename "$library")
        ln -s "$library" "$1/lib/${library%%.so.*}.so"
    done
}

# install FOLDER: the packages' common folder, with what they lack.
install() {
    command -v gcc >/dev/null || fail "gcc is not found; type: apt-get install build-essential"
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip; type: apt-get install python3-pip"
    say "installing NVIDIA's compiler and libraries, $toolkit (1.2 GB, about 1 minute)"
    # The scripts it says are not on the PATH are not meant to be.
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
        --only-binary=:all: --no-deps --target "$1" "${packages[@]}" || fail "pip could not install ${packages[*]}"
    link_libraries "$1/nvidia/cu13"
    write_driver_stub "$1/nvidia/cu13"
}

if [ -x "$toolkit/bin/nvcc" ]; then
    say "using $(readlink --canonicalize "$toolkit"), CUDA $(version "$toolkit/bin/nvcc")"
    exit
fi
mkdir -p target
rm -rf "$toolkit"
if installed=$(find_installed); then
    ln -s "$installed" "$toolkit"
else
    # Built beside and then moved: an interrupted installation leaves no half toolkit.
    beside=$(mktemp --directory target/.cuda-toolkit.XXXXXX)
    trap 'rm -rf "$beside"' EXIT
    install "$beside"
    mv --no-target-directory "$beside/nvidia/cu13" "$toolkit"
fi
say "using $(readlink --canonicalize "$toolkit"), CUDA $(version "$toolkit/bin/nvcc")"
