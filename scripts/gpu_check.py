"""What gpu_check.sh runs on a machine with an NVIDIA GPU: checks, speed beside Python's peft, bf16 against f32, one table.

  gpu_check.py FOLDER RESULTS [--long]      FOLDER: what `make cuda` made; RESULTS: the table's file; --long: besides, what takes longer
                                            than eight minutes: torch.compile, and five seeds in bf16 and f32

It needs no package itself: torch is asked by gpu_peer.py, a process that stays. A crash or a hang is one row: a new one is started.
"""

import argparse
import csv
import json
import os
import re
import resource
import select
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from flops import Shape, lora_flops  # noqa: E402

PEER = ROOT / "scripts" / "gpu_peer.py"


class Workload(NamedTuple):
    """A model's shape, its batches, and what is asked of them in bf16."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    sequences: int
    length: int | None  # None: like MRPC's
    over_eager: float | None = None
    over_compiled: float | None = None
    over_tf32: float | None = None
    of_products: float | None = None

    @property
    def shape(self):
        return Shape(self.layers, self.hidden, self.intermediate)


# The first are the most important: time may run out.
WORKLOADS = {
    "BERT-base": Workload(12, 768, 12, 3072, 32, None, over_eager=9.0, over_compiled=5.0, over_tf32=3.0),
    "MiniLM": Workload(6, 384, 12, 1536, 32, None, over_eager=12.0),
    "BERT-large": Workload(24, 1024, 16, 4096, 64, 128, over_eager=2.5, of_products=0.5),
}
STEPS, WARM_UP, ROUNDS, RANK = 60, 20, 2, 8
MEMORY = 0.5  # of the peer's
# Without dropout, before the first update; a bf16 hidden state has 8 bits.
# TF32 has 10 bits in products.
FIRST_LOSSES = {"f32": 1e-4, "tf32": 1e-2, "bf16": 3e-2}
SEEDS = range(1, 6)
# Real runs, of MiniLM's weights on GLUE's data: seconds of training on the whole of SST-2, what runs at once are faster by, and a
# process' system time as a share of its wall time.
SST2_SECONDS, AT_ONCE, AT_ONCE_GAIN, SYSTEM_SHARE = 4.0, 4, 3.0, 0.25
SECONDS = {False: 120, True: 900}  # that one step may take, without --long and with it

# For each test binary that runs on the GPU: the names of its tests, all if there are none, and variables. What does not run there was
# tested where it was built; f64 is the CPU's.
TESTS = {
    "ops-cuda_operations": ([], {}),
    "ops-cuda_layers": ([], {}),
    "ops-cuda_streams": ([], {}),
    "ops-cuda_nccl": ([], {}),
    "trainer-cuda": ([], {}),
    "trainer-replay": ([], {}),
    "trainer-cuda_memory": ([], {}),
    "trainer-cuda_step": ([], {}),
    "trainer-cuda_replicas": ([], {}),
    "trainer-concurrent_runs": ([], {}),
    "peft-model": (
        [
            "equal_those_of", "pefts_logits", "pefts_gradients", "adapterhub_on_every", "unmerged", "share_a_batch",
            "conversion_to_lora_has", "collection_combines",
        ],
        {"PEFT_TEST_DEVICE": "cuda:0"},
    ),
}


# The test binaries that are run here; those of the library of operations have attention's times.
BINARIES = {*TESTS, "ops-tests"}


class Failure(Exception):
    """What a step did not do, in a line."""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    found: str
    asked: str = ""
    is_met: bool | None = None

    def __str__(self):
        met = {None: "", True: "yes", False: "**NO**"}[self.is_met]
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in (self.what, self.found, self.asked, met)) + " |"


def compared(what, value, asked=None, at_most=False, form="{:.2f}"):
    """A number, and whether it is what was asked for."""
    if asked is None:
        return Row(what, form.format(value))
    # Written so that what is not a number is not enough.
    is_met = value <= asked if at_most else value >= asked
    return Row(what, form.format(value), ("at most " if at_most else "at least ") + form.format(asked), is_met)


def table(title, rows):
    lines = [f"# {title}", "", "| what | found | asked for | met |", "| --- | --- | --- | --- |", *map(str, rows)]
    return "\n".join(lines) + "\n"


def call(command, log, seconds=SECONDS[False], **options):
    """What a command wrote to its standard output; all it wrote goes to the file `log`."""
    with open(log, "w+") as errors, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=errors, start_new_session=True, **options)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # torch.compile leaves workers.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        output.seek(0)
        errors.seek(0)
        found, said = output.read(), errors.read()
        errors.write(found)
    if code == 0:
        return found
    said = [line.strip() for line in (said.strip() or found).splitlines() if line.strip()]
    reason = f"took more than {seconds} s" if code is None else f"ended with {code}"
    raise Failure(f"{Path(command[0]).name} {reason}: {said[-1][:200] if said else 'it said nothing'} (all in {log.name})")


def last_json(output):
    """The last line, as what it holds: libraries print before it."""
    try:
        return json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise Failure(f"expected JSON, found {output[-200:]!r}") from None


class Peer:
    """gpu_peer.py as a process that stays: loading torch takes longer than most answers. After a crash or a hang the next is a new one."""

    def __init__(self, command, log, seconds):
        self.command, self.log, self.seconds, self.process = command, log, seconds, None

    def ask(self, words, **options):
        """The answer to a request of gpu_peer.py."""
        if self.process is None:
            with open(self.log, "a") as errors:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
                self.process = subprocess.Popen(self.command, **pipes, start_new_session=True, **options)
        try:
            self.process.stdin.write(json.dumps(words).encode() + b"\n")
            self.process.stdin.flush()
            line = self.read_line()
        except (OSError, Failure) as error:
            self.end()
            raise Failure(f"the peer's {words[0]}: {error} (all in {self.log.name})") from None
        answer = last_json(line.decode())
        if "failed" in answer:
            raise Failure(f"the peer's {words[0]}: {answer['failed'][:300]} (all in {self.log.name})")
        return answer["answer"]

    def read_line(self):
        line, until = b"", time.monotonic() + self.seconds
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Failure(f"took more than {self.seconds} s")
            read = os.read(self.process.stdout.fileno(), 2**16)
            if not read:
                raise Failure("ended without an answer")
            line += read
        return line

    def end(self):
        if self.process is None:
            return
        process, self.process = self.process, None
        try:
            os.killpg(process.pid, signal.SIGKILL)  # torch.compile leaves workers.
        except ProcessLookupError:
            pass
        process.wait()
        process.stdin.close()
        process.stdout.close()


class Machine:
    """The binaries, unpacked, and Python's torch."""

    def __init__(self, folder, work, logs, is_long=False):
        self.folder, self.work, self.logs, self.calls = folder, work, logs, 0
        self.is_long = is_long
        self.environment = dict(os.environ, HF_HUB_OFFLINE="1", GLUE_OFFLINE="1")
        self.resident = Peer([sys.executable, PEER, "serve"], logs / "peer.log", SECONDS[is_long])

    def call(self, name, command, **options):
        self.calls += 1
        environment = {**self.environment, **options.pop("env", {})}
        print(f"[gpu] {name}", flush=True)
        return call(command, self.logs / f"{self.calls:03}-{name}.log", SECONDS[self.is_long], env=environment, **options)

    def unpack(self):
        with tarfile.open(self.folder / "binaries.tar.xz") as archive:
            archive.extractall(self.work, filter="data")

    def find_libraries(self):
        """cuBLAS and CUDA's runtime come with torch; cuRAND may, and else has a stand-in."""
        folders = self.peer("libraries")
        known = self.environment.get("LD_LIBRARY_PATH")
        self.environment["LD_LIBRARY_PATH"] = ":".join([*folders, *([known] if known else []), str(self.work / "stand-ins")])

    def link_checkout(self):
        """The tests look for what they read below the path that they were built in."""
        built = Path((self.folder / "checkout.txt").read_text().strip())
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            built.symlink_to(ROOT)

    def peer(self, *arguments):
        words = list(map(str, arguments))
        print(f"[gpu] peer {' '.join(word for word in words if not word.startswith('/'))}", flush=True)
        # Its libraries are torch's own, as in any process of Python.
        return self.resident.ask(words, env=dict(os.environ, HF_HUB_OFFLINE="1"))

    def ours(self, name, *arguments):
        return last_json(self.call(name, [self.work / "peft-glue", *arguments, "--device", "cuda:0", "--json"]))


def describe(machine):
    """The card, and what is installed."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    yield Row("card, driver, power limit, highest clock", machine.call("nvidia-smi", query).strip())
    yield Row("Python", ", ".join(f"{name} {version}" for name, version in machine.peer("versions").items()))


def starts(machine):
    """Whether our binary runs at all, and if not, which library it lacks."""
    binary = machine.work / "peft-glue"
    try:
        yield Row("peft-glue starts", machine.call("version", [binary, "--version"]).strip(), is_met=True)
    except Failure as failure:
        missing = [line.strip() for line in machine.call("ldd", ["ldd", binary]).splitlines() if "not found" in line]
        raise Failure(f"{failure}; {', '.join(missing) or 'no library is missing'}") from None


def check(machine, name, directory):
    names, variables = TESTS[name]
    command = [machine.work / name, "--test-threads", "1", *names]
    output = machine.call(name, command, cwd=ROOT / directory, env=variables)
    summary = [line for line in output.splitlines() if line.startswith("test result:")]
    passed = int(summary[-1].split("ok. ")[1].split(" passed")[0]) if summary else 0
    yield Row(f"tests {name}", f"{passed} passed", is_met=passed > 0)


def seconds_after_warm_up(replayed):
    return sum(replayed["step_seconds"][WARM_UP:])


def ours(machine, name, files, precision, *more):
    """Losses, examples per second, peak memory in MiB, as gpu_peer.py's."""
    found = machine.ours(
        f"ours-{name}-{precision}", "replay", "--model", files, "--task", "mrpc", "--method", "lora", "--r", RANK, "--lr", "1e-3",
        "--precision", precision, "--batches", files / "batches.npz", "--start", files / "start.safetensors", *more,
    )
    # The GPU works behind the CPU: what is left of the warm-up's work counts too.
    speed = sum(found["examples"][WARM_UP:]) / seconds_after_warm_up(found)
    return {"losses": found["losses"], "speed": speed, "memory": found["peak_memory"] / 2**20}


def share_of_products(shape, lengths, speed, rate):
    """How much of the rate of the card's products (FLOP/s) a speed (examples/s) is, by the operations that LoRA needs."""
    needed = sum(lora_flops(shape, step, RANK) for step in lengths) / sum(map(len, lengths))
    return needed * speed / rate


def measure(machine, name, precision, sides=("ours", "eager")):
    """Rows of one model in one precision."""
    workload, files, what = WORKLOADS[name], machine.work / name, f"{name}, {precision}"
    if not (files / "lengths.json").exists():
        machine.peer("prepare", name, files)
    runs_of = {
        "ours": lambda: ours(machine, name, files, precision),
        "eager": lambda: machine.peer("train", name, files, precision),
        "compiled": lambda: machine.peer("train", name, files, precision, "--compiled"),
    }
    measured, failures = {side: [] for side in sides}, {}
    for _ in range(ROUNDS):  # In turns, so that a slow moment meets all.
        for side in [side for side in sides if side not in failures]:
            try:
                measured[side].append(runs_of[side]())
            except Failure as failure:
                failures[side] = failure
                yield Row(f"{what}: {side}", f"failed: {failure}", is_met=False)
    runs = {side: found for side, found in measured.items() if found}
    speed = {side: max(run["speed"] for run in found) for side, found in runs.items()}
    memory = {side: max(run["memory"] for run in found) for side, found in runs.items()}
    for side in runs:
        yield Row(f"{what}: {side}", f"{speed[side]:.0f} examples/s, at most {memory[side]:.0f} MiB")
    if "ours" not in runs:
        return
    if "eager" in runs:
        asked = {"bf16": workload.over_eager, "tf32": workload.over_tf32}.get(precision)
        yield compared(f"{what}: speed over eager", speed["ours"] / speed["eager"], asked)
        yield compared(f"{what}: memory over eager", memory["ours"] / memory["eager"], MEMORY, at_most=True)
    if "compiled" in runs:
        yield compared(f"{what}: speed over torch.compile", speed["ours"] / speed["compiled"], workload.over_compiled)
        return
    if precision == "bf16":
        rate = machine.peer("products")
        lengths = json.loads((files / "lengths.json").read_text())[WARM_UP:]
        share = share_of_products(workload.shape, lengths, speed["ours"], rate)
        yield compared(f"{what}: share of the card's {rate / 1e12:.0f} TFLOP/s", share, workload.of_products)
    # Without dropout, whose masks are others.
    exact = ours(machine, name, files, precision, "--dropout", "0"), machine.peer("train", name, files, precision, "--no-dropout")
    difference = abs(exact[0]["losses"][0] - exact[1]["losses"][0])
    yield compared(f"{what}: first losses differ by", difference, FIRST_LOSSES[precision], at_most=True, form="{:.1e}")


def trained(machine, name, task, *more):
    """A run of LoRA on MiniLM's weights, in bf16: its record, wall and system time in seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    record = machine.ours(
        name, "run", "--task", task, "--method", "lora", "--r", RANK, "--lr", "1e-3", "--pooling", "mean", "--precision", "bf16",
        "--batch-size", 32, "--model", ROOT / "models" / "all-MiniLM-L6-v2", "--runs", machine.work / name, *more,
    )
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return record, wall, after.ru_stime - before.ru_stime


def whole_sst2(machine):
    """One epoch of all that SST-2 has."""
    record, wall, system = trained(machine, "sst2", "sst2", "--epochs", 1)
    found = record["data"]["train"]
    what = f"SST-2, {found['found']:,} of {found['official']:,} examples, one epoch"
    yield compared(f"{what}: seconds of training", record["train_seconds"], SST2_SECONDS, at_most=True)
    yield compared("the same: system time over wall time", system / wall, SYSTEM_SHARE, at_most=True)


def several_at_once(machine):
    """Runs of several seeds, at once and one after the other, by what their processes take."""
    seeds = ",".join(map(str, range(1, AT_ONCE + 1)))
    walls = {
        at_once: trained(machine, f"mrpc-{at_once}-at-once", "mrpc", "--epochs", 3, "--seeds", seeds, "--at-once", at_once)[1]
        for at_once in (1, AT_ONCE)
    }
    one_by_one, together = walls[1], walls[AT_ONCE]
    yield Row(f"MRPC, {AT_ONCE} runs", f"{one_by_one:.1f} s one after the other, {together:.1f} s at once")
    yield compared("runs at once: speed over one after the other", one_by_one / together, AT_ONCE_GAIN)


def attention(machine, directory):
    """Attention's kernels from registers beside those by tiles, by the card's clock."""
    command = [machine.work / "ops-tests", "flash", "--include-ignored", "--nocapture", "--test-threads", "1"]
    output = machine.call("attention", command, cwd=ROOT / directory)
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and len(cells) == 5 and re.match(r"\d", cells[1]):
            name, forward_by_tiles, forward, backward_by_tiles, backward = cells
            found = f"forward {forward_by_tiles} by tiles, {forward}; backward {backward_by_tiles}, {backward} us"
            yield Row(f"attention, {name}", found)
    if "test result: ok" not in output:
        raise Failure("its tests did not pass")


def kernels(machine, name, count=12):
    """The kernels of one step by the hardware's clock, where NVIDIA's profiler is installed."""
    files = machine.work / name
    command = [
        "ncu", "--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv", "--launch-skip", 2000, "--launch-count", 500,
        "--kill", "yes", machine.work / "peft-glue", "replay", "--model", files, "--task", "mrpc", "--method", "lora", "--r", RANK, "--lr", "1e-3",
        "--precision", "bf16", "--batches", files / "batches.npz", "--start", files / "start.safetensors", "--device", "cuda:0", "--json",
    ]
    times = kernel_times(machine.call(f"ncu-{name}", command))
    total = sum(map(sum, times.values()))
    by_share = sorted(times.items(), key=lambda item: -sum(item[1]))
    for kernel, microseconds in by_share[:count]:
        mean, share = statistics.mean(microseconds), sum(microseconds) / total
        yield Row(f"{name}, bf16: kernel {kernel[:60]}", f"{mean:.1f} us, {len(microseconds)} launches, {share:.1%} of {total / 1000:.2f} ms")


def kernel_times(output):
    """Of ncu's table its kernels by name, with the microseconds of each launch."""
    lines = output.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise Failure(f"expected ncu's table, found {output[-200:]!r}")
    times, scale = {}, {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
    for row in csv.DictReader(lines[first:]):
        if row["Metric Name"] == "gpu__time_duration.sum":
            microseconds = float(row["Metric Value"].replace(",", "")) * scale[row["Metric Unit"]]
            times.setdefault(row["Kernel Name"], []).append(microseconds)
    return times


def mean_and_spread(scores):
    return statistics.mean(scores), statistics.stdev(scores)


def precisions(machine, task):
    """The same runs of several seeds in f32 and in bf16: means, and whether they differ by no more than the seeds do."""
    scores, examples = {"f32": [], "bf16": []}, 0
    for seed in SEEDS:
        for precision, found in scores.items():
            record = machine.ours(
                f"{task}-{precision}-{seed}", "run", "--task", task, "--method", "lora", "--r", RANK, "--lr", "1e-3", "--epochs", "5",
                "--pooling", "mean", "--seed", seed, "--precision", precision, "--model", ROOT / "models" / "all-MiniLM-L6-v2",
                "--runs", machine.work / "runs",
            )
            best = record["best"]["scores"].values()
            found.append(sum(best) / len(best))
            examples = record["data"]["train_used"]
    (f32, f32_spread), (bf16, bf16_spread) = map(mean_and_spread, scores.values())
    spread = max(f32_spread, bf16_spread)
    found = f"f32 {f32:.4f} ± {f32_spread:.4f}, bf16 {bf16:.4f} ± {bf16_spread:.4f}"
    yield Row(f"{task}, {len(SEEDS)} seeds, {examples} training examples: score", found)
    yield compared(f"{task}: f32 and bf16 differ by", abs(f32 - bf16), spread, at_most=True, form="{:.4f}")


def steps(machine):
    """Every step by its name, the most important first."""
    yield "the binaries", lambda: machine.unpack()
    yield "the machine", lambda: describe(machine)
    yield "torch's libraries", lambda: machine.find_libraries()
    yield "peft-glue starts", lambda: starts(machine)
    yield "the tests' folder", lambda: machine.link_checkout()
    listed = machine.folder / "tests.tsv"
    directories = dict(line.split("\t") for line in listed.read_text().splitlines()) if listed.exists() else {}
    of_operations = [name for name in TESTS if name.startswith("ops-")]
    for name in of_operations:
        yield f"tests {name}", lambda name=name: check(machine, name, directories[name])
    for name in WORKLOADS:
        yield f"{name}, bf16", lambda name=name: measure(machine, name, "bf16")
    yield "BERT-base, tf32", lambda: measure(machine, "BERT-base", "tf32")
    yield "SST-2", lambda: whole_sst2(machine)
    yield "several runs at once", lambda: several_at_once(machine)
    yield "attention", lambda: attention(machine, directories["ops-tests"])
    for name in [name for name in TESTS if name not in of_operations]:
        yield f"tests {name}", lambda name=name: check(machine, name, directories[name])
    for name in ("BERT-base", "BERT-large"):
        yield f"the kernels of {name}", lambda name=name: kernels(machine, name)
    if not machine.is_long:
        return
    for name in WORKLOADS:
        yield f"{name}, f32", lambda name=name: measure(machine, name, "f32")
    for task in ("mrpc", "rte"):
        yield f"{task}, bf16 against f32", lambda task=task: precisions(machine, task)
    yield "BERT-base, torch.compile", lambda: measure(machine, "BERT-base", "bf16", ("ours", "compiled"))


def take(steps, results, title):
    """Takes every step, whatever the others do, and writes the table after each; the rows."""
    rows = []
    for name, step in steps:
        try:
            for row in step() or []:
                rows.append(row)
                print(row, flush=True)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # One row; the machine is lent once.
            reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            rows.append(Row(name, f"failed: {reason}", is_met=False))
            print(rows[-1], flush=True)
        results.write_text(table(title, rows))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `make cuda` made")
    parser.add_argument("results", type=Path, help="the file of the table")
    parser.add_argument("--long", action="store_true", help="besides, what takes longer than eight minutes")
    arguments = parser.parse_args()
    if not (arguments.folder / "binaries.tar.xz").exists():
        sys.exit(f"[gpu] error: no binaries in {arguments.folder}; build them by make cuda and copy target/cuda here")
    results = arguments.results.resolve()
    logs = results.with_suffix(".logs")
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        machine = Machine(arguments.folder.resolve(), Path(work), logs, arguments.long)
        try:
            rows = take(steps(machine), results, "The CUDA build on a card, beside Python's peft")
        finally:
            machine.resident.end()
    print(f"\n{results.read_text()}\n[gpu] the table is in {results}, what each step said in {logs}")
    sys.exit(any(row.is_met is False for row in rows))


if __name__ == "__main__":
    main()
