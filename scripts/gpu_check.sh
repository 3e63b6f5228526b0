#!/usr/bin/env bash
# Checks and measures the CUDA build on a machine with an NVIDIA GPU and Python's torch, transformers and peft, but without Rust and
# without a network:
#
#   make cuda                                        # anywhere: binaries to target/cuda
#   scripts/gpu_check.sh [FOLDER] [RESULTS]          # on the GPU machine, in a copy of the repository; FOLDER: target/cuda
#
# Every operation and whole trainings are compared with the CPU and with torch's stored losses, by the test binaries; then training
# steps are measured beside Python's peft, same model, batches and precision. The last thing printed is one table; RESULTS, a
# file to write, keeps it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(realpath "${1:-$root/target/cuda}")
results=${2:-}
python=${PYTHON:-python3}

fail() { printf '[gpu] error: %s\n' "$*" >&2; exit 1; }
[ -f "$folder/binaries.tar.xz" ] || fail "no binaries in $folder; build them by make cuda and copy target/cuda here"
command -v nvidia-smi >/dev/null || fail "no nvidia-smi was found: this needs an NVIDIA GPU with its driver"
"$python" -c 'import torch, transformers, peft, safetensors; assert torch.cuda.is_available()' ||
    fail "$python has no torch that sees the GPU, or no transformers, peft or safetensors; choose another by PYTHON"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m tarfile --extract "$folder/binaries.tar.xz" "$work"

# cuBLAS, cuRAND and the runtime come with torch.
libraries=$("$python" - <<'PYTHON'
import pathlib, torch
site = pathlib.Path(torch.__file__).parent.parent
print(":".join(str(folder) for folder in sorted(site.glob("nvidia/*/lib")) + [site / "torch" / "lib"]))
PYTHON
)
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

# The tests look for what they read below the path that they were built in.
built=$(cat "$folder/checkout.txt")
if [ ! -e "$built" ]; then
    mkdir -p "$(dirname "$built")"
    ln -s "$root" "$built"
fi

: >"$work/checks"
while IFS=$'\t' read -r name directory; do
    case "$name" in
    ops-cuda*|trainer-replay|trainer-several|trainer-cuda*) ;;
    *) continue ;; # What does not run on the GPU was tested where it was built.
    esac
    printf '[gpu] %s\n' "$name"
    if (cd "$root/$directory" && "$work/$name" --test-threads 1); then verdict=ok; else verdict=FAILED; fi
    printf '%s\t%s\n' "$name" "$verdict" >>"$work/checks"
done <"$folder/tests.tsv"

"$python" "$root/scripts/gpu_peer.py" --binary "$work/peft-glue" --checks "$work/checks" --work "$work" ${results:+--results "$results"}
