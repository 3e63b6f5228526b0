"""Makes adapters with one release of PEFT on the tiny BERT that make_oracle.py made, and what that release computes with them:
  releases/VERSION/CASE/   adapter_config.json and adapter_model.safetensors, and logits.json
Releases before 0.5 write a pickle unless they are told otherwise, and 0.3 always; its tensors are written as safetensors here.

Run it once in each environment, in this folder; of 0.4.0, for instance:
  pip install peft==0.4.0 transformers==4.31.0 'numpy<2' && python make_releases.py
Any torch that the two load in will do: the sums are a few thousand products in f32.
"""

import inspect
import json
import shutil
from pathlib import Path

import peft
import torch
import transformers
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

HERE = Path(__file__).resolve().parent
SEQUENCES = [[1, 75, 92, 2], [1, 5, 6, 7, 8, 9, 2], [1, 30, 2]]
LORA = {"r": 2, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": ["query", "value"]}

# Options that a release lacks leave out its case.
CASES = {
    "lora": ("LoraConfig", LORA),
    "lora_bias_all": ("LoraConfig", {**LORA, "bias": "all"}),
    "lora_bias_lora_only": ("LoraConfig", {**LORA, "bias": "lora_only"}),
    "lora_layers": ("LoraConfig", {**LORA, "layers_to_transform": [1]}),
    "lora_pooler": ("LoraConfig", {**LORA, "modules_to_save": ["pooler"]}),
    "lora_dense_in_saved": ("LoraConfig", {**LORA, "target_modules": ["query", "dense"], "modules_to_save": ["pooler"]}),
    "lora_patterns": ("LoraConfig", {**LORA, "rank_pattern": {"query": 1}, "alpha_pattern": {"query": 4}}),
    "lora_lookahead": ("LoraConfig", {**LORA, "target_modules": r".*layer\.(?!0\b)\d+\.attention\.self\.(?:query|value)"}),
    "lora_rslora": ("LoraConfig", {**LORA, "use_rslora": True}),
    "dora": ("LoraConfig", {**LORA, "use_dora": True}),
    "lora_orthogonal": ("LoraConfig", {**LORA, "init_lora_weights": "orthogonal"}),
    "ia3": ("IA3Config", {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}),
    "prompt_tuning": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "p_tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
    "prefix_tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
}


def batch():
    longest = max(map(len, SEQUENCES))
    pad = lambda ids: ids + [0] * (longest - len(ids))
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in SEQUENCES]
    return {"input_ids": torch.tensor([pad(ids) for ids in SEQUENCES]), "attention_mask": torch.tensor(mask)}


def config(kind, options):
    if not hasattr(peft, kind):
        return None
    cls = getattr(peft, kind)
    known = inspect.signature(cls).parameters
    if any(option not in known for option in options):
        return None
    return cls(task_type="SEQ_CLS", **options)


def save(model, folder):
    """As safetensors, from the release itself where it can."""
    try:
        model.save_pretrained(folder, safe_serialization=True)
    except (RuntimeError, TypeError):
        # Tensors under two names, which safetensors refuses, or a release that has no such option.
        model.save_pretrained(folder)
    pickle = folder / "adapter_model.bin"
    if pickle.exists():
        tensors = torch.load(pickle, weights_only=True)
        tensors = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        pickle.unlink()
    (folder / "README.md").unlink(missing_ok=True)


def make(name, kind, options):
    try:
        peft_config = config(kind, options)
    except (ValueError, TypeError, AttributeError) as error:
        return f"left out: {error}"
    if peft_config is None:
        return "left out: no such option"
    torch.manual_seed(7)
    base = BertForSequenceClassification.from_pretrained(HERE / "tiny-bert", num_labels=3)
    try:
        model = get_peft_model(base, peft_config)
    except (ValueError, AttributeError) as error:
        return f"left out: {error}"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    with torch.no_grad():
        logits = model.eval()(**batch()).logits
    folder = HERE / "releases" / peft.__version__ / name
    shutil.rmtree(folder, ignore_errors=True)
    save(model, folder)
    if "safe_serialization" in inspect.signature(model.save_pretrained).parameters:
        # What counts is what the release itself gives after loading.
        base = BertForSequenceClassification.from_pretrained(HERE / "tiny-bert", num_labels=3)
        with torch.no_grad():
            logits = peft.PeftModel.from_pretrained(base, folder).eval()(**batch()).logits
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text()) | {"base_model_name_or_path": "tiny-bert"}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    made = {"made_with": {m.__name__: m.__version__ for m in (torch, transformers, peft)}, "sequences": SEQUENCES, "logits": logits.tolist()}
    (folder / "logits.json").write_text(json.dumps(made) + "\n")
    return "made"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for name, (kind, options) in CASES.items():
        print(peft.__version__, name, make(name, kind, options))
