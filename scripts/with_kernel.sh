#!/usr/bin/env bash
# Runs a command that starts Rust kernels, with what they read: `scripts/with_kernel.sh COMMAND...`.
set -euo pipefail

# The project's own kernel, not one of the same name in the user's folder.
export JUPYTER_PREFER_ENV_PATH=1
# candle's own threads wait for work by spinning, and take a core from the threads that train.
export CANDLE_NUM_THREADS="${CANDLE_NUM_THREADS:-1}"
exec "$@"
