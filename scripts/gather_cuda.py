"""Builds peft-glue and the tests with CUDA, and gathers what a GPU machine without Rust runs of them in a folder.

  scripts/with_cuda.sh python3 scripts/gather_cuda.py [FOLDER]      FOLDER: target/cuda

  binaries.tar.xz   peft-glue and the test binaries that gpu_check.py runs; `python3 -m tarfile --extract` unpacks it where xz is not installed. In stand-ins/
                    a library in cuRAND's place, for machines whose torch does not bring it
  tests.tsv         for each test binary its name and the folder it is run in
  checkout.txt      below this path the tests look for what they read: a copy elsewhere is to be linked to from there
"""

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import gpu_check

ROOT = Path(__file__).resolve().parent.parent
# Each binary holds the same 30 MB of candle's kernels: a dictionary that reaches back over a whole one finds them again.
COMPRESSION = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 * 2**20}]


def build():
    """What cargo says that it built, one message a line."""
    packages = [argument for crate in ("peft-glue-ops", "peft-glue-tuners", "peft-glue-trainer", "peft-glue") for argument in ("--package", crate)]
    # The tests' own profile leaves the program unoptimized, which is what others will train with.
    options = ["--profile", "dev", "--no-run", "--locked", "--features", "cuda", "--message-format", "json-render-diagnostics"]
    command = ["cargo", "test", *packages, *options]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def executables(messages, root=ROOT):
    """Of cargo's messages: for each executable its name, its file, and, if it holds tests, the folder that cargo runs it in.

    Tests of a library are named CRATE-tests, those of a file in tests/ CRATE-FILE. What a GPU has no part in is left out.
    """
    found = []
    for message in map(json.loads, messages):
        if message["reason"] != "compiler-artifact" or not message["executable"]:
            continue
        file, target = Path(message["executable"]), message["target"]
        folder = Path(message["manifest_path"]).parent.relative_to(root)
        if not message["profile"]["test"]:
            found.append((target["name"], file, None))
        elif "example" not in target["kind"]:
            name = f"{folder.name}-{target['name'] if 'test' in target['kind'] else 'tests'}"
            if name in gpu_check.BINARIES:
                found.append((name, file, str(folder)))
    return sorted(found)


def write_random_stand_in(files, library):
    """Writes a library in the place of cuRAND: candle opens it with every device, and nothing here draws from it.

    Generators are made and set without a word; drawing from one fails (CURAND_STATUS_NOT_INITIALIZED, 101).
    """
    names = set()
    for file in files:
        symbols = subprocess.run(["nm", "--dynamic", "--undefined-only", file], stdout=subprocess.PIPE, text=True, check=True).stdout
        names |= {word.split("@")[0] for word in symbols.split() if word.startswith("curand")}
    answer = {name: 101 if name.startswith("curandGenerate") else 0 for name in sorted(names)}
    source = library.with_suffix(".c")
    source.write_text("".join(f"int {name}(void) {{ return {code}; }}\n" for name, code in answer.items()))
    subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source], check=True)


def pack(found, folder):
    """Writes the executables, without their symbols, to one file in a folder."""
    path = folder / "binaries.tar.xz"
    with (
        tempfile.TemporaryDirectory(dir=folder) as stripped,
        lzma.open(path, "wb", filters=COMPRESSION) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for name, file, _ in found:
            binary = Path(stripped) / name
            subprocess.run(["strip", "-o", str(binary), str(file)], check=True)
            archive.add(binary, name)
        library = Path(stripped) / "libcurand.so.10"
        write_random_stand_in([file for _, file, _ in found], library)
        archive.add(library, f"stand-ins/{library.name}")


def describe(found, folder):
    """Writes the lists."""
    tests = [f"{name}\t{directory}\n" for name, _, directory in found if directory]
    (folder / "tests.tsv").write_text("".join(tests))
    (folder / "checkout.txt").write_text(f"{ROOT}\n")


def replace(folder, new):
    """Moves a new folder to where an old one may be."""
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(new, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "target" / "cuda")
    folder = parser.parse_args().folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = executables(build())
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            new = Path(temporary) / folder.name
            new.mkdir()
            pack(found, new)
            describe(found, new)
            replace(folder, new)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"[cuda] error: {error}")
    for file in sorted(folder.iterdir()):
        print(f"[cuda] {file.stat().st_size / 2**20:6.1f} MiB  {file}")


if __name__ == "__main__":
    main()
