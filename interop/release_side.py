"""The side of one release of peft in releases.py: makes adapters, loads ours, and prints its version and the logits of each as JSON.

  python release_side.py make MODEL BATCHES FOLDER    an adapter of each case in FOLDER/CASE, with its logits
  python release_side.py load MODEL BATCHES FOLDER    the logits of each adapter in FOLDER/CASE
"""

import inspect
import json
import sys
import warnings
from pathlib import Path

import numpy
import peft
import torch
import transformers
from transformers import BertForSequenceClassification

LORA = {"r": 2, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": ["query", "value"]}
# A release has those whose options it has.
CASES = {
    "lora": ("LoraConfig", LORA),
    "lora_bias_all": ("LoraConfig", {**LORA, "bias": "all"}),
    "lora_pooler": ("LoraConfig", {**LORA, "modules_to_save": ["pooler"]}),
    "lora_layers": ("LoraConfig", {**LORA, "layers_to_transform": [1]}),
    "lora_pattern": ("LoraConfig", {**LORA, "target_modules": r".*layer\.(?!0\b)\d+\.attention\.self\.(?:query|value)"}),
    "lora_ranks": ("LoraConfig", {**LORA, "rank_pattern": {"query": 1}, "alpha_pattern": {"query": 4}}),
    "rslora": ("LoraConfig", {**LORA, "use_rslora": True}),
    "dora": ("LoraConfig", {**LORA, "use_dora": True}),
    "ia3": ("IA3Config", {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}),
    "prompt_tuning": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "p_tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
    "prefix_tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
}


def base_model(model):
    return BertForSequenceClassification.from_pretrained(model, num_labels=3)


def logits(model, path):
    arrays = numpy.load(path)
    batch = {name: torch.tensor(arrays[f"s0.{name}"]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.eval()(**batch).logits.tolist()


def make(model, batches, folder):
    made = {}
    for name, (kind, options) in CASES.items():
        known = inspect.signature(getattr(peft, kind)).parameters
        if any(option not in known for option in options):
            continue
        torch.manual_seed(7)
        adapted = peft.get_peft_model(base_model(model), getattr(peft, kind)(task_type="SEQ_CLS", **options))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        try:
            adapted.save_pretrained(folder / name, safe_serialization=True)
        except RuntimeError as error:
            # 0.4 has the biases of a saved module under two names, which safetensors refuses.
            print(f"{name} is not saved by peft {peft.__version__}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
            continue
        # What counts is what the release gives once it has loaded its own file.
        made[name] = logits(peft.PeftModel.from_pretrained(base_model(model), folder / name), batches)
    return made


def load(model, batches, folder):
    loaded = {}
    for adapter in sorted(path for path in folder.iterdir() if path.is_dir()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded[adapter.name] = logits(peft.PeftModel.from_pretrained(base_model(model), adapter), batches)
        for warning in caught:
            if any(word in str(warning.message) for word in ("Found missing", "Unexpected")):
                raise RuntimeError(f"{adapter.name}: {warning.message}")
    return loaded


if __name__ == "__main__":
    command, model, batches, folder = sys.argv[1:]
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    result = {"make": make, "load": load}[command](model, batches, Path(folder))
    print(json.dumps({"peft": peft.__version__, "logits": result}))
