"""Makes what the tests of the encoders compare against: a tiny random checkpoint of each architecture, and what transformers and
PEFT compute with it.

Writes, beside this script, for each case:
  CASE/config.json, CASE/model.safetensors   the checkpoint (f32), with a head
  CASE/oracle.json                           versions, sequences, labels, logits, the LoRA case
  CASE/oracle.safetensors                    gradients, and the LoRA matrices that were set, under the names this crate uses
and buckets.json: the rows that relative distances look up at the sizes of published models.

Everything is computed in f64 from the f32 weights, without dropout; what transformers rounds to f32 in between is patched to
f64, where a comment says so. Run it in this folder:
  pip install --require-hashes --requirement ../../../../../interop/oracles.txt && python make_encoders.py
"""

import json
import math
import sys
from pathlib import Path

import numpy
import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta
from transformers.models.modernbert import modeling_modernbert as modernbert
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from peft_side import gradients, line, our_name  # noqa: E402

LABELS = 3
PADDING = 1
SIZES = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
COMMON = dict(num_labels=LABELS, initializer_range=0.3, layer_norm_eps=1e-5)
LENGTHS = [7, 1, 40, 12, 2, 23]
QUERY_VALUE = ["query", "value"]

# Sequences longer than a relative position's last bucket (24, 12 and 128 tokens away) and than a local window (4).
CASES = {
    "roberta": dict(
        config=transformers.RobertaConfig(**SIZES, **COMMON, max_position_embeddings=42, type_vocab_size=1),
        targets=QUERY_VALUE,
    ),
    "xlm-roberta": dict(
        config=transformers.XLMRobertaConfig(**SIZES, **COMMON, max_position_embeddings=42, type_vocab_size=1),
        targets=QUERY_VALUE,
        padding_within=True,
    ),
    "distilbert": dict(
        config=transformers.DistilBertConfig(
            vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40, num_labels=LABELS
        ),
        targets=["q_lin", "v_lin"],
    ),
    "electra": dict(
        config=transformers.ElectraConfig(**SIZES, **COMMON, embedding_size=12, max_position_embeddings=40),
        targets=QUERY_VALUE,
    ),
    "mpnet": dict(
        config=transformers.MPNetConfig(**SIZES, **COMMON, max_position_embeddings=152),
        targets=["q", "v"],
        lengths=[7, 1, 150, 12, 2, 23],
    ),
    "deberta-v3": dict(
        config=transformers.DebertaV2Config(
            **SIZES,
            **COMMON,
            max_position_embeddings=40,
            relative_attention=True,
            position_buckets=8,
            max_relative_positions=24,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        ),
        targets=["query_proj", "value_proj"],
    ),
    # The other choice of each option.
    "deberta-v2": dict(
        config=transformers.DebertaV2Config(
            **SIZES,
            **COMMON,
            max_position_embeddings=40,
            relative_attention=True,
            max_relative_positions=12,
            share_att_key=False,
            pos_att_type="c2p|p2c",
            position_biased_input=True,
            type_vocab_size=2,
        ),
        targets=["query_proj", "value_proj"],
    ),
    "modernbert": dict(
        config=transformers.ModernBertConfig(
            **{**SIZES, "num_hidden_layers": 4},
            num_labels=LABELS,
            max_position_embeddings=40,
            local_attention=8,
            global_attn_every_n_layers=3,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            cls_token_id=2,
            sep_token_id=3,
        ),
        targets=["Wqkv"],
        attention="sdpa",
    ),
}

torch.set_num_threads(1)

# transformers takes this root in f32.
deberta.scaled_size_sqrt = lambda layer, factor: torch.tensor(math.sqrt(layer.size(-1) * factor), dtype=torch.float64)


def rotary_angles(self, x, position_ids, layer_type):
    """Cosine and sine of position * theta ** (-2 i / head_dim), which transformers takes in f32."""
    width = self.config.hidden_size // self.config.num_attention_heads
    theta = self.config.rope_parameters[layer_type]["rope_theta"]
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = position_ids[..., None].double() * frequencies
    return torch.cat((angles, angles), dim=-1).cos(), torch.cat((angles, angles), dim=-1).sin()


def rotate(q, k, cos, sin, unsqueeze_dim=1):
    """transformers' apply_rotary_pos_emb, which casts to f32, without the casts."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return tuple(x * cos + modernbert.rotate_half(x) * sin for x in (q, k))


modernbert.ModernBertRotaryEmbedding.forward = rotary_angles
modernbert.apply_rotary_pos_emb = rotate


def make_checkpoint(case, folder):
    """Random weights, large, so that attention is far from uniform and every gradient counts."""
    model = AutoModelForSequenceClassification.from_config(case["config"])
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    parameter.normal_(0.0, 0.2)
                elif isinstance(module, nn.LayerNorm):
                    parameter.normal_(1.0, 0.2)
                else:
                    parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)


def load(case, folder):
    attention = case.get("attention", "eager")  # ModernBERT's eager attention takes its softmax in f32.
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention)
    return model.double().eval()


def sequences(case, types):
    """Random ids behind the special ones; the second half of every second sequence is of type 1 where there are types."""
    result = []
    for index, length in enumerate(case.get("lengths", LENGTHS)):
        ids = torch.randint(4, 50, (length,)).tolist()
        if case.get("padding_within"):
            ids = [PADDING if position % 5 == 3 else token for position, token in enumerate(ids)]
        kinds = [int(types > 1 and index % 2 == 0 and position >= length // 2) for position in range(length)]
        result.append({"input_ids": ids, "token_type_ids": kinds})
    return result


def padded(sequences, types):
    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    fill = lambda values, padding: values + [padding] * (longest - len(values))
    batch = {
        "input_ids": torch.tensor([fill(sequence["input_ids"], PADDING) for sequence in sequences]),
        "attention_mask": torch.tensor([fill([1] * len(sequence["input_ids"]), 0) for sequence in sequences]),
    }
    if types > 1:
        batch["token_type_ids"] = torch.tensor([fill(sequence["token_type_ids"], 0) for sequence in sequences])
    return batch


def mean_logits(model, batch):
    """The head on the mean over tokens in place of the first token."""
    hidden = model.base_model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    if hasattr(model, "pre_classifier"):
        return model.classifier(torch.relu(model.pre_classifier(mean)))
    if hasattr(model, "pooler"):
        return model.classifier(model.pooler(mean.unsqueeze(1)))
    if hasattr(model, "head"):
        return model.classifier(model.head(mean))
    return model.classifier(mean.unsqueeze(1))


def make_case(name, case, seed):
    torch.manual_seed(seed)
    folder = HERE / name
    make_checkpoint(case, folder)
    types = getattr(case["config"], "type_vocab_size", 0)
    batch_sequences = sequences(case, types)
    batch = padded(batch_sequences, types)
    labels = torch.randint(0, LABELS, (len(batch_sequences),))
    tensors = {}

    model = load(case, folder)
    cls = model(**batch).logits
    mean = mean_logits(model, batch)
    if not case.get("padding_within"):  # torch gives the padding token's row no gradient.
        gradients(model, cls, labels, "full.cls", tensors)
        gradients(model, mean, labels, "full.mean", tensors)

    # The head is trained whole, as this crate does; PEFT alone would leave a part of it at random numbers.
    head = [module for module in ("classifier", "pre_classifier", "pooler", "head") if hasattr(model, module)]
    config = LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=12, lora_dropout=0.0, target_modules=case["targets"], modules_to_save=head
    )
    model = get_peft_model(model, config).double().eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in parameter_name:
            with torch.no_grad():
                parameter.copy_((0.3 * torch.randn(parameter.shape)).float())
            tensors[f"lora.value.{our_name(parameter_name)}"] = parameter.detach().float().clone()
    lora = model(**batch).logits
    if not case.get("padding_within"):
        gradients(model, lora, labels, "lora.gradient", tensors)

    oracle = {
        "made_with": {
            module.__name__: module.__version__ for module in (torch, transformers, peft, safetensors, numpy)
        },
        "sequences": batch_sequences,
        "labels": labels.tolist(),
        "logits": {"cls": cls.tolist(), "mean": mean.tolist()},
        "lora": {
            "r": 3,
            "lora_alpha": 12,
            "targets": case["targets"],
            "logits": lora.tolist(),
            "line": line(model),
        },
    }
    (folder / "oracle.json").write_text(json.dumps(oracle) + "\n")
    save_file(tensors, folder / "oracle.safetensors")


def buckets():
    """The row of each distance, query - key, from -600 to 600."""
    distances = torch.arange(-600, 601)
    disentangled = {}
    for size, longest in ((256, 512), (8, 24), (32, 128)):
        row = deberta.make_log_bucket_position(distances, size, longest).long() + size
        disentangled[f"{size} {longest}"] = torch.clamp(row, 0, 2 * size - 1).tolist()
    # MPNet counts from the query to the key.
    return {"deberta": disentangled, "mpnet": MPNetEncoder.relative_position_bucket(-distances).tolist()}


def main():
    for seed, (name, case) in enumerate(CASES.items()):
        make_case(name, case, 20240301 + seed)
    (HERE / "buckets.json").write_text(json.dumps(buckets()) + "\n")


if __name__ == "__main__":
    main()
