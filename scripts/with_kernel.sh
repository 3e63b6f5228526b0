#!/usr/bin/env bash
# Runs a command that starts a Rust kernel: `scripts/with_kernel.sh COMMAND...`. Sets what the kernel reads, and holds the
# one lock on its build folder until the command and its kernels are gone: two kernels there would mix up their cells.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

mkdir -p "$root/target"
exec 9>"$root/target/evcxr.lock"
if ! flock --nonblock 9; then
    echo "error: another Rust kernel of this project is running (make notebook, make report or make test), and only one may" \
        "use target/evcxr at a time. Stop it (in JupyterLab: File > Shut Down), then try again." >&2
    exit 1
fi

# The project's own kernel, not one of the same name in the user's folder.
export JUPYTER_PREFER_ENV_PATH=1
# candle's own threads wait for work by spinning, and take a core from the threads that train.
export CANDLE_NUM_THREADS="${CANDLE_NUM_THREADS:-1}"
exec "$@"
