"""Makes what the tests of bottleneck adapters compare against: what AdapterHub's `adapters` computes with them on the stored
checkpoints, and, for the two architectures that it does not know, what transformers computes with the papers' formulas hooked in.

Writes, beside this script:
  bottleneck.json         versions, each case's options as this crate says them, parameter counts and names, logits
  bottleneck.safetensors  each case's adapter as it was set, and its gradients, under the names that this crate uses

Everything is computed in f64 from f32 values, without dropout; what transformers rounds to f32 in between is patched to f64, where
a comment says so. That a checkpoint gives its own oracle's logits is checked before an adapter is put in. Run it in this folder,
in an environment of its own, since `adapters` wants a transformers of its own:
  pip install --require-hashes --requirement ../../../../interop/oracles-adapterhub.txt && python make_bottleneck.py
"""

import json
import math
import re
from pathlib import Path

import adapters
import numpy
import safetensors
import torch
import transformers
from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from adapters.models.deberta_v2 import modeling_deberta_v2 as adapted_deberta
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers.activations import ACT2FN
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta
from transformers.models.modernbert import modeling_modernbert as modernbert

HERE = Path(__file__).resolve().parent
CONFIGS = {"houlsby": DoubleSeqBnConfig, "pfeiffer": SeqBnConfig, "parallel": ParBnConfig}

torch.manual_seed(20240401)
torch.set_num_threads(1)

# transformers takes this root in f32.
for module in (deberta, adapted_deberta):
    module.scaled_size_sqrt = lambda layer, factor: torch.tensor(math.sqrt(layer.size(-1) * factor), dtype=torch.float64)


def rotary_angles(self, x, position_ids):
    """Cosine and sine of position * theta ** (-2 i / head_dim), which transformers takes in f32."""
    theta, width = self.config.rope_theta, self.config.hidden_size // self.config.num_attention_heads
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = position_ids[..., None].double() * frequencies
    return torch.cat((angles, angles), dim=-1).cos(), torch.cat((angles, angles), dim=-1).sin()


def rotate(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    """transformers' apply_rotary_pos_emb, without casts to f32."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return tuple(x * cos + modernbert.rotate_half(x) * sin for x in (q, k))


modernbert.ModernBertRotaryEmbedding.forward = rotary_angles
modernbert.apply_rotary_pos_emb = rotate


class Adapter(nn.Module):
    """scaling * (f(x D' + d) U' + u), for the architectures that AdapterHub does not know."""

    def __init__(self, config, hidden):
        super().__init__()
        size = hidden // config.reduction_factor
        self.adapter_down, self.adapter_up = nn.Linear(hidden, size), nn.Linear(size, hidden)
        self.activation, self.scaling = ACT2FN[config.non_linearity], config.scaling

    def forward(self, x):
        return self.scaling * self.adapter_up(self.activation(self.adapter_down(x)))


def parts(model):
    """For each layer: attention; the feed-forward network's first module and the one that gives its output; what its adapter is a
    part of; what is given the residual, as its last input; what norms the sum."""
    if model.config.model_type == "mpnet":
        for layer in model.base_model.encoder.layer:
            output = layer.output
            yield layer.attention.attn, layer.intermediate, output.dense, output, output, output.LayerNorm
    else:
        for layer in model.base_model.layers:
            yield layer.attn, layer.mlp, layer.mlp, layer.mlp, layer.mlp_norm, nn.Identity()


def hook_in(model, style, config):
    """Adapters by hooks, as Houlsby et al. 2019, Pfeiffer et al. 2021 and He et al. 2021 draw them."""
    model.base_model.requires_grad_(False)
    for attention, first, output, parent, summing, norm in parts(model):
        if style == "houlsby":
            attention.adapter = Adapter(config, model.config.hidden_size)
            attention.register_forward_hook(lambda module, _, out: (out[0] + module.adapter(out[0]), *out[1:]))
        parent.adapter = Adapter(config, model.config.hidden_size)
        seen = {}
        summing.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(residual=inputs[-1]))
        first.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(input=inputs[0]))

        def add(_, __, out, adapter=parent.adapter, seen=seen, norm=norm):
            x = {"houlsby": out, "pfeiffer": norm(seen["residual"] + out), "parallel": seen["input"]}
            return out + adapter(x[style])

        output.register_forward_hook(add)


def our_name(name):
    """A parameter's name as this crate says it."""
    name = name.replace("attention_adapters.", "attention.").replace("output_adapters.", "ffn.")
    name = name.replace("adapter_down.0.", "adapter_down.")
    return re.sub(r"\.adapters\.a\.|\.adapter\.(?=adapter_)|(?<=\.shared_parameters)\.a\.", ".", name)


def load(folder):
    # ModernBERT's eager attention takes its softmax in f32.
    attention = "sdpa" if folder.name == "modernbert" else "eager"
    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention).double().eval()


def padded(sequences, config):
    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    padding = config.pad_token_id or 0
    fill = lambda values, padding: values + [padding] * (longest - len(values))
    batch = {
        "input_ids": torch.tensor([fill(s["input_ids"], padding) for s in sequences]),
        "attention_mask": torch.tensor([fill([1] * len(s["input_ids"]), 0) for s in sequences]),
    }
    if getattr(config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = torch.tensor([fill(s["token_type_ids"], 0) for s in sequences])
    return batch


def case(name, folder, oracle, style, options, tensors, configs=CONFIGS):
    """One adapter on one checkpoint."""
    model = load(folder)
    batch = padded(oracle["sequences"], model.config)
    base = torch.tensor(oracle["logits"]["cls"], dtype=torch.float64)
    assert torch.allclose(model(**batch).logits, base, rtol=1e-10, atol=1e-10), f"{name}: not the stored checkpoint's logits"

    options = dict(options)
    train_layer_norms = options.pop("train_layer_norms", False)
    config = configs[style](**options)
    if folder.name in ("mpnet", "modernbert"):
        hook_in(model, style, config)
    else:
        adapters.init(model)
        model.add_adapter("a", config=config)
        model.train_adapter("a")
    model = model.double().eval()
    if train_layer_norms:
        for module in model.base_model.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
    trained = {our_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter_name, parameter in trained.items():
        if ".adapter_" in parameter_name or ".shared_parameters." in parameter_name:
            with torch.no_grad():
                parameter.copy_((0.3 * torch.randn(parameter.shape)).float())
            tensors[f"{name}.value.{parameter_name}"] = parameter.detach().float().clone()

    logits = model(**batch).logits
    assert (logits - base).abs().max() > 1e-3, f"{name}: the adapter does nothing"
    torch.nn.functional.cross_entropy(logits, torch.tensor(oracle["labels"])).backward()
    for parameter_name, parameter in trained.items():
        tensors[f"{name}.gradient.{parameter_name}"] = parameter.grad.float().clone()
    ours = {"adapter_style": style, **options}
    if train_layer_norms:
        ours["train_layer_norms"] = True
    return {
        "checkpoint": folder.relative_to(HERE).as_posix(),
        "options": ours,
        "trainable": sum(parameter.numel() for parameter in trained.values()),
        "names": sorted(trained),
        "logits": logits.tolist(),
    }


def bert_base(config):
    """How many numbers an adapter of that configuration has on BERT-base."""
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
        adapters.init(model)
        model.add_adapter("a", config=config)
    parts = (".adapters.", ".shared_parameters.")
    return sum(parameter.numel() for name, parameter in model.named_parameters() if any(part in name for part in parts))


def versions():
    return {module.__name__: module.__version__ for module in (torch, transformers, adapters, safetensors, numpy)}


def main():
    cases, tensors = {}, {}
    tiny, tiny_oracle = HERE / "tiny-bert", json.loads((HERE / "oracle.json").read_text())
    for name, style, options in [
        ("houlsby", "houlsby", {}),
        ("pfeiffer", "pfeiffer", {}),
        ("parallel", "parallel", {}),
        ("houlsby_options", "houlsby", {"reduction_factor": 4, "non_linearity": "gelu", "scaling": 0.5}),
        ("houlsby_norms", "houlsby", {"reduction_factor": 8, "train_layer_norms": True}),
        ("pfeiffer_norms", "pfeiffer", {"reduction_factor": 8, "non_linearity": "tanh", "train_layer_norms": True}),
        ("parallel_options", "parallel", {"reduction_factor": 8, "non_linearity": "gelu_new", "scaling": 1.5}),
        # Less than one would be left.
        ("pfeiffer_narrow", "pfeiffer", {"reduction_factor": 64, "non_linearity": "swish"}),
    ]:
        cases[name] = case(name, tiny, tiny_oracle, style, options, tensors)
    for folder in sorted(path.parent for path in (HERE / "encoders").glob("*/oracle.json")):
        oracle = json.loads((folder / "oracle.json").read_text())
        for style in CONFIGS:
            name = f"{folder.name}_{style}"
            cases[name] = case(name, folder, oracle, style, {"reduction_factor": 4}, tensors)
    oracle = {
        "made_with": versions(),
        "bert_base": {style: bert_base(config()) for style, config in CONFIGS.items()},
        "cases": cases,
    }
    (HERE / "bottleneck.json").write_text(json.dumps(oracle) + "\n")
    save_file(tensors, HERE / "bottleneck.safetensors")


if __name__ == "__main__":
    main()
