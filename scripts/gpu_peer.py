"""Training steps on the GPU, this project's and Python peft's: same model, batches, precision. gpu_check.sh calls it.

The models have random weights in the shapes of MiniLM, BERT-base and BERT-large, and the batches random tokens in lengths like
MRPC's, so that nothing need be downloaded. Both sides start from the same values; the first losses must agree.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file

# name: hidden, layers, heads, inner, sequences of a batch, lengths ("mrpc" or one for all)
SHAPES = {
    "MiniLM": (384, 6, 12, 1536, 32, "mrpc"),
    "BERT-base": (768, 12, 12, 3072, 32, "mrpc"),
    "BERT-large": (1024, 24, 16, 4096, 64, 128),
}
VOCABULARY, STEPS, WARM_UP, ROUNDS, RANK = 30522, 60, 20, 3, 8


def write_model(folder, hidden, layers, heads, inner):
    """A random checkpoint; its configuration."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        num_labels=2,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return config


def batches(sequences, lengths):
    """For each step its token ids, mask and labels, padded to the longest."""
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        # MRPC's sentence pairs have 53 tokens in the mean, 16 by standard deviation, with MiniLM's tokenizer.
        mrpc = np.clip(random.normal(53, 16, sequences).round(), 16, 110).astype(int)
        count = mrpc if lengths == "mrpc" else np.full(sequences, lengths)
        ids, mask = np.zeros((sequences, count.max()), np.int64), np.zeros((sequences, count.max()), np.int64)
        for row, length in enumerate(count):
            ids[row, :length] = random.integers(1000, VOCABULARY, length)
            mask[row, :length] = 1
        yield ids, mask, random.integers(0, 2, sequences)


def new_model(folder, dropout=None):
    torch.manual_seed(1)
    none = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2, **none)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"])
    return peft.get_peft_model(model, lora)


def write_start(model, path):
    """The values of what the checkpoint lacks, under our names."""
    values = {}
    for name, parameter in model.named_parameters():
        name = name.replace("base_model.model.", "").replace(".default", "").replace(".modules_to_save", "")
        if "lora_" in name or (name.startswith("classifier") and "original_module" not in name):
            values[name] = parameter.detach().float().cpu().contiguous()
    save_file(values, path)


def peer(folder, steps, precision, compiled=False, dropout=None):
    """Losses, examples per second, peak memory in MiB."""
    model = new_model(folder, dropout).cuda().train()
    run = torch.compile(model, dynamic=True) if compiled else model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    torch.cuda.reset_peak_memory_stats()
    losses, began = [], None
    for step, (ids, mask, labels) in enumerate(steps):
        if step == WARM_UP:
            torch.cuda.synchronize()
            began = time.perf_counter()
        inputs = {"input_ids": torch.from_numpy(ids).cuda(), "attention_mask": torch.from_numpy(mask).cuda()}
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = run(**inputs, labels=torch.from_numpy(labels).cuda()).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    examples = sum(len(labels) for _, _, labels in steps[WARM_UP:])
    memory = torch.cuda.max_memory_allocated() / 2**20
    losses = torch.stack(losses).tolist()
    del model, run, optimizer, trained
    torch.cuda.empty_cache()
    return losses, examples / seconds, memory


def ours(binary, folder, files, precision, *more):
    """The same of our side."""
    command = [
        binary, "replay", "--json", "--device", "cuda:0", "--model", folder, "--task", "mrpc", "--method", "lora", "--r", RANK, "--lr",
        "1e-3", "--precision", precision, "--batches", files["batches"], "--start", files["start"],
        *more,
    ]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"[gpu] error: peft-glue replay failed:\n{found.stderr}")
    found = json.loads(found.stdout)
    # The GPU works behind the CPU: what is left of the warm-up's work counts too.
    seconds, examples = sum(found["step_seconds"][WARM_UP:]), sum(found["examples"][WARM_UP:])
    return found["losses"], examples / seconds, found["peak_memory"] / 2**20


def needed_flops(config, steps):
    """What LoRA on query and value needs: the products of the frozen weights forward and for the input's gradient, and attention."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    total = 0
    for _, mask, _ in steps:
        lengths = mask.sum(1).astype(float)
        products = 2 * lengths.sum() * (4 * hidden * hidden + 2 * hidden * inner) * 2
        attention = 4 * (lengths**2).sum() * hidden * 3
        total += layers * (products + attention)
    return total


def matmul_rate():
    """The card's bf16 products, FLOP/s."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * 8192**3 / statistics.median(times[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("binary", "checks", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name, (*sizes, sequences, lengths) in SHAPES.items():
        folder = arguments.work / name
        config = write_model(folder, *sizes)
        steps = list(batches(sequences, lengths))
        files = {"batches": arguments.work / f"{name}.npz", "start": arguments.work / f"{name}.safetensors"}
        write_start(new_model(folder), files["start"])
        arrays = {"steps": np.array(STEPS)}
        for step, (ids, mask, labels) in enumerate(steps):
            arrays |= {f"s{step}.input_ids": ids, f"s{step}.attention_mask": mask, f"s{step}.labels": labels}
        np.savez(files["batches"], **arrays)
        for precision in ("f32", "bf16"):
            measured = {"ours": [], "eager": [], "compiled": []}
            for _ in range(ROUNDS):  # In turns, so that a slow moment meets all.
                measured["ours"].append(ours(arguments.binary, folder, files, precision))
                measured["eager"].append(peer(folder, steps, precision, False))
                measured["compiled"].append(peer(folder, steps, precision, True))
            speed = {side: statistics.median(run[1] for run in runs) for side, runs in measured.items()}
            memory = {side: max(run[2] for run in runs) for side, runs in measured.items()}
            # Before the first update and without dropout, which both draw by other generators.
            exact = ours(arguments.binary, folder, files, precision, "--dropout", "0")[0], peer(folder, steps, precision, dropout=0.0)[0]
            first = abs(exact[0][0] - exact[1][0])
            share = math.nan
            if precision == "bf16":
                tokens = needed_flops(config, steps[WARM_UP:]) / sum(len(labels) for _, _, labels in steps[WARM_UP:])
                share = tokens * speed["ours"] / matmul_rate()
            rows.append(
                f"| {name} | {precision} | {speed['ours']:.0f} | {speed['ours'] / speed['eager']:.2f} | "
                f"{speed['ours'] / speed['compiled']:.2f} | {share:.2f} | {memory['ours']:.0f} | "
                f"{memory['ours'] / memory['eager']:.2f} | {first:.1e} |"
            )
            print(rows[-1], flush=True)
    card = torch.cuda.get_device_name()
    checks = "".join(f"- {line.replace(chr(9), ': ')}\n" for line in arguments.checks.read_text().splitlines())
    table = "\n".join([
        f"# {card}, torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}",
        "", checks,
        "LoRA r = 8 on query and value, dropout as the configuration says; medians of three rounds in turns. Peak memory is what tensors",
        "take. The last column is by how much the first losses differ where nothing is dropped.",
        "", "| model | precision | examples/s | over eager | over torch.compile | of the card's bf16 products | MiB | of eager's | first losses |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |", *rows, "",
    ])
    if arguments.results:
        arguments.results.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
