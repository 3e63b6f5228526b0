"""Ends, crowds and starves trainings in every way that a machine does, and compares what they come to with a training left alone.

  torture.py [--minutes N] [--seed N] [--program PATH] [--only WORD]

Each fault is tried on whole runs of a tiny BERT; then the same command goes on to the end, and the record (but for times and memory), the
adapter and the weights must be those of the run that was left alone, bit for bit. `make torture` builds the program and calls this;
`make test-torture` takes a tenth of the time. Faults at a system call are injected by strace, a full disk is a small one in memory, for
which the user must be root. What cannot be tried here is said, and is no success.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "crates/peft/tests/oracle/tiny-bert"
WORDS = ROOT / "crates/glue/src/synthetic.rs"

METHODS = {
    "LoRA": ["--method", "lora", "--r", "4"],
    "DoRA": ["--method", "lora", "--use-dora", "--lora-dropout", "0.1", "--group-by-length"],
    "AdaLoRA": ["--method", "adalora", "--init-r", "4", "--target-r", "2", "--tinit", "40", "--tfinal", "80"],
    "full": ["--method", "full", "--lr", "1e-4", "--keep-weights"],
    "BitFit": ["--method", "bitfit"],
}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# What a test of a run's end does not wait for longer, in seconds.
PATIENCE = 120
# System calls by which files change.
CALLS = {"mkdir": "mkdir,mkdirat", "write": "write", "fsync": "fsync", "rename": "rename,renameat,renameat2", "unlink": "unlink,unlinkat"}
ENOSPC = "No space left on device"


class Fault(Exception):
    """Something that must not be."""


class Difference(Fault):
    """A run that survived, and came to something else."""


def expect(holds, message, otherwise=Fault):
    if not holds:
        raise otherwise(message)


class Run:
    """A command, and the folder of what it writes."""

    def __init__(self, torture, folder, options, epochs):
        self.torture, self.folder, self.options, self.epochs = torture, Path(folder), options, epochs

    def command(self, *more):
        return [
            self.torture.program, "run", "--task", "synthetic", "--model", self.torture.model, "--device", "cpu", "--max-length", "40",
            "--train-limit", "64", "--batch-size", "8", "--epochs", str(self.epochs), "--eval-steps", "40", "--json",
            "--runs", self.folder / "runs", "--save-adapter", self.folder / "adapter", *self.options, *more,
        ]  # fmt: skip

    def start(self, *more, before=(), threads=None):
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads)) if threads else None
        return subprocess.Popen(
            [*map(str, before), *map(str, self.command(*more))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT
        )

    def finish(self, *more, **options):
        """Goes on to the end."""
        ended(self.start(*more, **options), {0})

    def file(self, name):
        found = list((self.folder / "runs").glob(f"*/{name}"))
        expect(len(found) <= 1, f"several {name}: {found}")
        return found[0] if found else None

    def record(self):
        """The record, without what differs from one machine and hour to the next."""
        path = self.file("record.json")
        expect(path is not None, f"no record below {self.folder}")
        record = json.loads(path.read_text())
        # The digest is of all of the record, times and machine too.
        varies = ("train_seconds", "peak_memory", "environment", "sha256")
        return {name: value for name, value in record.items() if name not in varies}

    def outcome(self):
        """All that must not depend on faults."""
        adapter = {path.name: path.read_bytes() for path in sorted((self.folder / "adapter").iterdir())}
        return self.record(), adapter, self.file("weights.safetensors").read_bytes()

    def check_files(self):
        """That what lies there is whole, or not there."""
        for path in (path for place in ("runs", "adapter") for path in (self.folder / place).glob("**/*") if path.is_file()):
            if not path.name.startswith(".peft-glue-"):
                check_whole(path)

    def leftovers(self):
        return [str(path) for path in self.folder.glob("**/.*")] + [str(path) for path in self.folder.glob("**/checkpoint.safetensors")]


def check_whole(path):
    """That a file is whole, by its format. It may be gone by now."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    if path.suffix == ".json":
        try:
            json.loads(content)
        except ValueError as error:
            raise Fault(f"{path} is torn: {error}") from error
    elif path.suffix == ".safetensors":
        length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else len(content)
        expect(8 + length <= len(content), f"{path} is torn in its header")
        tensors = json.loads(content[8 : 8 + length])
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        expect(8 + length + max(ends, default=0) == len(content), f"{path} is torn")


def ended(process, statuses):
    """Waits for a process, whose exit status must be one of these; returns it, and what was said."""
    try:
        _, said = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        process.kill()
        process.communicate()
        raise Fault(f"it did not end within {PATIENCE} s") from late
    said = said.decode(errors="replace")
    expect("panicked" not in said, said)
    expect(process.returncode in statuses, f"exit status {process.returncode}, expected one of {sorted(statuses)}: {said}")
    return process.returncode, said


class Torture:
    """What all faults share: the program, the tiny model, and the runs that were left alone."""

    def __init__(self, program, folder, seed):
        self.program, self.folder, self.random = program, Path(folder), random.Random(seed)
        self.model = self.make_model()
        self.alone, self.numbers = {}, itertools.count()

    def make_model(self):
        """The tests' tiny BERT, and a tokenizer of the synthetic task's words."""
        folder = self.folder / "model"
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(MODEL / name, folder)
        texts = re.findall(r'\["([^"]+)", "([^"]+)"\]', WORDS.read_text())
        words = dict.fromkeys(word for pair in texts for text in pair for word in text.split())
        vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words][:96]
        (folder / "tokenizer.json").write_text(json.dumps({
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None,
            "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2]},
            "model": {"type": "WordLevel", "vocab": {word: place for place, word in enumerate(vocabulary)}, "unk_token": "[UNK]"},
        }))  # fmt: skip
        return folder

    @contextlib.contextmanager
    def run(self, method, epochs=40, within=None):
        """A run in a folder of its own, which goes where the run was as it must be."""
        folder = (within or self.folder) / f"trial-{next(self.numbers)}"
        folder.mkdir()
        yield Run(self, folder, METHODS[method], epochs)
        shutil.rmtree(folder)

    def reference(self, method, epochs=40):
        """What the run comes to that is left alone, and how long that takes."""
        if (method, epochs) not in self.alone:
            with self.run(method, epochs) as run:
                began = time.monotonic()
                run.finish()
                self.alone[method, epochs] = run.outcome(), time.monotonic() - began
        return self.alone[method, epochs]

    def compare(self, run, method, epochs=40):
        """That a run has come to what the one left alone came to, and has left nothing else."""
        expected, _ = self.reference(method, epochs)
        for what, ours, theirs in zip(("record", "adapter", "weights"), run.outcome(), expected, strict=True):
            expect(ours == theirs, f"the {what} differs below {run.folder}", Difference)
        expect(not run.leftovers(), f"left behind: {run.leftovers()}")

    def method(self):
        return self.random.choice(list(METHODS))

    def every(self):
        """Options that have checkpoints made often."""
        return ["--checkpoint-steps", str(self.random.randint(1, 40))]


def kills(torture):
    """SIGKILL at random moments"""
    while True:
        method = torture.method()
        _, seconds = torture.reference(method)
        with torture.run(method) as run:
            for _ in range(torture.random.randint(1, 5)):
                process = run.start(*torture.every())
                time.sleep(torture.random.uniform(0, 1.1 * seconds))
                process.kill()
                process.communicate()
                run.check_files()
            run.finish()
            torture.compare(run, method)
        yield f"{method}"


def with_fault(call, fault):
    """What is typed before a command for a fault at one of the system calls."""
    calls = CALLS[call]
    return ["strace", "--follow-forks", "--quiet=all", "--output=/dev/null", f"--trace={calls}", f"--inject={calls}:{fault}"]


def traced(run, call, fault):
    """Starts a run with a fault at one of the system calls."""
    return run.start("--checkpoint-steps", "4", before=with_fault(call, fault))


def count_calls(torture, epochs):
    """How often a run makes each of the system calls."""
    counts = {}
    with torture.run("LoRA", epochs) as run:
        log = run.folder / "trace"
        calls = ",".join(CALLS.values())
        run.finish("--checkpoint-steps", "4", before=["strace", "--follow-forks", "--output", log, f"--trace={calls}"])
        text = log.read_text()
        for name, calls in CALLS.items():
            counts[name] = len(re.findall(rf"^\d+ +({calls.replace(',', '|')})\(", text, re.MULTILINE))
    return counts


def points(torture, epochs, calls):
    """Each of these system calls of a run, in random order, again and again."""
    counts = count_calls(torture, epochs)
    every = [(call, number) for call in calls for number in range(1, counts[call] + 1)]
    torture.random.shuffle(every)
    return itertools.cycle(every)


def crash_points(torture):
    """SIGKILL at the Nth mkdir, write, fsync, rename, unlink"""
    for call, number in points(torture, 2, CALLS):
        with torture.run("LoRA", 2) as run:
            process = traced(run, call, f"signal=KILL:when={number}")
            process.communicate(timeout=PATIENCE)
            run.check_files()
            run.finish()
            torture.compare(run, "LoRA", 2)
        yield f"{call} {number}"


def failing_writes(torture):
    """ENOSPC at the Nth mkdir, write, fsync, rename"""
    for call, number in points(torture, 2, ["mkdir", "write", "fsync", "rename"]):
        with torture.run("LoRA", 2) as run:
            # A line, a remembered digest or a measured speed that cannot be written ends nothing: 0 then.
            status, said = ended(traced(run, call, f"error=ENOSPC:when={number}"), {0, 1})
            expect(status == 0 or ENOSPC in said, f"{call} {number}: {said}")
            run.check_files()
            run.finish()
            torture.compare(run, "LoRA", 2)
        yield f"{call} {number}"


def full_disks(torture):
    """a disk of 1 MB with 0 to 400 KB left"""
    small = torture.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        while True:
            method = torture.random.choice([method for method in METHODS if method != "full"])
            with torture.run(method, within=small) as run:
                ballast = small / "ballast"
                left = torture.random.randrange(0, 400_000, 4096)
                ballast.write_bytes(bytes(max(0, shutil.disk_usage(small).free - left)))
                status, said = ended(run.start(*torture.every()), {0, 1})
                expect(status == 0 or ENOSPC in said or "are free" in said, said)
                run.check_files()
                ballast.unlink()
                run.finish()
                torture.compare(run, method)
            yield f"{method} with {left} left"
    finally:
        subprocess.run(["umount", small], check=True)


def two_writers(torture):
    """the same run by two processes at once, one of them killed at times, and a reader of all files"""
    while True:
        method = torture.method()
        _, seconds = torture.reference(method)
        with torture.run(method) as run:
            done, torn = threading.Event(), []

            def read(run=run, done=done, torn=torn):
                while not done.is_set():
                    try:
                        run.check_files()
                    except Fault as fault:
                        torn.append(fault)
                    except FileNotFoundError:
                        pass  # A folder that was renamed while it was listed.

            reader = threading.Thread(target=read)
            reader.start()
            try:
                processes = [run.start(*torture.every()) for _ in range(2)]
                if torture.random.random() < 0.3:
                    time.sleep(torture.random.uniform(0, seconds))
                    killed = processes.pop(torture.random.randrange(2))
                    killed.kill()
                    killed.communicate()
                said = [ended(process, {0})[1] for process in processes]
            finally:
                done.set()
                reader.join()
            expect(not torn, f"{torn}")
            expect(len(said) == 1 or sum("its record is waited for" in text for text in said) <= 1, f"{said}")
            if len(said) == 1:
                run.finish()  # What the killed one has left goes by the next that writes there.
            torture.compare(run, method)
        yield method


def signals(torture):
    """INT, TERM and HUP at random moments"""
    while True:
        method, sent = torture.method(), torture.random.choice(list(STATUS))
        _, seconds = torture.reference(method)
        with torture.run(method) as run:
            process = run.start()
            time.sleep(torture.random.uniform(0.1, 1.1 * seconds))
            process.send_signal(sent)
            began = time.monotonic()
            # Before it heeds signals it has nothing to save, and the system ends it.
            status, said = ended(process, {0, STATUS[sent], -sent})
            took = time.monotonic() - began
            expect(status in (0, -sent) or sent.name in said, f"{sent.name}: {said}")
            expect(status == 0 or took < 2, f"{sent.name} took {took:.1f} s")
            run.check_files()
            run.finish()
            torture.compare(run, method)
        yield f"{sent.name} {method}"


def thread_counts(torture):
    """begun with other threads than it ends with"""
    while True:
        method = torture.method()
        _, seconds = torture.reference(method)
        with torture.run(method) as run:
            for threads in torture.random.sample([1, 2, 3, 4, 7], 3):
                process = run.start(*torture.every(), threads=threads)
                time.sleep(torture.random.uniform(0.2, 0.7) * seconds)
                process.send_signal(signal.SIGTERM)
                ended(process, {0, 143, -signal.SIGTERM})
            run.finish(threads=torture.random.choice([1, 2, 4]))
            torture.compare(run, method)
        yield method


def adapters_replaced(torture):
    """SIGKILL at the Nth call that changes files, an adapter saved over another"""
    names = ("adapter_model.safetensors", "adapter_config.json", "run.json")
    with torture.run("LoRA", 2) as old, torture.run("LoRA", 2) as new:
        old.finish()
        new.options = [*new.options, "--lora-alpha", "400"]
        new.finish()

        def content(folder):
            return [path.read_bytes() if path.exists() else None for path in (folder / name for name in names)]

        pairs = [content(run.folder / "adapter") for run in (old, new)]
        target = old.folder / "adapter"
        saved = shutil.copytree(target, old.folder / "saved")
        # The run has its record: what is written is the adapter alone, at the end.
        log = old.folder / "trace"
        command = [*map(str, new.command())]
        command[command.index("--save-adapter") + 1] = str(target)
        calls = ",".join(call for name, call in CALLS.items() if name != "mkdir")
        subprocess.run(["strace", "--follow-forks", "--output", log, f"--trace={calls}", *command], check=True, cwd=ROOT, capture_output=True)
        count = {name: len(re.findall(rf"^\d+ +({call.replace(',', '|')})\(", log.read_text(), re.MULTILINE)) for name, call in CALLS.items()}
        expect(content(target) == pairs[1], "an adapter saved over another is not the new one")
        every = [(call, number) for call in CALLS for number in range(1, count[call] + 1)]
        torture.random.shuffle(every)
        for call, number in itertools.cycle(every):
            shutil.rmtree(target)
            shutil.copytree(saved, target)
            killed = [*with_fault(call, f"signal=KILL:when={number}"), *command]
            subprocess.run(killed, cwd=ROOT, capture_output=True, timeout=PATIENCE)
            found = content(target)
            expect(found in pairs or found[1] is None, f"{call} {number}: tensors beside another's configuration in {target}")
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
            expect(content(target) == pairs[1], f"{call} {number}: the adapter differs")
            expect(sorted(path.name for path in target.iterdir()) == sorted(names), f"{call} {number}: {list(target.iterdir())}")
            yield f"{call} {number}"


# Each with its share of the time, and what it needs.
FAULTS = [
    (kills, 30, None),
    (crash_points, 25, "strace"),
    (failing_writes, 10, "strace"),
    (adapters_replaced, 8, "strace"),
    (full_disks, 7, "root"),
    (two_writers, 8, None),
    (signals, 7, None),
    (thread_counts, 5, None),
]


def missing(need):
    """Why something cannot be tried here; nothing if it can."""
    if need == "root" and os.geteuid() != 0:
        return "only root can make a small disk"
    if need == "root":
        with tempfile.TemporaryDirectory() as folder:
            if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode != 0:
                return "no small disk can be mounted here"
            subprocess.run(["umount", folder], check=True)
    if need == "strace":
        if shutil.which("strace") is None:
            install("strace")
        if shutil.which("strace") is None:
            return "strace is not installed; type: apt-get install strace"
        if subprocess.run(["strace", "--output=/dev/null", "true"], capture_output=True).returncode != 0:
            return "strace may not trace here"
    return None


def install(package):
    """Installs one of Debian's packages, where this user may."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", package]):
        with contextlib.suppress(FileNotFoundError):
            subprocess.run([*as_root, *command], capture_output=True)


def attempt(fault, torture, seconds):
    """Tries a fault for so long, at least once; the number of trials, and what was not as it must be."""
    tried, began, wrong = 0, time.monotonic(), None
    with contextlib.closing(fault(torture)) as trials:
        try:
            while tried == 0 or time.monotonic() - began < seconds:
                next(trials)
                tried += 1
        except Fault as found:
            wrong = found
    return tried, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=None, help="of moments and choices [default: another each time, which is printed]")
    parser.add_argument("--program", default=ROOT / "target/debug/peft-glue", type=Path)
    parser.add_argument("--only", default="", help="only the faults whose description has this word")
    arguments = parser.parse_args()
    if not arguments.program.exists():
        sys.exit(f"[torture] error: {arguments.program} is not there; type: make torture")
    seed = random.SystemRandom().randrange(1000) if arguments.seed is None else arguments.seed
    faults = [fault for fault in FAULTS if arguments.only in fault[0].__doc__]
    shares, failed, rows = sum(share for _, share, _ in faults), False, []
    print(f"[torture] seed {seed}, {arguments.minutes:g} minutes", flush=True)
    scratch = ROOT / "target/tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-", dir=scratch))
    torture = Torture(arguments.program.resolve(), folder, seed)
    for fault, share, need in faults:
        if why := missing(need):
            rows.append(f"| {fault.__doc__} | 0 | – | – |")
            print(f"[torture] not tried, {why}: {fault.__doc__}", flush=True)
            continue
        tried, wrong = attempt(fault, torture, 60 * arguments.minutes * share / shares)
        rows.append(f"| {fault.__doc__} | {tried + bool(wrong)} | {tried + isinstance(wrong, Difference)} | {tried} |")
        print(f"[torture] {tried} times: {fault.__doc__}", flush=True)
        if wrong:
            failed = True
            print(f"[torture] error: {wrong}", file=sys.stderr, flush=True)
    print("\n| fault | tried | survived | bit-equal |\n| --- | ---: | ---: | ---: |", *rows, sep="\n")
    if failed:
        sys.exit(f"[torture] what is left lies in {folder}; try again with --seed {seed}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
