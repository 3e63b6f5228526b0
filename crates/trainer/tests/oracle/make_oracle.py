"""Makes what the test of `replay` compares against: steps that torch's AdamW takes on transformers' BERT, PEFT's LoRA and AdaLoRA.

Writes, beside this script, for the random checkpoint of ../../../peft/tests/oracle/tiny-bert:
  batches.npz                 the batches, as `s{step}.input_ids` and so on
  {method}.safetensors        the classifier and LoRA matrices that a method starts from
  oracle.json                 versions, the loss of each step by method, and which of AdaLoRA's singular values are left at the end

In f32 and without dropout; learning rate, decay, warm-up and clipping as below. Run it in this folder:
  pip install --require-hashes --requirement ../../../../interop/oracles.txt && python make_oracle.py
"""

import json
from pathlib import Path

import numpy
import peft
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import BertForSequenceClassification, get_linear_schedule_with_warmup

HERE = Path(__file__).parent
CHECKPOINT = HERE / "../../../peft/tests/oracle/tiny-bert"
STEPS, SEQUENCES, LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS, LARGEST_NORM = 20, 6, 2e-3, 0.01, 2, 1.0
LORAPLUS_RATIO = 4.0
ADALORA = {"init_r": 4, "target_r": 2, "tinit": 3, "tfinal": 5, "deltaT": 2, "lora_alpha": 8, "orth_reg_weight": 0.1}

torch.set_num_threads(1)


def make_batches():
    """Random ids, each sequence of its own length, padded on the right; a sequence's label is whether its first id is odd."""
    torch.manual_seed(1)
    batches = []
    for _ in range(STEPS):
        lengths = torch.randint(1, 40, (SEQUENCES,)).tolist()
        positions = torch.arange(max(lengths))
        mask = torch.stack([(positions < length).long() for length in lengths])
        ids = torch.randint(1, 100, mask.shape) * mask
        types = torch.stack([(positions >= length // 2).long() for length in lengths]) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": ids[:, 0] % 2})
    return batches


def is_new(name):
    return ("classifier" in name or "lora_" in name) and "original_module" not in name


def plain(name):
    """A parameter's name without what PEFT adds to it."""
    for part in ("base_model.model.", ".modules_to_save.default", ".default"):
        name = name.replace(part, "")
    return name


def build(method):
    model = BertForSequenceClassification.from_pretrained(
        CHECKPOINT, num_labels=2, ignore_mismatched_sizes=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    if method == "adalora":
        config = AdaLoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"], total_step=STEPS, **ADALORA)
        model = get_peft_model(model, config)
    elif method == "lora":
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"],
        )
        model = get_peft_model(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = method == "full" or name.endswith("bias") or "classifier" in name
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_new(name):
                parameter.normal_(0.0, 0.1)
    save_file({plain(n): p.detach().clone() for n, p in model.named_parameters() if is_new(n)}, HERE / f"{method}.safetensors")
    return model.train()


def adamw(model):
    """One learning rate, and decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE)


def loraplus(model):
    """PEFT's groups of LoRA+."""
    return create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=LEARNING_RATE, loraplus_lr_ratio=LORAPLUS_RATIO, loraplus_weight_decay=WEIGHT_DECAY
    )


def train(method, batches, make_optimizer=adamw):
    """The loss of each step."""
    model = build(method)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(model)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, STEPS)
    losses = []
    for step, batch in enumerate(batches):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, LARGEST_NORM)
        optimizer.step()
        schedule.step()
        if method == "adalora":
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses if method != "adalora" else (losses, model.peft_config["default"].rank_pattern)


batches = make_batches()
arrays = {f"s{step}.{key}": values.numpy() for step, batch in enumerate(batches) for key, values in batch.items()}
numpy.savez_compressed(HERE / "batches.npz", steps=numpy.array(STEPS), **arrays)
adalora_losses, rank_pattern = train("adalora", batches)
oracle = {
    "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft)},
    "losses": {method: train(method, batches) for method in ("full", "bitfit", "lora")}
    | {"loraplus": train("lora", batches, loraplus), "adalora": adalora_losses},
    "rank_pattern": {plain(name): left for name, left in rank_pattern.items()},
}
(HERE / "oracle.json").write_text(json.dumps(oracle, indent=1) + "\n")
