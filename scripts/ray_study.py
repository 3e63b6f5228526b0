"""Makes the runs of a study on a Ray cluster: ray_study.py STUDY --program PATH --runs FOLDER [--address ADDRESS].

Every node has the program, the data and the models under the same paths, and the folder of the runs, which they share. A run that a node
took and lost goes on from its checkpoint on another. The records are those of `peft-glue study run`: nothing else is state, so this
script may be stopped and started again, beside itself too. Needs `ray` from PyPI.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import ray

PR_SET_PDEATHSIG = 1  # Of Linux's prctl: the signal that a process gets when its parent ends.


def end_with_parent() -> None:
    """A run does not outlive the worker that Ray took away: it writes its checkpoint and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def make_run(program: str, name: str, recipe: str, runs: str, device: str, threads: int) -> str:
    """Makes one run where Ray puts it; raises where it is to be tried again."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / f"{name}.toml"
        config.write_text(recipe, encoding="utf-8")
        command = [program, "run", "--config", str(config), "--runs", runs, "--device", device, "--json"]
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        made = subprocess.run(  # noqa: PLW1509: a worker has one thread that starts processes.
            command, capture_output=True, text=True, check=False, env=environment, preexec_fn=end_with_parent
        )
    if made.returncode != 0:
        said = made.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{name}: exit status {made.returncode}: {said[0]}")
    return name


def missing(program: str, study: str, runs: str) -> list[dict[str, str]]:
    """The runs of the study's present stage that have no record."""
    listed = subprocess.run([program, "study", "next", study, "--runs", runs], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        sys.exit(listed.stderr.strip())
    return [json.loads(line) for line in listed.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--program", default="target/debug/peft-glue", help="peft-glue, under a path that every node has")
    parser.add_argument("--runs", default="runs", help="the folder of the runs, which the nodes share")
    parser.add_argument("--address", help="of the cluster, such as auto or ray://host:10001 [default: one is started here]")
    parser.add_argument("--cpus", type=float, default=1, help="processors that a run takes")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs that a run takes: .25 puts four on one")
    parser.add_argument("--retries", type=int, default=3, help="how often a run that failed or whose node was lost is tried again")
    given = parser.parse_args()
    program, study, runs = (str(Path(path).resolve()) for path in (given.program, given.study, given.runs))
    ray.init(address=given.address, log_to_driver=False)
    task = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, max_retries=given.retries, retry_exceptions=True)(make_run)
    device, threads = ("cuda" if given.gpus else "cpu"), max(1, round(given.cpus))
    failed: set[str] = set()
    made: set[str] = set()
    while todo := [run for run in missing(program, study, runs) if run["name"] not in failed]:
        if again := made.intersection(run["name"] for run in todo):
            sys.exit(f"[study] {', '.join(sorted(again))}: made, and without a record in {runs}; do all nodes share that folder?")
        print(f"[study] {len(todo)} runs to make", flush=True)
        waiting = {task.remote(program, run["name"], run["recipe"], runs, device, threads): run["name"] for run in todo}
        while waiting:
            [done], _ = ray.wait(list(waiting))
            name = waiting.pop(done)
            try:
                ray.get(done)
                made.add(name)
                print(f"[study] {name}", flush=True)
            except ray.exceptions.RayError as error:
                failed.add(name)
                print(f"[study] {name} failed: {str(error).strip().splitlines()[-1]}", file=sys.stderr, flush=True)
    shown = subprocess.run([program, "study", "show", study, "--runs", runs], check=False)
    sys.exit(1 if failed else shown.returncode)


if __name__ == "__main__":
    main()
