#!/usr/bin/env bash
# Starts the Rust kernel for one notebook, as Jupyter asks for it: `scripts/rust_kernel.sh KERNEL ARGUMENTS...`. Each kernel that runs has a
# build folder to itself, as two in one would mix up their cells, and takes the first that is free. All but the first begin as a copy of it,
# so that the library is built once.
set -euo pipefail

# Jupyter started from a desktop or by a service has a shorter PATH than a terminal.
command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin"
fail() { echo "error: $*" >&2; exit 1; }
command -v cargo >/dev/null \
    || fail "cargo is not found, which compiles a notebook's cells; start Jupyter from a terminal in which 'cargo --version' works (make notebook)"

# The project of the notebook, whose folder is the present one; of a notebook elsewhere that of this script.
root=$PWD
while [ ! -f "$root/Cargo.lock" ] && [ "$root" != / ]; do root=$(dirname "$root"); done
[ -f "$root/Cargo.lock" ] || root=$(cd "$(dirname "$0")/.." && pwd)

# Cargo looks no further for a workspace than a folder target/package, so that no Cargo.toml of the project or above it claims the cells.
folders="$root/target/evcxr/target/package"
mkdir -p "$folders" 2>/dev/null && [ -w "$folders" ] || fail "$folders cannot be written; a notebook's cells are built there"

# take_folder NUMBER: takes it unless a kernel that is alive has it. The number of this process is the kernel's.
take_folder() {
    local owner="$folders/$1.owner" before
    before=$(cat "$owner" 2>/dev/null) && ! kill -0 "$before" 2>/dev/null && rm -f "$owner"
    (set -o noclobber && echo $$ >"$owner") 2>/dev/null
}
number=0
until take_folder "$number"; do number=$((number + 1)); done

# The kernel takes the first variable for itself; evcxr.toml reads the second.
export EVCXR_TMPDIR="$folders/$number" LAB_KERNEL_FOLDER="$folders/$number"
if [ "$number" -gt 0 ] && [ ! -d "$EVCXR_TMPDIR" ] && [ -d "$folders/0/target" ]; then
    mkdir -p "$EVCXR_TMPDIR"
    # As links where the system has them: what is built is replaced and never changed. What the cells of the first were built to is left out.
    cp -al "$folders/0/target" "$EVCXR_TMPDIR/" 2>/dev/null || cp -R "$folders/0/target" "$EVCXR_TMPDIR/"
    find "$EVCXR_TMPDIR/target" \( -name '*ctx*' -o -name 'libcode_*' -o -name 'code_*' \) -prune -exec rm -rf {} +
fi
exec "$@"
