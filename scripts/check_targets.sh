#!/usr/bin/env bash
# Checks, without warnings, that everything compiles for ARM on Linux and for Macs: scripts/check_targets.sh [TARGET...]. No machine of that
# kind is needed: nothing is linked or run, and the C code of two dependencies is compiled by zig, which PyPI has with every system's headers.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(aarch64-unknown-linux-gnu aarch64-apple-darwin)
fail() { printf '[targets] error: %s\n' "$*" >&2; exit 1; }
command -v rustup >/dev/null || fail "rustup is not found, which has other targets' standard libraries; see https://rustup.rs"

tools=target/zig
if [ ! -x "$tools/bin/python" ]; then
    python3 -m venv "$tools"
fi
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check ziglang==0.16.0 || fail "zig could not be fetched from PyPI"

# compiler TARGET: the path of a C compiler for it. Cargo's build scripts name the target as Apple and LLVM do, zig as it does itself.
compiler() {
    local zig wrapper="$PWD/$tools/cc-$1"
    case "$1" in
        aarch64-apple-darwin) zig=aarch64-macos ;;
        aarch64-unknown-linux-gnu) zig=aarch64-linux-gnu ;;
        *) fail "expected aarch64-apple-darwin or aarch64-unknown-linux-gnu, found $1" ;;
    esac
    cat >"$wrapper" <<EOF
#!/usr/bin/env bash
kept=()
for argument; do
    case "\$argument" in --target=*|-mmacosx-version-min=*|arm64) ;; -arch) ;; *) kept+=("\$argument") ;; esac
done
exec "$PWD/$tools/bin/python" -m ziglang cc -target $zig "\${kept[@]}"
EOF
    chmod +x "$wrapper"
    echo "$wrapper"
}

printf '#!/usr/bin/env bash\nexec "%s" -m ziglang ar "$@"\n' "$PWD/$tools/bin/python" >"$tools/ar"
chmod +x "$tools/ar"
for target in "${targets[@]}"; do
    rustup target add "$target" || fail "the standard library of $target could not be fetched"
    name=${target//-/_}
    cc=$(compiler "$target")
    echo "[targets] checking $target"
    env "CC_$name=$cc" "AR_$name=$PWD/$tools/ar" RUSTFLAGS="-D warnings" \
        cargo check --workspace --all-targets --locked --target "$target"
done
