"""Trades adapters with earlier releases of Python's peft in both directions, on the tiny BERT, and fails on any difference:
  back    the release makes an adapter; peft-glue loads it and gives the logits that the release gives
  there   peft-glue trains an adapter; the release loads it, without a missing or unexpected key or field, and gives the same logits

Each release has an environment of its own below interop/releases, made the first time, on the torch of the Python that runs this
script: transformers of its day and numpy 1. 0.3.0 is left out: it saves pickles alone (its files, converted, are among the tests' oracles).

`make interop` runs it last; alone, in the repository's root: bench/.venv/bin/python interop/releases.py [RELEASE ...]
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "crates/peft/tests/oracle/tiny-bert"
# What a release was made for; all of them have wheels for Python 3.11.
RELEASES = {
    "0.4.0": ["transformers==4.31.0", "tokenizers==0.13.3", "huggingface_hub==0.16.4", "accelerate==0.21.0"],
    "0.8.2": ["transformers==4.37.2", "tokenizers==0.15.2", "huggingface_hub==0.20.3", "accelerate==0.26.1"],
    "0.14.0": ["transformers==4.47.1", "tokenizers==0.21.4", "huggingface_hub==0.26.5", "accelerate==1.2.1"],
}
SHARED = ["numpy==1.26.4", "requests", "filelock", "fsspec", "pyyaml", "tqdm", "regex", "packaging", "psutil", "safetensors"]
OURS = {
    "lora": ["--method", "lora", "--r", "3"],
    "lora_everywhere": ["--method", "lora", "--target-modules", "query,key,value,output.dense", "--modules-to-save", "pooler"],
    "ia3": ["--method", "ia3"],
    "prompt_tuning": ["--method", "prompt_tuning", "--num-virtual-tokens", "3"],
    "p_tuning": ["--method", "p_tuning", "--num-virtual-tokens", "3"],
    "prefix_tuning": ["--method", "prefix_tuning", "--num-virtual-tokens", "3"],
}
# Of the largest logit, or of 1 if that is larger: both sides add in f32, in different orders.
LOGITS = 1e-5


def environment(release):
    """The Python of a release, installed if it is not there."""
    folder = ROOT / "interop/releases" / release
    python = folder / "bin/python"
    if not (folder / ".installed").exists():
        print(f"installing peft {release} in {folder.relative_to(ROOT)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *SHARED], check=True)
        # Without what they ask for besides: torch is this Python's, behind the release's own packages.
        subprocess.run([*pip, "--no-deps", f"peft=={release}", *RELEASES[release]], check=True)
        site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
        (Path(site.stdout.strip()) / "zz_torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / ".installed").touch()
    return python


def side(python, command, batches, folder):
    call = [python, ROOT / "interop/release_side.py", command, MODEL, batches, folder]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    print(done.stderr if "is not saved by" in done.stderr else "", end="")
    return json.loads(done.stdout.splitlines()[-1])["logits"]


def peft_glue(binary, batches, *arguments):
    call = [binary, "replay", "--task", "mnli", "--model", MODEL, "--batches", batches, *arguments]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def distance(ours, theirs):
    ours, theirs = numpy.array(ours), numpy.array(theirs)
    return numpy.abs(ours - theirs).max() / max(1.0, numpy.abs(theirs).max())


def make_batches(path):
    ids = numpy.random.default_rng(1).integers(4, 100, (6, 20))
    mask = (numpy.arange(20) < numpy.array([[20], [7], [1], [12], [2], [19]])).astype(numpy.int64)
    labels = numpy.array([0, 1, 2, 0, 1, 2])
    numpy.savez(path, steps=numpy.array(1), **{"s0.input_ids": ids * mask, "s0.attention_mask": mask, "s0.labels": labels})


def check(release, binary, batches, folder):
    """The distances of each case, by direction."""
    python, found = environment(release), []
    back, there = folder / "back", folder / "there"
    for case, theirs in side(python, "make", batches, back).items():
        ours = peft_glue(binary, batches, "--adapter", back / case, "--forward-only")["logits"][0]
        found.append(("back", case, distance(ours, theirs)))
    for case, options in OURS.items():
        peft_glue(binary, batches, *options, "--lr", "0.05", "--warmup", "0", "--save-adapter", there / case)
    for case, theirs in side(python, "load", batches, there).items():
        ours = peft_glue(binary, batches, "--adapter", there / case, "--forward-only")["logits"][0]
        found.append(("there", case, distance(ours, theirs)))
    return found


def trade(releases, binary):
    """Trades with each release; how many cases differ."""
    failed = 0
    for release in releases:
        with tempfile.TemporaryDirectory() as folder:
            batches = Path(folder) / "batches.npz"
            make_batches(batches)
            for direction, case, apart in check(release, binary, batches, Path(folder)):
                is_near = apart <= LOGITS
                print(f"peft {release:7} {direction:6} {case:16} {apart:9.1e}  {'ok' if is_near else 'FAILED'}", flush=True)
                failed += not is_near
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", choices=[*RELEASES, []], help="which releases [default: all]")
    parser.add_argument("--binary", default=ROOT / "target/debug/peft-glue", type=Path)
    arguments = parser.parse_args()
    failed = trade(arguments.releases or RELEASES, arguments.binary)
    print(f"{failed} failed" if failed else "every adapter travels both ways")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
