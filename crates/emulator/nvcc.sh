#!/usr/bin/env bash
# Stands in for nvcc where there is none: empty files in the places where build scripts look for its work. The emulator compiles
# kernels itself, by the Makefile here; those that it leaves out say so when they are called.
set -euo pipefail
output= folder=. kind=binary sources=()
while [ $# -gt 0 ]; do
    case $1 in
        --version | -V)
            # Build scripts count these lines.
            echo 'nvcc: NVIDIA (R) Cuda compiler driver'
            echo 'A stand-in without a compiler'
            echo 'Of the emulated GPU'
            echo 'Cuda compilation tools, release 13.0, V13.0.88'
            exit ;;
        --list-gpu-code) printf 'sm_%s\n' 80 90 && exit ;;
        -o | --output-file) output=$2 && shift ;;
        --output-directory | -odir) folder=$2 && shift ;;
        --ptx | -ptx) kind=ptx ;;
        -c | --compile) kind=object ;;
        --lib | -lib) kind=archive ;;
        -Xcompiler | --default-stream | -ccbin | -arch | -gencode | -I | -D | -std) shift ;;
        -*) ;;
        *) sources+=("$1") ;;
    esac
    shift
done

# Functions that candle-kernels declares in src/ffi.rs are linked from its archive.
functions() {
    if [ -f src/ffi.rs ]; then
        grep -oE 'pub fn [a-zA-Z0-9_]+' src/ffi.rs | sed 's/pub fn \(.*\)/void \1(void) { missing("\1"); }/'
    fi
}

case $kind in
    ptx)
        for source in "${sources[@]}"; do
            name=$(basename "$source")
            echo "// not compiled: the emulated GPU has its own $name, or none" >"${output:-$folder/${name%.*}.ptx}"
        done ;;
    object) cc -x c -c /dev/null -o "$output" ;;
    archive)
        rm -f "$output"
        {
            echo '#include <stdio.h>'
            echo '#include <stdlib.h>'
            echo 'static void missing(const char* name) { fprintf(stderr, "emulated GPU: %s is not emulated\n", name); abort(); }'
            functions
        } | cc -x c -w -fPIC -c - -o "$output.o"
        ar rcs "$output" "$output.o" ;;
    binary) echo "emulated" >"$output" ;;
esac
