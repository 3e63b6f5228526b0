#!/usr/bin/env bash
# Checks and measures the CUDA build on a machine with an NVIDIA GPU and Python's torch, transformers and peft, but without Rust and
# without a network:
#
#   make cuda                                   # anywhere: binaries to target/cuda
#   scripts/gpu_check.sh [FOLDER [RESULTS [--long]]]     # on the GPU machine, in a copy of the repository with models/; FOLDER: target/cuda
#
# Every operation and whole trainings are compared with the CPU and with Python's stored values, by the test binaries; training steps
# are measured beside Python's peft, same model, batches and precision; so are whole runs, where GLUE is found, and the kernels, where
# ncu is. With --long, torch.compile, f32, and five seeds in bf16 and f32 on MRPC and RTE besides. What fails is told and does not stop
# the rest. The last thing printed is one table, which RESULTS, a file (target/gpu-check/results.md), holds too, from the first row on;
# what each step said lies beside it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
exec "${PYTHON:-python3}" "$root/scripts/gpu_check.py" "${1:-$root/target/cuda}" "${2:-$root/target/gpu-check/results.md}" "${@:3}"
