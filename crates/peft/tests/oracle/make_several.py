"""Makes what the tests of several adapters compare against: what PEFT computes where adapters share a batch, are combined, or are
converted to LoRA, on the tiny BERT that make_oracle.py made and the adapters that make_adapters.py made.

Writes, beside this script:
  several/NAME/          adapters, as save_pretrained writes them; those that are combined with the base model's head
  several.json           versions; logits of a mixed batch, of each combination and of each conversion; and what the functions of
                         PEFT's utils/merge_utils.py make of small tensors, with the masks that they drew
  several.safetensors    the tensors of combinations that do without a singular value decomposition (CASE.NAME)

PEFT combines in f32; logits are computed in f64 from the f32 weights, without dropout. Run it in this folder:
  pip install --require-hashes --requirement ../../../../interop/oracles.txt && python make_several.py
"""

import copy
import json
import os
import shutil
from pathlib import Path

import peft
import safetensors
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.conversion import save_as_lora
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from peft_side import our_name, padded

HERE = Path(__file__).parent
FOLDER = Path("several")

# Of different ranks, scalings and targets. The first two of equal rank: what adds factor by factor needs that.
LORA = {
    "query_value": {"r": 3, "lora_alpha": 12, "target_modules": ["query", "value"]},
    "value_dense": {"r": 3, "lora_alpha": 4, "target_modules": ["value", "intermediate.dense"]},
    "key_value": {"r": 2, "lora_alpha": 5, "target_modules": ["key", "value"], "use_rslora": True},
}
IA3 = {
    "outputs": {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    "inputs": {"target_modules": ["query", "value", "intermediate.dense"], "feedforward_modules": ["intermediate.dense"]},
}
COMBINATIONS = {
    "linear": {"weights": {"query_value": 0.7, "value_dense": -0.4}},
    "one": {"weights": {"query_value": 0.5}, "combination_type": "svd"},
    "cat": {"weights": {"query_value": 0.7, "key_value": -1.5, "value_dense": 0.25}},
    "svd": {"weights": {"query_value": 0.7, "key_value": -1.5}},
    "svd_rank": {"weights": {"query_value": 0.7, "value_dense": 1.25, "key_value": -1.5}, "combination_type": "svd", "svd_rank": 5},
    "ties": {"weights": {"query_value": 0.7, "value_dense": 0.4}, "density": 0.4},
    "ties_frequency": {
        "weights": {"query_value": 0.7, "value_dense": -0.4},
        "combination_type": "ties",
        "density": 0.7,
        "majority_sign_method": "frequency",
    },
    "ties_svd": {"weights": {"query_value": 0.7, "value_dense": 0.5, "key_value": 0.4}, "density": 0.3, "svd_rank": 4},
    "dare_linear": {"weights": {"query_value": 0.7, "value_dense": 0.4}, "density": 1.0},
    "dare_ties": {"weights": {"query_value": 0.7, "value_dense": 0.4}, "density": 1.0},
    "dare_linear_svd": {"weights": {"query_value": 0.7, "key_value": 0.4}, "density": 1.0},
    "dare_ties_svd": {"weights": {"query_value": 0.7, "key_value": 0.4}, "density": 1.0, "majority_sign_method": "frequency"},
    "magnitude_prune": {"weights": {"query_value": 0.7, "value_dense": 0.4}, "density": 0.35},
    "magnitude_prune_svd": {"weights": {"query_value": 0.7, "key_value": 0.4}, "density": 0.35},
    "ia3": {"weights": {"outputs": 0.6, "inputs": 0.5}},
}
# Of adapters/NAME, at a rank or at the least rank that keeps so much of the squared norm.
CONVERSIONS = {"rslora_2": ("rslora", 2), "rslora_3": ("rslora", 3), "patterns_share": ("patterns", 0.9)}
MIXED = ["first", "__base__", "second", "first", "second", "__base__"]


def base_model():
    return BertForSequenceClassification.from_pretrained("tiny-bert", attn_implementation="eager")


def train(model, names):
    """Gives what belongs to these adapters other values: (IA)³'s vectors start as ones, heads as the base model's."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(adapter in name.split(".") for adapter in names) and "original_module" not in name:
                kept = 0.0 if "lora_A" in name or "lora_B" in name else 1.0
                parameter.mul_(kept).add_(0.2 * torch.randn(parameter.shape))


def save(model, names):
    model.save_pretrained(FOLDER, selected_adapters=list(names))
    for name in names:
        # Sets in PEFT, whose order would be another each time.
        path = FOLDER / name / "adapter_config.json"
        fields = json.loads(path.read_text())
        sets = {key: sorted(value) for key, value in fields.items() if key.endswith("_modules") and isinstance(value, list)}
        path.write_text(json.dumps(fields | sets, indent=2, sort_keys=True))
    (FOLDER / "README.md").unlink(missing_ok=True)


def logits(model, batch, **arguments):
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(**batch, **arguments).logits.tolist()


def mixed(batch):
    """Two classifiers and the base model in one batch."""
    configs = {
        "first": LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=12, target_modules=["query", "value"]),
        "second": LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=5, target_modules=["value", "dense"], exclude_modules=["pooler.dense"]),
    }
    model = get_peft_model(base_model(), configs["first"], adapter_name="first")
    model.add_adapter("second", configs["second"])
    train(model, configs)
    save(model, configs)
    return {"adapter_names": MIXED, "logits": logits(model, batch, adapter_names=MIXED)}


def several(configs):
    """A model with these adapters. PEFT combines none that have a head of their own, so they have none."""
    (first, config), *others = configs.items()
    model = get_peft_model(base_model(), config, adapter_name=first)
    for name, config in others:
        model.add_adapter(name, config)
    train(model, configs)
    save(model, configs)
    for name in configs:
        path = FOLDER / name / "adapter_model.safetensors"
        head = {f"base_model.model.classifier.{part}": tensor.detach().clone() for part, tensor in model.base_model.model.classifier.named_parameters()}
        save_file(load_file(path) | head, path, metadata={"format": "pt"})
        path = FOLDER / name / "adapter_config.json"
        fields = json.loads(path.read_text()) | {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
        path.write_text(json.dumps(fields, indent=2, sort_keys=True))
    return model


def combine(models, batch, tensors):
    cases = {}
    for case, options in COMBINATIONS.items():
        arguments = {"combination_type": case} | options
        weights = arguments.pop("weights")
        adapters = list(weights)
        model = next(model for model in models if adapters[0] in model.peft_config)
        given = {} if case == "ia3" else arguments
        model.add_weighted_adapter(adapters, list(weights.values()), case, **given)
        model.set_adapter(case)
        cases[case] = {"adapters": list(weights.items()), "options": given, "logits": logits(model, batch)}
        if not given.get("combination_type", "").endswith("svd"):
            for name, parameter in model.named_parameters():
                parts = name.split(".")
                if case in parts:
                    ours = our_name(".".join(part for part in parts if part != case))
                    tensors[f"{case}.{ours}"] = parameter.detach().clone().contiguous()
    return cases


def convert(batch):
    cases = {}
    for case, (adapter, rank) in CONVERSIONS.items():
        model = PeftModel.from_pretrained(base_model(), f"adapters/{adapter}")
        save_as_lora(FOLDER / "converted", model, rank=rank)
        tensors = load_file(FOLDER / "converted/adapter_model.safetensors")
        ranks = {our_name(name).removesuffix(".lora_A.weight"): tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name}
        converted = PeftModel.from_pretrained(base_model(), FOLDER / "converted")
        cases[case] = {"adapter": adapter, "rank": rank, "ranks": ranks, "logits": logits(converted, batch)}
        shutil.rmtree(FOLDER / "converted")
    return cases


def merge_functions():
    """What each function makes of three vectors. Whether a vector is of a matrix is the same to all of them."""
    task_tensors, weights, density = [torch.randn(40) for _ in range(3)], torch.tensor([0.75, -0.5, 1.25]), 0.6
    drawn, bernoulli = [], torch.bernoulli

    def record(tensor):
        drawn.append(bernoulli(tensor))
        return drawn[-1]

    torch.bernoulli = record
    cases = {}
    for name, arguments in {
        "task_arithmetic": [],
        "magnitude_prune": [density],
        "ties": [density],
        "ties_frequency": [density, "frequency"],
        "dare_linear": [density],
        "dare_ties": [density],
        "dare_ties_frequency": [density, "frequency"],
    }.items():
        drawn.clear()
        function = getattr(merge_utils, name.removesuffix("_frequency"))
        result = function(task_tensors, weights, *arguments)
        cases[name] = {"masks": [mask.bool().tolist() for mask in drawn], "result": result.tolist()}
    torch.bernoulli = bernoulli
    return {
        "task_tensors": [tensor.tolist() for tensor in task_tensors],
        "weights": weights.tolist(),
        "density": density,
        "cases": cases,
    }


def main():
    os.chdir(HERE)
    torch.manual_seed(20261124)
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    batch = padded(json.loads(Path("oracle.json").read_text())["sequences"])
    tensors = {}
    models = [
        several({name: LoraConfig(**options) for name, options in LORA.items()}),
        several({name: IA3Config(**options) for name, options in IA3.items()}),
    ]
    several_json = {
        "made_with": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "safetensors": safetensors.__version__,
        },
        "mixed": mixed(batch),
        "combinations": combine(models, batch, tensors),
        "conversions": convert(batch),
        "merge_utils": merge_functions(),
    }
    Path("several.json").write_text(json.dumps(several_json, indent=1) + "\n")
    save_file(tensors, "several.safetensors")


if __name__ == "__main__":
    main()
