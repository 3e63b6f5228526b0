"""Makes what the tests of this crate compare against: a tiny random BERT, and what transformers and PEFT compute with it.

Writes, beside this script:
  tiny-bert/          the checkpoint (f32), with a classifier
  oracle.json         versions, sequences, labels, logits, parameter counts, PEFT's lines
  oracle.safetensors  gradients, and the LoRA matrices that were set, under the names that this crate uses

Everything is computed in f64 from the f32 weights, without dropout. Run it in this folder:
  pip install --require-hashes --requirement ../../../../interop/oracles.txt && python make_oracle.py
"""

import json
from pathlib import Path

import numpy
import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from peft_side import gradients, line, our_name, padded

HERE = Path(__file__).parent
LABELS = 3
LENGTHS = [7, 1, 40, 12, 2, 23]

torch.manual_seed(20240229)
torch.set_num_threads(1)


def tiny_bert():
    """A random checkpoint. The weights are large, so that attention is far from uniform and every gradient counts."""
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        type_vocab_size=2,
        initializer_range=0.3,
        num_labels=LABELS,
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif "LayerNorm" in name:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(HERE / "tiny-bert")


def load():
    model = BertForSequenceClassification.from_pretrained(HERE / "tiny-bert", attn_implementation="eager")
    return model.double().eval()


def sequences():
    """Random ids; the second half of every second sequence is of type 1."""
    result = []
    for index, length in enumerate(LENGTHS):
        ids = torch.randint(1, 100, (length,)).tolist()
        types = [int(index % 2 == 0 and position >= length // 2) for position in range(length)]
        result.append({"input_ids": ids, "token_type_ids": types})
    return result


def mean_logits(model, batch):
    """The mean over tokens and the classifier, without the pooler."""
    hidden = model.bert(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return model.classifier((hidden * mask).sum(1) / mask.sum(1))


def lora(model, r, alpha, targets):
    config = LoraConfig(task_type="SEQ_CLS", r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    return get_peft_model(model, config)


def counts(model, r, targets):
    model = lora(model, r, 2 * r, targets)
    trainable, total = model.get_nb_trainable_parameters()
    names = sorted({our_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad})
    return {"r": r, "targets": targets, "trainable": trainable, "all": total, "line": line(model), "names": names}


def main():
    tiny_bert()
    batch_sequences = sequences()
    batch = padded(batch_sequences)
    labels = torch.randint(0, LABELS, (len(LENGTHS),))
    tensors = {}

    model = load()
    cls = model(**batch).logits
    gradients(model, cls, labels, "full.cls", tensors)
    mean = mean_logits(model, batch)
    model.bert.pooler.requires_grad_(False)
    gradients(model, mean, labels, "full.mean", tensors)

    cases = {"query_value": ["query", "value"], "all_linear": ["query", "key", "value", "dense"]}
    lora_cases = {}
    for case, targets in cases.items():
        model = lora(load(), 3, 12, targets).double().eval()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                with torch.no_grad():
                    parameter.copy_((0.1 * torch.randn(parameter.shape)).float())
                tensors[f"{case}.value.{our_name(name)}"] = parameter.detach().float().clone()
        logits = model(**batch).logits
        gradients(model, logits, labels, f"{case}.gradient", tensors)
        lora_cases[case] = {"r": 3, "lora_alpha": 12, "targets": targets, "logits": logits.tolist()}

    with torch.device("meta"):
        base = {case: counts(BertForSequenceClassification(BertConfig()), 8, t) for case, t in cases.items()}
    oracle = {
        "made_with": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "safetensors": safetensors.__version__,
            "numpy": numpy.__version__,
        },
        "sequences": batch_sequences,
        "labels": labels.tolist(),
        "num_labels": LABELS,
        "logits": {"cls": cls.tolist(), "mean": mean.tolist()},
        "lora": lora_cases,
        "counts": {
            "tiny": {case: counts(load(), 8, targets) for case, targets in cases.items()},
            "bert_base": base,
        },
    }
    (HERE / "oracle.json").write_text(json.dumps(oracle, indent=1) + "\n")
    save_file(tensors, HERE / "oracle.safetensors")


main()
