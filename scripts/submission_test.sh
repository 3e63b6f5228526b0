#!/usr/bin/env bash
# Tests what a student hands in as its reader meets it: the zip file, made of the smoke run's notebook and report, is unpacked outside
# the repository, and `make report PROFILE=smoke` runs there. The set-up is copied there, not used where it is: what the hand-in names
# by a wrong path is then not found, and nothing of it is left in the repository. With the copy only the workspace's own crates build.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD

say() { printf '[submission] %s\n' "$*"; }
fail() { printf '[submission] error: %s\n' "$*" >&2; exit 1; }

# The first place of GLUE with a task's file, as the crate `glue` looks for it; the unpacked folder has none of its own.
glue_folder() {
    local folder
    for folder in "${GLUE_DIR:-}" data/glue; do
        if compgen -G "$folder/*/*.tsv" >/dev/null; then
            realpath "$folder"
            return
        fi
    done
    return 1
}

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT

python3 scripts/submission.py F1234567 --output "$elsewhere" \
    --notebook target/report/main.ipynb --report target/report/report.pdf
# Python's own unpacking leaves out which files are programs, as some others do.
python3 -m zipfile -e "$elsewhere/F1234567_GAI_Project3.zip" "$elsewhere"

if glue=$(glue_folder); then
    export GLUE_DIR=$glue
fi
cd "$elsewhere/F1234567_GAI_Project3"
cp main.ipynb report.pdf "$elsewhere"
mkdir target
say "copying the set-up and the built dependencies beside it"
cp -a "$repository/.venv" .
cp -a "$repository/target/evcxr" target
ln -s "$repository/models" models

say "running the unpacked notebook, profile smoke"
make --no-print-directory report PROFILE=smoke
cmp main.ipynb "$elsewhere/main.ipynb" && cmp report.pdf "$elsewhere/report.pdf" \
    || fail "make report has changed what was handed in; it should write to rerun/"
for written in rerun/main.ipynb rerun/report.pdf; do
    [ -s "$written" ] || fail "make report has not written $written"
done
say "the hand-in runs from where it is unpacked"
