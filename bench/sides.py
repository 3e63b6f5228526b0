"""The two sides of a comparison, each a process of its own that prints one JSON object."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "target" / "debug" / "peft-glue"
TORCH_SIDE = Path(__file__).with_name("torch_side.py")


class BenchError(Exception):
    """Why something could not be measured."""


def run_json(command, variables=()):
    """Runs a command and returns the JSON object in the last line that it prints."""
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **dict(variables)}, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        end = "\n".join(done.stderr.splitlines()[-20:])
        raise BenchError(f"status {done.returncode} from\n  {' '.join(command)}\n{end}")
    return json.loads(lines[-1])


class Sides:
    """How to start either side, with the same model, data and number of threads."""

    def __init__(self, peer, glue, model, threads):
        self.script, self.glue, self.model, self.threads = peer, glue, model, threads
        if not BINARY.exists():
            raise BenchError(f"no {BINARY.relative_to(ROOT)}; type: cargo build --locked --bin peft-glue")
        for path in (peer, glue, model / "config.json"):
            if not path.exists():
                raise BenchError(f"there is no {path}")

    def ours(self, command, *arguments, model=None):
        """What `peft-glue COMMAND` prints."""
        variables = {"GLUE_DIR": str(self.glue), "RAYON_NUM_THREADS": str(self.threads)}
        return run_json([BINARY, command, "--json", "--model", model or self.model, *arguments], variables)

    def peer_arguments(self, *arguments):
        """The arguments that all runs of the peer share, then these."""
        return ["--model", self.model, "--data", self.glue, "--threads", self.threads, "--no-eval", *arguments]

    def peer(self, *arguments):
        """What the peer prints."""
        return run_json([sys.executable, self.script, *self.peer_arguments(*arguments)])

    def torch_side(self, command, *arguments):
        """What a command of torch_side.py prints."""
        return run_json([sys.executable, TORCH_SIDE, command, *arguments])


def first_line(*command):
    """The first line that a command prints; "unknown" where it does not work or prints nothing."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def processor():
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def commit():
    """The commit measured, with `+` after it where files had been changed since, other than results."""
    changes = first_line("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results.*")
    return first_line("git", "rev-parse", "--short", "HEAD") + ("" if changes == "unknown" else "+")


def environment(threads):
    """On what is measured."""
    packages = ["torch", "transformers", "peft"]
    return {
        "processor": processor(),
        "threads": threads,
        "commit": commit(),
        "versions": {
            "peft-glue": first_line(BINARY, "--version").split()[-1],
            "rustc": first_line("rustc", "--version"),
            "cargo": first_line("cargo", "--version"),
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }
