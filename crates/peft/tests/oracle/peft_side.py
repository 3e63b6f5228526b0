"""What the scripts here, and interop.py, ask of PEFT's models."""

import contextlib
import io

import torch


def our_name(name):
    """PEFT's name of a parameter as this crate says it."""
    name = name.removeprefix("base_model.").removeprefix("model.").replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
    return name.replace(".default", "").replace(".base_layer", "").replace(".modules_to_save", "").replace(".ln_tuning_layers", "")


def gradients(model, logits, labels, prefix, tensors):
    """Adds the gradient of the cross-entropy for each trained parameter to the tensors."""
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None and parameter.numel() > 0:
            tensors[f"{prefix}.{our_name(name)}"] = parameter.grad.float().clone()


def line(model):
    """What print_trainable_parameters prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        model.print_trainable_parameters()
    return out.getvalue().strip()


def padded(sequences):
    """Padded with token 0, type 0, to the longest, and masked."""
    lengths = [len(sequence["input_ids"]) for sequence in sequences]
    batch = {
        key: torch.tensor([s[key] + [0] * (max(lengths) - len(s[key])) for s in sequences])
        for key in ("input_ids", "token_type_ids")
    }
    batch["attention_mask"] = torch.tensor([[int(p < length) for p in range(max(lengths))] for length in lengths])
    return batch
