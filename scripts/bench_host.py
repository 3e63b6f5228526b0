"""What the CPU does for each training step on a GPU: launches, allocations, calls of CUDA's libraries, and the time of our own code.

  bench_host.py BINARY [--against BINARY] [--only WORDS] [--runs N] [--steps N] [--perf] [--card]

BINARY is a peft-glue with the feature cuda. It runs on libraries that do nothing (crates/emulator/idle.cpp), so that no GPU is needed,
and the time of a step is the host's alone: what a driver's own functions take on a real machine comes on top. `make bench-host` builds
both and calls this.

--card runs the same on the machine's GPU: what a step takes more there is the driver's and the card's. User and system seconds are those of
a whole process with all its threads, its start included: --steps 2000 leaves little of that.

Models have BERT's layout with weights of zeros; their batches are of 32 sequences with lengths like MRPC's. Counts are those of a step
in the middle of a training; the time is that of the fastest and of the median step in the best of several runs.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IDLE = ROOT / "target" / "cuda-emulator" / "idle"
VOCABULARY, POSITIONS, SEQUENCES = 30522, 512, 32
# Steps of the shorter of the two trainings whose difference is counted, and those that are not timed.
FEW, WARM_UP = 8, 8
MODELS = {"MiniLM": (6, 384, 12), "BERT-base": (12, 768, 12), "BERT-large": (24, 1024, 16)}  # layers, hidden, heads
METHODS = {"lora": ["--method", "lora", "--r", "8"], "bitfit": ["--method", "bitfit"], "full": ["--method", "full"]}
PRECISIONS = ("bf16", "f32")
# Milliseconds of a step.
GOALS = {("BERT-base", "lora", "bf16"): 1.5, ("MiniLM", "lora", "bf16"): 0.8}
# What makes the card work: kernels, products, copies.
LAUNCHES = r"kernel .*|cublasLtMatmul|cublas\w*[Gg]emm\w*|cuMem(set|cpy)\w*"
ALLOCATIONS = r"cuMemAlloc(Async|_v2)"
# How products of a shape are to be computed.
CHOICES = "cublasLtMatmulAlgoGetHeuristic"
CALLS = r"cu\w*"


class Step(NamedTuple):
    """What one step takes."""

    fastest: float  # microseconds
    median: float
    user: float  # seconds of the whole process
    system: float
    counts: dict  # by function or kernel

    def count(self, names):
        return sum(count for name, count in self.counts.items() if re.fullmatch(names, name))

    def most(self, number=5):
        most = sorted(self.counts.items(), key=lambda item: -item[1])[:number]
        return ", ".join(f"{name.removeprefix('kernel ')} {count:g}" for name, count in most)


def parameters(layers, hidden):
    """The names and shapes of a BertModel's parameters."""
    inner = 4 * hidden
    yield from {
        "embeddings.word_embeddings.weight": (VOCABULARY, hidden),
        "embeddings.position_embeddings.weight": (POSITIONS, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
        "pooler.dense.weight": (hidden, hidden),
        "pooler.dense.bias": (hidden,),
    }.items()
    linear = {f"attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (hidden, hidden), "intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    for layer in range(layers):
        for name, shape in linear.items():
            yield f"encoder.layer.{layer}.{name}.weight", shape
            yield f"encoder.layer.{layer}.{name}.bias", shape[:1]
        for name in ("attention.output", "output"):
            yield f"encoder.layer.{layer}.{name}.LayerNorm.weight", (hidden,)
            yield f"encoder.layer.{layer}.{name}.LayerNorm.bias", (hidden,)


def write_model(folder, layers, hidden, heads):
    folder.mkdir()
    config = {
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * hidden, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in parameters(layers, hidden):
        begin, numbers = end, 1
        for size in shape:
            numbers *= size
        end = begin + 4 * numbers
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)  # Zeros, which take no place on the disk.


def array(values, shape):
    """An npy file of int64."""
    header = repr({"descr": "<i8", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack(f"<{len(values)}q", *values)


def write_batches(path, steps):
    draw = random.Random(1)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("steps.npy", array([steps], ()))
        for step in range(steps):
            # MRPC's sentence pairs have 53 tokens in the mean, 16 by standard deviation, with MiniLM's tokenizer.
            lengths = [min(max(round(draw.gauss(53, 16)), 16), 110) for _ in range(SEQUENCES)]
            shape = (SEQUENCES, max(lengths))
            mask = [int(place < length) for length in lengths for place in range(shape[1])]
            ids = [draw.randrange(1000, VOCABULARY) * there for there in mask]
            file.writestr(f"s{step}.input_ids.npy", array(ids, shape))
            file.writestr(f"s{step}.attention_mask.npy", array(mask, shape))
            file.writestr(f"s{step}.labels.npy", array([draw.randrange(2) for _ in range(SEQUENCES)], (SEQUENCES,)))


class Trained(NamedTuple):
    """What was measured of a training."""

    seconds: list  # of each step
    cpu: tuple  # user and system seconds of the process
    counts: dict  # by function or kernel


def train(binary, folder, workload, steps, card, prefix=()):
    model, method, precision = workload
    counts = folder / "counts.tsv"
    libraries = os.environ.get("LD_LIBRARY_PATH")
    environment = dict(os.environ)
    if not card:
        environment |= {"CUDA_IDLE_COUNTS": str(counts), "LD_LIBRARY_PATH": ":".join([str(IDLE), *([libraries] if libraries else [])])}
    environment.pop("PEFT_NO_CUDA_MEMORY_CACHING", None)  # As on a card.
    command = [
        *prefix, binary, "replay", "--task", "mrpc", "--model", folder / model, *METHODS[method], "--lr", "1e-3", "--precision", precision,
        "--batches", folder / f"{steps}.npz", "--device", "cuda:0", "--json",
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"[bench-host] error: {binary} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    rows = [] if card else [line.split("\t") for line in counts.read_text().splitlines()]
    return Trained(
        json.loads(done.stdout.strip().splitlines()[-1])["step_seconds"],
        (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime),
        {name: int(count) for name, count in rows},
    )


def measure(binaries, folder, workload, arguments):
    """For each binary its step: they run in turns, so that a slow moment meets all."""
    steps, card = arguments.steps, arguments.card
    few = {binary: train(binary, folder, workload, FEW, card) for binary in binaries}
    many = {binary: [] for binary in binaries}
    for _ in range(arguments.runs):
        for binary in binaries:
            many[binary].append(train(binary, folder, workload, steps, card))
    for binary in binaries:
        # The first steps look up, choose and remember; the last waits for losses.
        seconds = [sorted(trained.seconds[WARM_UP:-1]) for trained in many[binary]]
        more = {name: count - few[binary].counts.get(name, 0) for name, count in many[binary][0].counts.items()}
        yield Step(
            1e6 * min(times[0] for times in seconds),
            1e6 * min(times[len(times) // 2] for times in seconds),
            *(min(trained.cpu[kind] for trained in many[binary]) for kind in range(2)),
            {name: round(count / (steps - FEW), 1) for name, count in more.items() if count > 0},
        )


def profile(binary, folder, workload, arguments):
    """The functions that a training spends its time in, by perf."""
    if not shutil.which("perf"):
        sys.exit("[bench-host] error: no perf was found (Debian: apt-get install linux-perf); leave out --perf")
    data = folder / "perf.data"
    train(binary, folder, workload, arguments.steps, arguments.card, ["perf", "record", "-q", "-F", "5000", "-o", data, "--"])
    report = ["perf", "report", "-i", data, "--stdio", "--no-children", "--percent-limit", "0.7", "--sort", "comm,dso,symbol"]
    return subprocess.run(list(map(str, report)), capture_output=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path, help="a peft-glue with the feature cuda")
    parser.add_argument("--against", type=Path, help="another one, such as that of an earlier commit, measured in turns with it")
    parser.add_argument("--only", default="", help="the workloads whose name has all these words, such as 'BERT-base lora bf16'")
    parser.add_argument("--runs", type=int, default=2, help="trainings of each workload that are timed (2)")
    parser.add_argument("--steps", type=int, default=48, help="steps of each training (48)")
    parser.add_argument("--card", action="store_true", help="on the machine's GPU, not on libraries that do nothing")
    parser.add_argument("--perf", action="store_true", help="also the functions that take the time, by perf")
    arguments = parser.parse_args()
    binaries = [binary.resolve() for binary in (arguments.against, arguments.binary) if binary]
    if arguments.steps < 2 * FEW:
        sys.exit(f"[bench-host] error: --steps {arguments.steps}: {2 * FEW} at least are needed")
    needed = [*binaries] if arguments.card else [*binaries, IDLE / "libidle.so"]
    if missing := [path for path in needed if not path.exists()]:
        sys.exit(f"[bench-host] error: there is no {missing[0]}; type: make bench-host")
    every = [(model, method, precision) for model in MODELS for method in METHODS for precision in PRECISIONS]
    workloads = [workload for workload in every if set(arguments.only.split()) <= set(workload)]
    if not workloads:
        names = ", ".join([*MODELS, *METHODS, *PRECISIONS])
        sys.exit(f"[bench-host] error: no workload is named {arguments.only!r}; name one or more of {names}")
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as temporary:
        folder = Path(temporary)
        for model in {model for model, _, _ in workloads}:
            write_model(folder / model, *MODELS[model])
        for steps in (FEW, arguments.steps):
            write_batches(folder / f"{steps}.npz", steps)
        counted = {} if arguments.card else {"launches": LAUNCHES, "allocations": ALLOCATIONS, "choices": CHOICES, "calls": CALLS}
        heads = ["model, method, precision", *counted, "fastest step, µs", "median, µs", "user, s", "system, s", "goal"]
        heads += ["most calls"] if counted else []
        print(f"| {' | '.join(heads)} |\n| --- |{' ---: |' * (len(heads) - 1)}")
        for workload in workloads:
            labels = ["before", ""][-len(binaries):]
            for label, step in zip(labels, measure(binaries, folder, workload, arguments)):
                cells = [", ".join([*workload, *([label] if label else [])]), *(f"{step.count(names):.0f}" for names in counted.values())]
                cells += [f"{step.fastest:.0f}", f"{step.median:.0f}", f"{step.user:.1f}", f"{step.system:.1f}"]
                cells += [f"{1e3 * GOALS[workload]:.0f}" if workload in GOALS else "", *([step.most()] if counted else [])]
                print(f"| {' | '.join(cells)} |", flush=True)
            if arguments.perf:
                print(profile(binaries[-1], folder, workload, arguments), flush=True)


if __name__ == "__main__":
    main()
