"""Makes what the tests of AdaLoRA's budget compare against: PEFT's RankAllocator over a whole schedule on random gradients.

Writes, beside this script, for the tiny BERT that make_oracle.py made:
  allocation.json         versions, the configuration, the orthogonal regularisation at the start, and for each step its budget and
                          which singular values are not zero after it
  allocation.safetensors  the branches' first values (start.NAME) and gradients (gradient.STEP.NAME), under this crate's names

In f32. A step is p - 0.1 * gradient, and then PEFT's update_and_allocate. Run it in this folder:
  pip install --require-hashes --requirement ../../../../interop/oracles.txt && python make_allocation.py
"""

import json
from pathlib import Path

import peft
import torch
import transformers
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

from peft_side import our_name

HERE = Path(__file__).parent
CONFIG = {
    "init_r": 4,
    "target_r": 2,
    "tinit": 3,
    "tfinal": 4,
    "deltaT": 2,
    "beta1": 0.85,
    "beta2": 0.8,
    "orth_reg_weight": 0.3,
    "total_step": 20,
    "target_modules": ["query", "value"],
}


def main():
    torch.manual_seed(20240302)
    torch.set_num_threads(1)
    base = BertForSequenceClassification.from_pretrained(HERE / "tiny-bert")
    model = get_peft_model(base, AdaLoraConfig(task_type="SEQ_CLS", **CONFIG))
    branches = {our_name(name): parameter for name, parameter in model.named_parameters() if "lora_" in name}
    tensors = {}
    with torch.no_grad():
        for name, parameter in branches.items():
            parameter.normal_(0.0, 0.5)
            tensors[f"start.{name}"] = parameter.clone()
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([0])}
    with_term = model.eval()(**batch).loss.item()
    model.peft_config["default"].orth_reg_weight = 0.0
    regularization = with_term - model(**batch).loss.item()

    steps = []
    for step in range(CONFIG["total_step"]):
        with torch.no_grad():
            for name, parameter in branches.items():
                parameter.grad = torch.randn_like(parameter)
                tensors[f"gradient.{step}.{name}"] = parameter.grad.clone()
                parameter -= 0.1 * parameter.grad
        model.base_model.update_and_allocate(step)
        budget, _ = model.base_model.rankallocator.budget_schedule(step)
        left = {name: (p != 0).view(-1).tolist() for name, p in branches.items() if name.endswith("lora_E")}
        steps.append({"budget": budget, "left": left})
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    result = {"versions": versions, "config": CONFIG, "regularization": regularization, "steps": steps}
    (HERE / "allocation.json").write_text(json.dumps(result, indent=1) + "\n")
    save_file(tensors, HERE / "allocation.safetensors")


if __name__ == "__main__":
    main()
