#!/usr/bin/env python3
"""Fine-tune a sequence classifier on one GLUE task with torch + transformers + peft, on CPU, and report.

The measuring script for the peer: one run per call, one JSON object per run (stdout, and appended to --out). The versions that
it was written for are in bench/requirements.txt; `make bench` installs them and calls it.

  bench_peft.py --model DIR --task rte --data GLUE_DIR --method lora --rank 8 --lr 1e-3 --epochs 5

GLUE_DIR holds CoLA/ SST-2/ MRPC/ STS-B/ QQP/ MNLI/ QNLI/ RTE/ WNLI/, each with train.tsv and dev.tsv in the
official layout (parsed with csv.QUOTE_NONE).  Where MRPC has only the labeled msr_paraphrase_test.txt or test.tsv,
name it with --dev-file.

To let another implementation repeat a run step by step:
  --dump-batches F.npz         the exact training batches, in order (see dump_batches)
  --dump-init F.safetensors    every tensor that did not come from the checkpoint: head, LoRA A and B
  --dropout 0 --trace-steps    dropout off, the loss of every step in the JSON
  --init F.safetensors         start from such a file (ours or the other side's) instead of --init-seed
"""
import argparse
import csv
import json
import math
import os
import platform
import random
import resource
import sys
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from transformers.modeling_outputs import SequenceClassifierOutput  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NLI2 = {"entailment": 0, "not_entailment": 1}
NLI3 = {"contradiction": 0, "entailment": 1, "neutral": 2}
# folder, text columns (names, or positions where the file has no header), label column, label map or type,
# the metric that GLUE ranks by, dev file
TASKS = {
    "cola": ("CoLA", [3], 1, int, "mcc", "dev.tsv"),
    "sst2": ("SST-2", ["sentence"], "label", int, "acc", "dev.tsv"),
    "mrpc": ("MRPC", [3, 4], 0, int, "acc", "dev.tsv"),
    "stsb": ("STS-B", [7, 8], 9, float, "corr", "dev.tsv"),
    "qqp": ("QQP", ["question1", "question2"], "is_duplicate", int, "acc", "dev.tsv"),
    "mnli": ("MNLI", ["sentence1", "sentence2"], "gold_label", NLI3, "acc", "dev_matched.tsv"),
    "qnli": ("QNLI", ["question", "sentence"], "label", NLI2, "acc", "dev.tsv"),
    "rte": ("RTE", ["sentence1", "sentence2"], "label", NLI2, "acc", "dev.tsv"),
    "wnli": ("WNLI", ["sentence1", "sentence2"], "label", int, "acc", "dev.tsv"),
}
NUM_LABELS = {"stsb": 1, "mnli": 3}


def read_examples(path, task):
    """[(text_a, text_b or None, label)]; rows that do not parse are counted, not hidden."""
    _, text_cols, label_col, label_of, _, _ = TASKS[task]
    with open(path, encoding="utf-8-sig", newline="") as f:
        rows = [r for r in csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE) if r]
    if isinstance(label_col, str):
        header, rows = rows[0], rows[1:]
        text_cols = [header.index(c) for c in text_cols]
        label_col = header.index(label_col)
    out, bad = [], 0
    for i, r in enumerate(rows):
        try:
            raw = r[label_col].strip()
            label = label_of[raw] if isinstance(label_of, dict) else label_of(raw)
            text = [r[c] for c in text_cols]
        except (IndexError, KeyError, ValueError):
            bad += i > 0  # the first row may be a header
            continue
        out.append((text[0], text[1] if len(text) > 1 else None, label))
    return out, bad


def encode(tok, examples, max_len, siamese):
    """One dict per example. Cross-encoder: the pair in one sequence. Siamese: two sequences, keys a.* and b.*."""
    opts = dict(truncation=True, max_length=max_len, padding=False)
    first, second = [e[0] for e in examples], [e[1] for e in examples]
    if siamese:
        sides = {"a.": tok(first, **opts)}
        if second[0] is not None:
            sides["b."] = tok(second, **opts)
    else:
        sides = {"": tok(first, second if second[0] is not None else None, **opts)}
    keys = [(side + k, enc[k]) for side, enc in sides.items()
            for k in ("input_ids", "attention_mask", "token_type_ids") if k in enc]
    return [dict({k: v[i] for k, v in keys}, label=examples[i][2]) for i in range(len(examples))]


def length_of(item):
    return sum(len(v) for k, v in item.items() if k.endswith("input_ids"))


def collate(items, pad_id, regression):
    """Pad on the right to the longest item of the batch (each side of a siamese pair by itself)."""
    batch = {}
    for key in items[0]:
        if key != "label":
            width, fill = max(len(x[key]) for x in items), pad_id if key.endswith("input_ids") else 0
            batch[key] = torch.tensor([x[key] + [fill] * (width - len(x[key])) for x in items])
    batch["labels"] = torch.tensor([x["label"] for x in items], dtype=torch.float32 if regression else torch.long)
    return batch


def epoch_order(lengths, batch_size, rng, group):
    """Batches of indices for one epoch. group: as HF's group_by_length (megabatches of 50, sorted, longest first)."""
    n = len(lengths)
    order = rng.permutation(n).tolist()
    if group:
        mega = min(n // (batch_size * 4), 50) or 1
        size = mega * batch_size
        megas = [sorted(order[i:i + size], key=lambda j: -lengths[j]) for i in range(0, n, size)]
        longest = max(range(len(megas)), key=lambda m: lengths[megas[m][0]])
        megas[0][0], megas[longest][0] = megas[longest][0], megas[0][0]
        order = [j for m in megas for j in m]
    batches = [order[i:i + batch_size] for i in range(0, n, batch_size)]
    if group:  # same contents, steps in random order, so that the loss is not tied to the length within a megabatch
        head, rest = batches[:1], batches[1:]
        rng.shuffle(rest)
        batches = head + rest
    return batches


def dump_batches(path, batches):
    """steps, then per step s: s{s}.input_ids, .attention_mask, .token_type_ids (if any), int64; .labels.

    A siamese run has s{s}.a.input_ids ... and s{s}.b.input_ids ... instead.
    """
    arrays = {"steps": np.array(len(batches))}
    for s, b in enumerate(batches):
        for k, v in b.items():
            arrays[f"s{s}.{k}"] = v.numpy()
    np.savez_compressed(path, **arrays)


def is_new(name):
    """True for a parameter that no encoder checkpoint holds: the classifier and LoRA's A and B."""
    return "classifier" in name or "lora_" in name


def plain_name(name):
    for a, b in (("base_model.model.", ""), (".modules_to_save.default", ""), (".default", ""), (".base_layer", "")):
        name = name.replace(a, b)
    return name


class MeanPooler(torch.nn.Module):
    """In place of BERT's pooler (dense + tanh on the first token): the mean of the last hidden state over the mask."""
    mask = None

    def forward(self, hidden):
        m = self.mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * m).sum(1) / m.sum(1)


def set_mask(model, mask):
    for module in model.modules():
        if isinstance(module, MeanPooler):
            module.mask = mask


class Siamese(torch.nn.Module):
    """Each sentence alone through the encoder, mean pooling, then a linear layer over [u, v, |u-v|, u*v, cos(u, v)].

    With one sentence per example the layer sees u alone.
    """

    def __init__(self, encoder, config, num_labels, pairs):
        super().__init__()
        self.encoder, self.regression = encoder, num_labels == 1
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        width = config.hidden_size
        self.classifier = torch.nn.Linear(4 * width + 1 if pairs else width, num_labels)

    def side(self, batch, prefix):
        x = {k[2:]: v for k, v in batch.items() if k.startswith(prefix)}
        mask = x["attention_mask"].unsqueeze(-1).float()
        return (self.encoder(**x).last_hidden_state * mask).sum(1) / mask.sum(1)

    def forward(self, labels=None, **batch):
        x = self.side(batch, "a.")
        if "b.input_ids" in batch:
            u, v = x, self.side(batch, "b.")
            cos = torch.nn.functional.cosine_similarity(u, v).unsqueeze(1)
            x = torch.cat([self.dropout(torch.cat([u, v, (u - v).abs(), u * v], 1)), cos], 1)
        else:
            x = self.dropout(x)
        logits, loss = self.classifier(x), None
        if labels is not None:
            loss = (torch.nn.functional.mse_loss(logits.squeeze(-1), labels) if self.regression
                    else torch.nn.functional.cross_entropy(logits, labels))
        return SequenceClassifierOutput(loss=loss, logits=logits)


def build(args, num_labels, pairs):
    config = AutoConfig.from_pretrained(args.model, num_labels=num_labels)
    if num_labels == 1:
        config.problem_type = "regression"
    if args.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = args.dropout
        config.classifier_dropout = args.dropout
    kw = {"attn_implementation": args.attn} if args.attn else {}
    torch.manual_seed(args.init_seed)
    if args.siamese:
        encoder, info = AutoModel.from_pretrained(args.model, config=config, output_loading_info=True,
                                                  dtype=torch.float32, add_pooling_layer=False, **kw)
        model = Siamese(encoder, config, num_labels, pairs)
    else:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            args.model, config=config, output_loading_info=True, dtype=torch.float32, **kw)
    torch.manual_seed(args.init_seed)  # the head and LoRA do not depend on what loading drew
    with torch.no_grad():
        for name, p in model.named_parameters():
            if is_new(name):
                p.normal_(0.0, 0.02) if p.dim() > 1 else p.zero_()
    if args.pool == "mean":
        model.bert.pooler = MeanPooler()
    pooler = args.pooler or ("train" if args.method in ("head", "bitfit") else "freeze")

    if args.method == "lora":
        from peft import LoraConfig, TaskType, get_peft_model
        targets = args.lora_targets or (["q", "v"] if config.model_type == "mpnet" else ["query", "value"])
        lora = LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION if args.siamese else TaskType.SEQ_CLS, r=args.rank, lora_alpha=args.alpha or 2 * args.rank,
            lora_dropout=args.lora_dropout if args.dropout is None else args.dropout,
            target_modules=targets, bias="none",
            modules_to_save=None if args.siamese else
            ["classifier"] + (["pooler"] if pooler == "train" and args.pool == "cls" else []))
        if args.siamese:
            model.encoder = get_peft_model(model.encoder, lora)
        else:
            model = get_peft_model(model, lora)
    else:
        for name, p in model.named_parameters():
            p.requires_grad = (args.method == "full" or "classifier" in name
                               or (pooler == "train" and "pooler" in name)
                               or (args.method == "bitfit" and name.endswith("bias")))
    if args.init:
        from safetensors.torch import load_file
        state, seen = load_file(args.init), 0
        with torch.no_grad():
            for name, p in model.named_parameters():
                if plain_name(name) in state and is_new(name) and "original_module" not in name:
                    p.copy_(state[plain_name(name)])
                    seen += 1
        if seen != len(state):
            sys.exit(f"--init: {seen} of {len(state)} tensors matched")
    if args.dump_init:
        from safetensors.torch import save_file
        save_file({plain_name(n): p.detach().clone() for n, p in model.named_parameters()
                   if is_new(n) and "original_module" not in n}, args.dump_init)
    missing = sorted(set(info["missing_keys"]))
    return model, config, missing, pooler


def metrics_of(task, logits, labels):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef
    if task == "stsb":
        pred = logits[:, 0]
        if not np.isfinite(pred).all() or pred.std() == 0:
            return {"pearson": 0.0, "spearman": 0.0, "corr": 0.0}
        p, s = float(pearsonr(pred, labels)[0]), float(spearmanr(pred, labels)[0])
        return {"pearson": p, "spearman": s, "corr": (p + s) / 2}
    pred = logits.argmax(1)
    out = {"acc": float((pred == labels).mean())}
    if task in ("mrpc", "qqp"):
        out["f1"] = float(f1_score(labels, pred))
    if task == "cola":
        out["mcc"] = float(matthews_corrcoef(labels, pred))
    return out


@torch.no_grad()
def evaluate(model, items, args, pad_id, task):
    model.eval()
    order = sorted(range(len(items)), key=lambda i: -length_of(items[i]))
    logits = [None] * len(items)
    for i in range(0, len(order), args.eval_batch_size):
        idx = order[i:i + args.eval_batch_size]
        batch = collate([items[j] for j in idx], pad_id, task == "stsb")
        batch.pop("labels")
        set_mask(model, batch.get("attention_mask"))
        for j, row in zip(idx, model(**batch).logits.float().numpy()):
            logits[j] = row
    model.train()
    return metrics_of(task, np.stack(logits), np.array([x["label"] for x in items]))


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a = ap.add_argument
    a("--model", required=True, help="local folder: config.json, model.safetensors, tokenizer.json")
    a("--model-name", help="the name to report (default: the folder's)")
    a("--task", required=True, choices=TASKS)
    a("--data", required=True, help="folder of GLUE tasks")
    a("--train-file"), a("--dev-file", help="in place of the task's own, relative to the task's folder")
    a("--method", required=True, choices=["full", "head", "bitfit", "lora"])
    a("--pooler", choices=["train", "freeze"], help="default: train for head and bitfit, freeze for lora")
    a("--pool", choices=["cls", "mean"], default="cls", help="mean: BERT only, no pooler layer")
    a("--rank", type=int, default=8), a("--alpha", type=float, help="default: 2 x rank")
    a("--lora-dropout", type=float, default=0.0), a("--lora-targets", nargs="*")
    a("--siamese", action="store_true", help="encode the sentences apart; our own head (see class Siamese), not HF's")
    a("--lr", type=float, required=True), a("--head-lr", type=float, help="the classifier's; default: --lr")
    a("--warmup", type=float, default=0.06, help="part of all steps"), a("--clip", type=float, default=1.0)
    a("--weight-decay", type=float, default=0.01)
    a("--epochs", type=int, default=3), a("--max-steps", type=int), a("--batch-size", type=int, default=32)
    a("--eval-batch-size", type=int, default=64), a("--max-len", type=int, default=128)
    a("--length-group", action="store_true"), a("--dropout", type=float, help="every dropout; default: the config's")
    a("--seed", type=int, default=1, help="order of the examples, dropout")
    a("--init-seed", type=int, default=1, help="head and LoRA"), a("--init", help="safetensors from --dump-init")
    a("--train-limit", type=int, help="a seeded subset (seed 0) of the training set")
    a("--threads", type=int, default=0), a("--attn", help="eager or sdpa; default: transformers' choice")
    a("--dump-batches"), a("--dump-init"), a("--trace-steps", action="store_true"), a("--no-eval", action="store_true")
    a("--time-limit", type=float, help="stop after the epoch in which this many training seconds passed")
    a("--note", default=""), a("--out", help="append the JSON here")
    return ap.parse_args()


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    task = args.task
    folder, _, _, _, main_metric, dev_name = TASKS[task]
    random.seed(args.seed), np.random.seed(args.seed)

    where = os.path.join(args.data, folder)
    train, bad = read_examples(os.path.join(where, args.train_file or "train.tsv"), task)
    dev, bad_dev = read_examples(os.path.join(where, args.dev_file or dev_name), task)
    if args.train_limit and args.train_limit < len(train):
        keep = np.random.default_rng(0).permutation(len(train))[:args.train_limit]
        train = [train[i] for i in sorted(keep)]
    t0 = time.perf_counter()
    tok = AutoTokenizer.from_pretrained(args.model)
    train, dev = (encode(tok, x, args.max_len, args.siamese) for x in (train, dev))
    tokenize_s = time.perf_counter() - t0
    pad_id, regression = tok.pad_token_id, task == "stsb"

    model, config, missing, pooler = build(args, NUM_LABELS.get(task, 2), "b.input_ids" in train[0])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    new = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and is_new(n))
    params = [p for p in model.parameters() if p.requires_grad]
    groups = {}  # weight decay on matrices only; the head may have its own learning rate
    for n, p in model.named_parameters():
        if p.requires_grad:
            lr = (args.head_lr or args.lr) if "classifier" in n else args.lr
            groups.setdefault((lr, args.weight_decay if p.dim() > 1 else 0.0), []).append(p)
    opt = torch.optim.AdamW([{"params": ps, "lr": lr, "weight_decay": wd} for (lr, wd), ps in groups.items()],
                            lr=args.lr, betas=(0.9, 0.999), eps=1e-8)
    per_epoch = math.ceil(len(train) / args.batch_size)
    steps = min(args.epochs * per_epoch, args.max_steps or 10**9)
    warm = max(1, int(args.warmup * steps)) if args.warmup > 0 else 0
    sched = torch.optim.lr_scheduler.LambdaLR(  # step s (from 0) uses lr * f(s), as transformers' linear schedule
        opt, lambda s: s / warm if s < warm else max(0.0, (steps - s) / max(1, steps - warm)))

    rng = np.random.default_rng(args.seed)
    lengths = [length_of(x) for x in train]
    torch.manual_seed(args.seed)
    model.train()
    epochs, step_losses, dumped = [], [], []
    done = real = padded = seen = 0
    train_s = 0.0
    for epoch in range(args.epochs):
        if done >= steps:
            break
        loss_sum, count, began = 0.0, 0, time.perf_counter()
        for idx in epoch_order(lengths, args.batch_size, rng, args.length_group):
            batch = collate([train[j] for j in idx], pad_id, regression)
            if args.dump_batches:
                dumped.append(batch)
            set_mask(model, batch.get("attention_mask"))
            loss = model(**batch).loss
            loss.backward()
            if args.clip:
                torch.nn.utils.clip_grad_norm_(params, args.clip)
            opt.step(), sched.step(), opt.zero_grad(set_to_none=True)
            value = loss.item()
            loss_sum, count = loss_sum + value * len(idx), count + len(idx)
            if args.trace_steps:
                step_losses.append(value)
            real += sum(int(v.sum()) for k, v in batch.items() if k.endswith("attention_mask"))
            padded += sum(v.numel() for k, v in batch.items() if k.endswith("input_ids"))
            done += 1
            if done >= steps:
                break
        took = time.perf_counter() - began
        train_s, seen = train_s + took, seen + count
        row = {"epoch": epoch + 1, "train_loss": round(loss_sum / count, 5), "train_s": round(took, 2)}
        if not args.no_eval:
            began = time.perf_counter()
            row.update({k: round(v, 4) for k, v in evaluate(model, dev, args, pad_id, task).items()})
            row["eval_s"] = round(time.perf_counter() - began, 2)
        epochs.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if args.time_limit and train_s > args.time_limit:
            break
    if args.dump_batches:
        dump_batches(args.dump_batches, dumped)

    report = {
        "task": task, "model": args.model_name or os.path.basename(os.path.normpath(args.model)),
        "method": args.method, "rank": args.rank if args.method == "lora" else None,
        "alpha": (args.alpha or 2 * args.rank) if args.method == "lora" else None, "siamese": args.siamese, "pool": "mean" if args.siamese else args.pool,
        "pooler": None if args.siamese or args.pool == "mean" else "train" if args.method == "full" else pooler,
        "lora_targets": (args.lora_targets or "query,value") if args.method == "lora" else None,
        "lr": args.lr, "head_lr": args.head_lr or args.lr, "epochs_planned": args.epochs, "batch_size": args.batch_size, "max_len": args.max_len,
        "length_group": args.length_group, "warmup": args.warmup, "weight_decay": args.weight_decay, "clip": args.clip,
        "dropout": args.dropout if args.dropout is not None else config.hidden_dropout_prob,
        "seed": args.seed, "init_seed": args.init_seed, "train_examples": len(train), "dev_examples": len(dev),
        "dev_file": args.dev_file or dev_name, "bad_rows": bad + bad_dev, "not_in_checkpoint": missing,
        "trainable": trainable, "trainable_new": new, "total": total, "trainable_pct": round(100 * trainable / total, 3),
        "steps": done, "metric": main_metric, "epochs": epochs,
        "train_s": round(train_s, 2), "sec_per_epoch": round(train_s * per_epoch / max(1, done), 2),
        "tokens": real, "tokens_per_s": round(real / train_s, 1), "padded_tokens_per_s": round(padded / train_s, 1),
        "examples_per_s": round(seen / train_s, 2), "tokenize_s": round(tokenize_s, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(), "attn": getattr(config, "_attn_implementation", None), "note": args.note,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
    }
    if epochs and main_metric in epochs[-1]:
        best = max(epochs, key=lambda e: e[main_metric])
        report.update(best=best[main_metric], best_epoch=best["epoch"], last=epochs[-1][main_metric], best_row=best)
    if args.trace_steps:
        report["step_losses"] = [round(x, 6) for x in step_losses]
    line = json.dumps(report)
    if args.out:
        with open(args.out, "a") as f:
            f.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
