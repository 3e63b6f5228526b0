"""What the benchmark needs of torch, beside the peer itself. Each command prints one JSON object.

    torch_side.py autocast PEER ARGUMENTS...             the peer's run, its forward pass under bf16 autocast
    torch_side.py inference PEER BATCHES unmerged|merged ARGUMENTS...
                                                         the peer's model in eval mode on the batches of an npz file
    torch_side.py matmul THREADS ROUNDS [TIMES,ROWS,INNER,COLUMNS]...
                                                         torch.mm's best f32 rate over all of these products
    torch_side.py checkpoint MODEL FOLDER [KEY=VALUE]... a random BERT with MODEL's configuration, but for these values
"""

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path


def load_peer(script, arguments):
    """The peer's module, with its command line set."""
    specification = importlib.util.spec_from_file_location("peer", script)
    peer = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(peer)
    sys.argv = [script, *arguments]
    return peer


def autocast(script, *arguments):
    """The peer's main; its model's forward, and only that, under autocast, as torch's documentation advises."""
    peer = load_peer(script, arguments)
    import torch

    plain_build = peer.build

    def build(*inner):
        model, *rest = plain_build(*inner)
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
        return model, *rest

    peer.build = build
    peer.main()


def inference(script, batches, how, *arguments):
    """Examples per second of forward passes, and their losses."""
    peer = load_peer(script, arguments)
    import numpy
    import torch

    options = peer.parse()
    torch.set_num_threads(options.threads)
    model, *_ = peer.build(options, peer.NUM_LABELS.get(options.task, 2), True)
    if how == "merged":
        model = model.merge_and_unload()
    model.eval()
    losses, examples, seconds = [], 0, 0.0
    with torch.no_grad(), numpy.load(batches) as arrays:
        for step in range(int(arrays["steps"])):
            prefix = f"s{step}."
            batch = {key.removeprefix(prefix): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(prefix)}
            began = time.perf_counter()
            losses.append(model(**batch).loss.item())
            seconds += time.perf_counter() - began
            examples += len(batch["labels"])
    print(json.dumps({"examples_per_s": examples / seconds, "step_losses": losses}))


def matmul(threads, rounds, *products):
    """Operations per second over all the products, forward (x W^T) and for the input's gradient (y W), in the best of the rounds."""
    import torch

    torch.set_num_threads(int(threads))
    operations, calls = 0, []
    for product in products:
        times, rows, inner, columns = map(int, product.split(","))
        weight = torch.randn(columns, inner)
        for left, right in [(torch.randn(rows, inner), weight.t()), (torch.randn(rows, columns), weight)]:
            operations += times * 2 * rows * inner * columns
            calls += times * [(left, right, left @ right)]
    best = float("inf")
    for _ in range(int(rounds)):
        began = time.perf_counter()
        for left, right, out in calls:
            torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - began)
    print(json.dumps({"flops_per_second": operations / best}))


def checkpoint(model, folder, *changes):
    """Writes config.json and model.safetensors, and copies the tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    model, folder = Path(model), Path(folder)
    values = {key: int(value) for key, value in (change.split("=") for change in changes)}
    config = {**json.loads((model / "config.json").read_text()), **values}
    torch.manual_seed(1)
    BertModel(BertConfig(**config)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (model / name).exists():
            shutil.copy(model / name, folder / name)
    print(json.dumps(config))


if __name__ == "__main__":
    commands = {command.__name__: command for command in (autocast, inference, matmul, checkpoint)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
