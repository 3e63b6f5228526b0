"""What gpu_check.py asks of Python's torch, transformers and peft; the last line printed is the answer, as JSON.

  gpu_peer.py serve                                     answers requests until there are no more: a line each, words in a JSON array, as
                                                        below; an answer is {"answer": ...} or {"failed": why}
  gpu_peer.py libraries                                 the folders of CUDA's libraries that come with torch
  gpu_peer.py versions
  gpu_peer.py products                                  the rate of the card's bf16 products, FLOP/s
  gpu_peer.py prepare NAME FOLDER                       a model with random weights, batches of random tokens, LoRA's start
  gpu_peer.py train NAME FOLDER PRECISION [--compiled] [--no-dropout]
                                                        training steps: losses, examples per second, peak memory in MiB; PRECISION tf32:
                                                        f32 with torch's allow_tf32

Nothing is downloaded. Both sides start from the same values, on the same batches.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from gpu_check import RANK, STEPS, WARM_UP, WORKLOADS

VOCABULARY = 30522


def libraries(_):
    site = Path(torch.__file__).parent.parent
    return [str(folder) for folder in [*sorted(site.glob("nvidia/*/lib")), site / "torch" / "lib"]]


def versions(_):
    import peft
    import transformers

    found = {"torch": torch.__version__, "CUDA": torch.version.cuda, "transformers": transformers.__version__, "peft": peft.__version__}
    if not torch.cuda.is_available():
        raise SystemExit(f"torch sees no GPU: {found}")
    return found


def products(_):
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(22):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * 8192**3 / statistics.median(times[2:])


def batches(workload):
    """For each step its token ids, mask and labels, padded to the longest."""
    import numpy as np

    random = np.random.default_rng(1)
    for _ in range(STEPS):
        # MRPC's sentence pairs have 53 tokens in the mean, 16 by standard deviation, with MiniLM's tokenizer.
        mrpc = np.clip(random.normal(53, 16, workload.sequences).round(), 16, 110).astype(int)
        lengths = mrpc if workload.length is None else np.full(workload.sequences, workload.length)
        ids, mask = np.zeros((2, workload.sequences, lengths.max()), np.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = random.integers(1000, VOCABULARY, length)
            mask[row, :length] = 1
        yield ids, mask, random.integers(0, 2, workload.sequences)


def new_model(folder, dropout=None):
    import peft
    import transformers

    torch.manual_seed(1)
    none = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2, **none)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"])
    return peft.get_peft_model(model, lora)


def new_parameters(model):
    """What the checkpoint lacks, by our names."""
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue
        name = name.replace("base_model.model.", "").replace(".default", "").replace(".modules_to_save", "")
        if "lora_" in name or name.startswith("classifier."):
            yield name, parameter


def prepare(arguments):
    import numpy as np
    import transformers
    from safetensors.torch import save_file

    workload, folder = WORKLOADS[arguments.name], arguments.folder
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=workload.hidden, num_hidden_layers=workload.layers, num_attention_heads=workload.heads,
        intermediate_size=workload.intermediate, num_labels=2,
    )
    transformers.BertModel(config).save_pretrained(folder)
    start = {name: parameter.detach().float().contiguous() for name, parameter in new_parameters(new_model(folder))}
    for name, value in start.items():
        if "lora_B" in name:  # Zeros would hide what stands beside them.
            value.normal_(std=0.02)
    save_file(start, folder / "start.safetensors")
    arrays, lengths = {"steps": np.array(STEPS)}, []
    for step, (ids, mask, labels) in enumerate(batches(workload)):
        arrays |= {f"s{step}.input_ids": ids, f"s{step}.attention_mask": mask, f"s{step}.labels": labels}
        lengths.append(mask.sum(1).tolist())
    np.savez(folder / "batches.npz", **arrays)
    # Last: it says that all is there.
    (folder / "lengths.json").write_text(json.dumps(lengths))
    return lengths[0]


def train(arguments):
    import numpy as np
    from safetensors.torch import load_file

    model = new_model(arguments.folder, 0.0 if arguments.no_dropout else None)
    start = load_file(arguments.folder / "start.safetensors")
    with torch.no_grad():
        for name, parameter in new_parameters(model):
            parameter.copy_(start[name])
    torch.backends.cuda.matmul.allow_tf32 = arguments.precision == "tf32"
    # What was measured before in this process counts for nothing.
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()
    model = model.cuda().train()
    run = torch.compile(model, dynamic=True) if arguments.compiled else model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    file = np.load(arguments.folder / "batches.npz")
    steps = [[file[f"s{step}.{key}"] for key in ("input_ids", "attention_mask", "labels")] for step in range(STEPS)]
    torch.cuda.reset_peak_memory_stats()
    losses, began = [], None
    for step, arrays in enumerate(steps):
        if step == WARM_UP:
            torch.cuda.synchronize()
            began = time.perf_counter()
        ids, mask, labels = (torch.from_numpy(array).cuda() for array in arrays)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = run(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    examples = sum(len(labels) for _, _, labels in steps[WARM_UP:])
    memory = torch.cuda.max_memory_allocated() / 2**20
    return {"losses": torch.stack(losses).tolist(), "speed": examples / seconds, "memory": memory}


def serve(_):
    """Loading torch takes longer than most answers: one process gives them all."""
    # Libraries print what they like: their lines are no answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            arguments = parse(json.loads(line))
            answer = {"answer": arguments.command(arguments)}
        except (Exception, SystemExit) as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def parse(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (serve, libraries, versions, products, prepare, train):
        added = commands.add_parser(command.__name__)
        added.set_defaults(command=command)
        if command in (prepare, train):
            added.add_argument("name", choices=WORKLOADS)
            added.add_argument("folder", type=Path)
    added.add_argument("precision", choices=("f32", "tf32", "bf16"))
    added.add_argument("--compiled", action="store_true")
    added.add_argument("--no-dropout", action="store_true")
    return parser.parse_args(words)


if __name__ == "__main__":
    arguments = parse()
    answer = arguments.command(arguments)
    if arguments.command is not serve:
        print(json.dumps(answer))
