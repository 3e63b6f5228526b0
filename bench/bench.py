"""Measures this project against the Python peer (torch + transformers + peft), and writes results.json and results.md beside this.

Run by the Python of the peer's environment, on an idle machine: `make bench`.
"""

import argparse
import datetime
import functools
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

from flops import Shape, dense_products, lora_flops
from results import Store, compare, largest_difference, selected
from sides import BenchError, Sides, environment

MEBIBYTE = 2**20
RANK = 8
# (our arguments, the peer's, the learning rate)
METHODS = {
    "lora": (["--method", "lora", "--r", RANK], ["--method", "lora", "--rank", RANK], "1e-3"),
    "bitfit": (["--method", "bitfit", "--train-pooler"], ["--method", "bitfit"], "3e-3"),
    "full": (["--method", "full"], ["--method", "full"], "5e-5"),
}
BERT_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
BERT_BASE_STEPS, GROWTH_STEPS, COST_STEPS, COLD_STEPS, MATMUL_ROUNDS = 8, 6, 12, 2, 60
# In f32 the losses of the same work must agree to this.
LOSS_TOLERANCE = 1e-3


class Measure(NamedTuple):
    """A comparison of two participants of a round by one of their values."""

    name: str
    ours: str
    peer: str
    unit: str = "examples/s"
    value: str = "speed"
    smaller_wins: bool = False
    # Above this difference of the losses there is no measure.
    loss_tolerance: float | None = None
    # Whether it is our own side twice: the JSON's `peer` is null then.
    alone: bool = False


def say(text):
    """Tells what happens."""
    print(f"[bench] {text}", flush=True)


def ours_value(replayed):
    """What one of our replays measured."""
    speed = sum(replayed["examples"]) / sum(replayed["step_seconds"])
    return {"speed": speed, "memory": replayed["peak_memory"] / MEBIBYTE, "losses": replayed["losses"]}


def peer_value(report):
    """What a run of the peer measured."""
    return {"speed": report["examples_per_s"], "memory": report.get("peak_rss_mib"), "losses": report.get("step_losses")}


def warm(replayed):
    """The median time of a step in ms, without the first ones, and the tokens of a step."""
    return 1000 * median(replayed["step_seconds"][COLD_STEPS:] or replayed["step_seconds"]), replayed["tokens"][0]


class Lab:
    """The runs that measures are made of; what they share is made once, in a temporary folder."""

    def __init__(self, sides, work, steps, rows):
        self.sides, self.work, self.steps, self.rows = sides, work, steps, rows

    @functools.cache
    def prepared(self, method):
        """The peer's batches and first values for a method: (npz file, safetensors file)."""
        batches, start = self.work / f"{method}.npz", self.work / f"{method}.safetensors"
        say(f"the peer writes its batches and first values for {method}")
        self.sides.peer(*self.peer_arguments(method), "--dump-batches", batches, "--dump-init", start)
        return batches, start

    def peer_arguments(self, method):
        """The peer's arguments for the same work."""
        _, arguments, rate = METHODS[method]
        return ["--task", "rte", *arguments, "--lr", rate, "--dropout", 0, "--batch-size", 16, "--trace-steps",
                "--epochs", self.steps, "--max-steps", self.steps]  # fmt: skip

    def replay(self, method, *more):
        """Our side of the same work."""
        batches, start = self.prepared(method)
        arguments, _, rate = METHODS[method]
        return ours_value(self.replayed(batches, *arguments, "--lr", rate, "--start", start, *more))

    def replayed(self, batches, *arguments, model=None):
        """What our replay of batches prints."""
        return self.sides.ours("replay", "--task", "rte", "--dropout", 0, "--batches", batches, *arguments, model=model)

    def peer(self, method):
        """The peer's side of the same work."""
        return peer_value(self.sides.peer(*self.peer_arguments(method), "--init", self.prepared(method)[1]))

    def peer_autocast(self, method):
        """The same in bf16."""
        arguments = self.sides.peer_arguments(*self.peer_arguments(method), "--init", self.prepared(method)[1])
        return peer_value(self.sides.torch_side("autocast", self.sides.script, *arguments))

    @functools.cache
    def trained(self):
        """First values for LoRA as if it had been trained: its B, which starts as zeros, is random."""
        import numpy
        from safetensors.numpy import load_file, save_file

        generator, path = numpy.random.default_rng(1), self.work / "trained.safetensors"
        tensors = load_file(self.prepared("lora")[1])
        for name in tensors:
            if "lora_B" in name:
                tensors[name] = generator.normal(0, 0.05, tensors[name].shape).astype(numpy.float32)
        save_file(tensors, path)
        return path

    def inference(self, *flags):
        """Our forward passes over the batches of the same work."""
        batches, lora = self.prepared("lora")[0], METHODS["lora"][0]
        return ours_value(self.replayed(batches, *lora, "--start", self.trained(), "--forward-only", *flags))

    def peer_inference(self, how):
        """The peer's forward passes over the batches of the same work."""
        batches = self.prepared("lora")[0]
        arguments = self.sides.peer_arguments(*self.peer_arguments("lora"), "--init", self.trained())
        return peer_value(self.sides.torch_side("inference", self.sides.script, batches, how, *arguments))

    def our_epoch(self, task, precision):
        """An epoch of ours, with its own batching."""
        with tempfile.TemporaryDirectory(dir=self.work) as runs:
            arguments = ["--task", task, *METHODS["lora"][0], "--lr", "1e-3", "--epochs", 1, "--batch-size", 16]
            record = self.sides.ours("run", *arguments, "--train-limit", self.rows, "--precision", precision, "--runs", runs)
        return {"speed": record["data"]["train_used"] / record["train_seconds"]}

    def peer_epoch(self, task):
        """An epoch of the peer, with its own batching."""
        arguments = ["--task", task, *METHODS["lora"][1], "--lr", "1e-3", "--epochs", 1, "--batch-size", 16]
        return peer_value(self.sides.peer(*arguments, "--train-limit", self.rows))

    @functools.cache
    def checkpoint(self, **sizes):
        """A random checkpoint of the model's kind with other sizes."""
        folder = self.work / "-".join(["model", *map(str, sizes.values())])
        self.sides.torch_side("checkpoint", self.sides.model, folder, *(f"{key}={value}" for key, value in sizes.items()))
        return folder

    @functools.cache
    def first_batches(self, count):
        """The first batches of the same work: their file, and for each step the lengths of its sequences."""
        import numpy

        path = self.work / f"first-{count}.npz"
        with numpy.load(self.prepared("lora")[0]) as arrays:
            count = min(count, int(arrays["steps"]))
            kept = {key: arrays[key] for key in arrays.files if key != "steps" and int(key[1:].split(".")[0]) < count}
        numpy.savez_compressed(path, steps=numpy.array(count), **kept)
        return path, [kept[f"s{step}.attention_mask"].sum(axis=1).tolist() for step in range(count)]

    @functools.cache
    def random_batches(self, sequences, length, steps):
        """A file of batches of random tokens, all of one length."""
        import numpy

        generator = numpy.random.default_rng(1)
        path, shape = self.work / f"random-{sequences}-{length}-{steps}.npz", (sequences, length)
        arrays = {"steps": numpy.array(steps)}
        for step in range(steps):
            arrays[f"s{step}.input_ids"] = generator.integers(1000, 30000, shape)
            arrays[f"s{step}.attention_mask"] = numpy.ones(shape, numpy.int64)
            arrays[f"s{step}.token_type_ids"] = numpy.zeros(shape, numpy.int64)
            arrays[f"s{step}.labels"] = generator.integers(0, 2, sequences)
        numpy.savez_compressed(path, **arrays)
        return path

    def our_flops(self, model, steps):
        """The GFLOP per second that our LoRA steps reach, counting only what is needed."""
        path, lengths = self.first_batches(steps)
        seconds = self.replayed(path, *METHODS["lora"][0], model=model)["step_seconds"]
        shape = Shape.of(model)
        return {"speed": median(lora_flops(shape, step, RANK) / time / 1e9 for step, time in zip(lengths, seconds, strict=True))}

    def matmul_flops(self, model, steps):
        """The GFLOP per second that matrix products of the same shapes reach."""
        tokens = round(median(sum(step) for step in self.first_batches(steps)[1]))
        products = (",".join(map(str, product)) for product in dense_products(Shape.of(model), tokens))
        return {"speed": self.sides.torch_side("matmul", self.sides.threads, MATMUL_ROUNDS, *products)["flops_per_second"] / 1e9}

    def rank_cost(self, rank):
        """The time of a token in a LoRA step."""
        batches = self.random_batches(16, 128, min(COST_STEPS, self.steps))
        milliseconds, tokens = warm(self.replayed(batches, "--method", "lora", "--r", rank))
        return {"speed": milliseconds / tokens}

    def growth_row(self, name, sequences, length, rank=RANK, model=None):
        """One line of a table of growth."""
        batches = self.random_batches(sequences, length, min(GROWTH_STEPS, self.steps))
        replayed = self.replayed(batches, "--method", "lora", "--r", rank, model=model)
        milliseconds, tokens = warm(replayed)
        memory = replayed["peak_memory"] / MEBIBYTE
        return {"name": name, "tokens": tokens, "ms": milliseconds, "tokens_per_s": 1000 * tokens / milliseconds, "memory": memory}

    def shape_row(self, name, sizes):
        """The line of a random encoder of these sizes."""
        return self.growth_row(name, 16, 128, model=self.checkpoint(**sizes))


def duels(lab):
    """Groups of measures with the participants of their rounds, each participant beside the one it is compared with."""
    call = functools.partial
    for method in METHODS:
        measures = [Measure(f"same_work.{method}.f32", "ours", "peer", loss_tolerance=LOSS_TOLERANCE)]
        participants = {"ours": call(lab.replay, method), "peer": call(lab.peer, method)}
        if method == "lora":
            measures += [
                Measure("same_work.lora.bf16", "ours bf16", "peer"),
                Measure("same_work.lora.bf16_autocast", "ours bf16", "peer autocast"),
                Measure("memory.lora", "ours", "peer", unit="MiB", value="memory", smaller_wins=True),
            ]
            participants["ours bf16"] = call(lab.replay, method, "--precision", "bf16")
            participants["peer autocast"] = call(lab.peer_autocast, method)
        yield measures, participants
    for how, flags in [("unmerged", []), ("merged", ["--merge"])]:
        yield (
            [Measure(f"inference.lora.{how}", "ours", "peer", loss_tolerance=LOSS_TOLERANCE)],
            {"ours": call(lab.inference, *flags), "peer": call(lab.peer_inference, how)},
        )
    for task in ("mrpc", "rte", "sst2"):
        ours = {f"ours {precision}": call(lab.our_epoch, task, precision) for precision in ("f32", "bf16")}
        yield (
            [Measure(f"own_best.{task}.{precision}", f"ours {precision}", "peer") for precision in ("f32", "bf16")],
            {"ours f32": ours["ours f32"], "peer": call(lab.peer_epoch, task), "ours bf16": ours["ours bf16"]},
        )
    for name, model, steps in [
        ("minilm", lambda: lab.sides.model, lab.steps),
        ("bert_base", lambda: lab.checkpoint(**BERT_BASE), BERT_BASE_STEPS),
    ]:
        yield (
            [Measure(f"limit.lora.{name}", "ours", "matmul", unit="GFLOP/s")],
            {
                "ours": lambda model=model, steps=steps: lab.our_flops(model(), steps),
                "matmul": lambda model=model, steps=steps: lab.matmul_flops(model(), steps),
            },
        )
    yield (
        [Measure("cost.rank64_over_rank1", "rank 64", "rank 1", unit="ms/token", alone=True)],
        {"rank 64": call(lab.rank_cost, 64), "rank 1": call(lab.rank_cost, 1)},
    )


def entry(measure, rounds):
    """What the JSON holds of a measure, from its rounds of values by participant."""
    pairs = [(values[measure.ours][measure.value], values[measure.peer][measure.value]) for values in rounds]
    result = {"unit": measure.unit, **compare(pairs, measure.smaller_wins)}
    if measure.alone:
        result |= {"peer": None, "base": measure.peer}
    ours, theirs = rounds[0][measure.ours].get("losses"), rounds[0][measure.peer].get("losses")
    if measure.value == "speed" and ours and theirs:
        result |= {"steps": len(ours), "loss_difference": largest_difference(ours, theirs)}
    return result


def check_losses(measure, values):
    """Fails where two sides that should do the same work do not."""
    if measure.loss_tolerance is not None:
        difference = largest_difference(values[measure.ours]["losses"], values[measure.peer]["losses"])
        say(f"{measure.name}: the losses differ by {difference:.1e} at most")
        if difference > measure.loss_tolerance:
            raise BenchError(f"{measure.name}: the losses differ by {difference:.1e}, more than {measure.loss_tolerance:.0e}")


def fight(measures, participants, repeat):
    """The entries of a group's measures by name: every participant once a round, in turn."""
    taking_part = [name for name in participants if any(name in (measure.ours, measure.peer) for measure in measures)]
    rounds = []
    for index in range(repeat):
        values = {}
        for name in taking_part:
            values[name] = participants[name]()
            say(f"{measures[0].name}, run {index + 1} of {repeat}, {name}: {values[name]['speed']:.4g}")
        if not rounds:
            for measure in measures:
                check_losses(measure, values)
        rounds.append(values)
    return {measure.name: entry(measure, rounds) for measure in measures}


def growth_tables(lab):
    """The tables of growth by name; each row is measured when it is asked for."""
    shapes = {
        "6 x 384 (MiniLM)": {},
        "12 x 384": {"num_hidden_layers": 12},
        "6 x 768": {**BERT_BASE, "num_hidden_layers": 6},
        "12 x 768 (BERT-base)": BERT_BASE,
    }
    row = functools.partial
    return {
        "sequence length": [row(lab.growth_row, length, 8, length) for length in (32, 64, 128, 256, 512)],
        "batch size": [row(lab.growth_row, size, size, 128) for size in (1, 2, 4, 8, 16, 32, 64)],
        "layers x width": [row(lab.shape_row, name, sizes) for name, sizes in shapes.items()],
        "rank": [row(lab.growth_row, rank, 16, 128, rank) for rank in (1, 4, 16, 64, 256)],
    }


def tasks(lab, prefixes, repeat):
    """What was asked for: a name, and a function that measures it and returns what to store."""
    for measures, participants in duels(lab):
        measures = [measure for measure in measures if selected(measure.name, prefixes)]
        if measures:
            yield measures[0].name, lambda group=(measures, participants): {"measures": fight(*group, repeat)}
    for title, rows in growth_tables(lab).items():
        if selected(f"growth.{title}", prefixes):
            yield f"growth with the {title}", lambda title=title, rows=rows: {"growth": {title: [row() for row in rows]}}


def measure_all(lab, store, prefixes, repeat):
    """Measures what was asked for and stores each part as it is done; the errors are returned."""
    errors = []
    for name, measure in tasks(lab, prefixes, repeat):
        say(name)
        try:
            store.add(**measure())
        except BenchError as error:
            errors.append(f"{name}: {error}")
            say(f"error: {error}")
    return errors


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="the peer's script, bench_peft.py")
    parser.add_argument("--glue", type=Path, required=True, help="the folder of GLUE's tasks")
    parser.add_argument("--model", type=Path, required=True, help="the folder of all-MiniLM-L6-v2")
    parser.add_argument("--only", default="", help="what to measure by the start of its name, such as same_work.lora,growth")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side [3]")
    parser.add_argument("--steps", type=int, default=50, help="training steps of a run of the same work [50]")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows of own_best, at most [10000]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either side [all cores]")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measures as the command line says; the exit status is returned."""
    options = parse(arguments)
    prefixes = [prefix for prefix in options.only.split(",") if prefix]
    try:
        sides = Sides(options.peer.resolve(), options.glue.resolve(), options.model.resolve(), options.threads)
        about = environment(options.threads)
        head = {"date": datetime.date.today().isoformat(), "environment": about, "repeat": options.repeat}
        store = Store(head, keep=bool(prefixes))
        with tempfile.TemporaryDirectory(prefix="peft-glue-bench-") as work:
            lab = Lab(sides, Path(work), options.steps, options.rows)
            errors = measure_all(lab, store, prefixes, options.repeat)
    except BenchError as error:
        errors = [str(error)]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
