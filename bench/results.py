"""The results: medians and ratios of pairs, one JSON file that they are kept in, and the page that shows it."""

import json
import sys
from math import inf, isnan
from pathlib import Path
from statistics import median

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent / "scripts"))

from files import write_atomically  # noqa: E402 (it lies beside the notebook's scripts)

# What a ratio should be: at least, or for a cost at most.
AT_LEAST = {
    "same_work.lora.f32": 1.7,
    "same_work.bitfit.f32": 1.7,
    "same_work.full.f32": 1.4,
    "same_work.lora.bf16": 2.5,
    "same_work.lora.bf16_autocast": 1.5,
    "own_best.mrpc.f32": 3.0,
    "own_best.mrpc.bf16": 4.5,
    "own_best.rte.f32": 3.0,
    "own_best.rte.bf16": 4.5,
    "own_best.sst2.f32": 3.0,
    "own_best.sst2.bf16": 4.5,
    "limit.lora.minilm": 0.80,
    "limit.lora.bert_base": 0.88,
    "memory.lora": 2.0,
}
AT_MOST = {"cost.rank64_over_rank1": 1.15}
ORDER = [*AT_LEAST, *AT_MOST, "inference.lora.unmerged", "inference.lora.merged"]

METHOD = """\
Runs alternate: ours, the peer, ours, and so on, each a process of its own. A ratio is the median of the ratios of neighboring
runs, its spread the lowest and the highest of them; ours and peer are medians. A ratio above 1 is in our favor, but for `cost`.

- `same_work`: RTE in batches of 16 from the same files (`--dump-batches`, `--dump-init`), without dropout, LoRA of rank 8 on query
  and value; the optimizer, its schedule and clipping are equal. BitFit trains the pooler too, as the peer does. Examples per second
  over all steps, the first ones included, on both sides: ours from the batch in memory to the updated weights, the peer's loop as it
  reports it. A measure in f32 counts only if no step's losses differ by more than 1e-3 of their value. `bf16`: ours in bf16, the
  peer in f32. `bf16_autocast`: the peer's forward under `torch.autocast`.
- `own_best`: an epoch of LoRA, 10,000 training rows at most, batches of 16 of at most 128 tokens, dropout 0.1, each side with its own
  batching: ours is packed, the peer pads to a batch's longest. Evaluation and tokenisation are not counted. `bf16`: ours in bf16, the
  peer in f32.
- `limit`: the operations that a LoRA step needs (forward, gradients of inputs down to the lowest trained matrix, gradients of trained
  weights, no padding; `flops.py`) per second, the median over the steps, and as "peer" the f32 rate of `torch.mm` on the dense
  layers' products with as many rows, the best of 60 rounds over a layer. The batches are RTE's; BERT-base has random weights.
- `memory`: the highest resident memory of the process in `same_work.lora.f32`; the ratio is the peer's over ours.
- `cost`: the time of a token in a LoRA step of 16 x 128 tokens, rank 64 ("ours") over rank 1.
- `inference`: forward passes in f32 over the batches of `same_work`, the adapter beside the weights or merged into them; its B is
  random, and the losses must agree as those of `same_work`.
- Growth: LoRA steps in f32 on batches of random tokens, the median over steps after the first two; batch 8 where the length grows, 128
  tokens where the batch grows, 16 x 128 tokens elsewhere.
"""


def compare(pairs, smaller_wins=False):
    """Of (ours, peer) pairs: both medians, the ratio in our favor as the median over pairs, and the pairs."""
    runs = [{"ours": ours, "peer": peer, "ratio": peer / ours if smaller_wins else ours / peer} for ours, peer in pairs]
    return {key: median(run[key] for run in runs) for key in ("ours", "peer", "ratio")} | {"runs": runs}


def largest_difference(ours, theirs):
    """The largest relative difference between two loss curves; infinite where a loss is not a number."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} losses against {len(theirs)}")
    differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    return inf if any(map(isnan, differences)) else max(differences)


def merge(old, new):
    """The old results with the new ones over them: measures and tables by name, what else there is whole."""
    return {**old, **new, **{part: {**old.get(part, {}), **new.get(part, {})} for part in ("measures", "growth")}}


def met(name, ratio):
    """The target of a measure and whether it is met, as text."""
    if name in AT_LEAST:
        return f"≥ {AT_LEAST[name]}", "yes" if ratio >= AT_LEAST[name] else "no"
    if name in AT_MOST:
        return f"≤ {AT_MOST[name]}", "yes" if ratio <= AT_MOST[name] else "no"
    return "", ""


def selected(name, prefixes):
    """Whether a measure was asked for; without prefixes all are."""
    return not prefixes or any(name.startswith(prefix) for prefix in prefixes)


def number(value):
    """A number with three or four digits that count."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def table(header, rows):
    """A Markdown table; every column but the first is aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def measure_row(name, entry):
    """A measure's line in the table."""
    ratios = [run["ratio"] for run in entry["runs"]]
    spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
    return [f"`{name}`", number(entry["ours"]), number(entry["peer"]), entry["unit"], f"{entry['ratio']:.2f}", spread,
            len(ratios), *met(name, entry["ratio"]), entry["commit"]]  # fmt: skip


def page(results):
    """The results as Markdown."""
    about, measures = results["environment"], results["measures"]
    names = sorted(measures, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    versions = ", ".join(f"{name} {version.removeprefix(name).strip()}" for name, version in about["versions"].items())
    parts = [
        "# Benchmark: this project and the Python peer\n",
        f"{results['date']}, commit {about['commit']}, {about['processor']}, {about['threads']} threads.\n{versions}.\n",
        table(
            ["measure", "ours", "peer", "unit", "ratio", "spread", "pairs", "target", "met", "commit"],
            [measure_row(name, measures[name]) for name in names],
        ),
    ]
    differing = [(name, measures[name]) for name in names if "loss_difference" in measures[name]]
    if differing:
        rows = [[f"`{name}`", entry["steps"], f"{entry['loss_difference']:.1e}"] for name, entry in differing]
        parts += ["## Loss curves\n", table(["measure", "steps", "largest relative difference"], rows)]
    for title, growth in results["growth"].items():
        rows = [[row["name"], *(number(row[key]) for key in ("tokens", "ms", "tokens_per_s", "memory"))] for row in growth]
        header = [title, "tokens a step", "ms a step", "tokens/s", "peak memory, MiB"]
        parts += [f"## Growth with the {title}\n", table(header, rows)]
    parts += ["## How it is measured\n", METHOD]
    parts += [f"`make bench` measures everything again ({results['repeat']} runs of each here); "
              "`make bench ARGS='--only same_work.lora'` only what begins so.\n"]  # fmt: skip
    return "\n".join(parts)


class Store:
    """results.json and results.md in a folder, written whenever there is more."""

    def __init__(self, head, keep, folder=FOLDER):
        self.json, self.page = folder / "results.json", folder / "results.md"
        old = json.loads(self.json.read_text()) if keep and self.json.exists() else {}
        self.results = merge(old, head)

    def add(self, **new):
        """Takes in measures or growth tables, and writes both files. A measure keeps the commit and the day it is from."""
        mark = {"commit": self.results["environment"]["commit"], "date": self.results["date"]}
        measures = {name: {**entry, **mark} for name, entry in new.get("measures", {}).items()}
        self.results = merge(self.results, {**new, "measures": measures})
        write_atomically((json.dumps(self.results, indent=1) + "\n").encode(), self.json)
        write_atomically(page(self.results).encode(), self.page)
