"""Makes adapters with PEFT on the tiny BERT that make_oracle.py made, one for each option of its methods, and what PEFT computes with
them.

Writes, beside this script:
  adapters/CASE/         adapter_config.json and adapter_model.safetensors, as save_pretrained writes them
  adapters.json          versions, and for each case its logits, parameter counts, trained names and PEFT's line
  adapters.safetensors   gradients (CASE.gradient.NAME), and of starts that follow from the base model A and B before training
                         (CASE.start.NAME), and where a network makes the adapter what it was (CASE.value.NAME), under the names
                         that this crate uses

Logits and gradients are computed in f64 from the f32 weights, without dropout. Run it in this folder:
  pip install --require-hashes --requirement ../../../../interop/oracles.txt && python make_adapters.py
With names of LATER's cases it makes these alone, and leaves what is stored of the others as it is:
  python make_adapters.py loha loha_options
"""

import copy
import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import peft
import safetensors
import torch
import transformers
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    initialize_lora_eva_weights,
)
from peft.utils.incremental_pca import IncrementalPCA
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from peft_side import gradients, line, our_name, padded

HERE = Path(__file__).parent
DENSE = ["query", "value", "dense"]

FIRST = {
    "query_value": {"target_modules": ["query", "value"]},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": DENSE,
        # The first that matches counts. In the order of the alphabet, in which the file has them: PEFT reads no other back.
        "rank_pattern": {r"1\.output\.dense": 1, "attention.output.dense": 2, "dense": 4},
        "alpha_pattern": {"layer.0.attention.output.dense": 1, "value": 5},
    },
    "layers": {"target_modules": ["query", "dense"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "exclude": {"target_modules": "all-linear", "exclude_modules": ["pooler.dense", "key"]},
    "exclude_pattern": {"target_modules": DENSE, "exclude_modules": r".*layer\.0\..*"},
    "pattern": {"target_modules": r".*\.layer\.[1]\..*(query|intermediate\.dense)"},
    "modules_to_save": {"target_modules": DENSE, "modules_to_save": ["pooler", "token_type_embeddings"]},
    "bias_all": {"target_modules": ["query", "value"], "bias": "all"},
    "bias_lora_only": {"target_modules": "all-linear", "exclude_modules": ["value"], "bias": "lora_only"},
    "unset": {"target_modules": ["query", "value"], "init_lora_weights": False},
    "gaussian": {"target_modules": ["query", "value"], "init_lora_weights": "gaussian"},
    "pissa": {"target_modules": DENSE, "init_lora_weights": "pissa"},
    "olora": {"target_modules": DENSE, "init_lora_weights": "olora"},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "dora_pissa_bias": {"target_modules": DENSE, "use_dora": True, "init_lora_weights": "pissa", "bias": "lora_only"},
    "ia3": {"peft_type": "IA3", "target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    "ia3_options": {
        "peft_type": "IA3",
        "target_modules": ["query", "intermediate.dense", "pooler.dense"],
        "feedforward_modules": ["intermediate.dense"],
        "exclude_modules": r".*layer\.0\.attention.*",
        "modules_to_save": ["token_type_embeddings"],
    },
    "ln_tuning": {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"]},
    "ln_tuning_options": {
        "peft_type": "LN_TUNING",
        "target_modules": ["LayerNorm"],
        "exclude_modules": ["embeddings.LayerNorm"],
        "modules_to_save": ["pooler"],
    },
    "vera": {"peft_type": "VERA", "r": 6, "projection_prng_key": 11, "target_modules": DENSE},
    "vera_options": {
        "peft_type": "VERA",
        "r": 5,
        "target_modules": ["query", "dense"],
        "d_initial": 0.3,
        "layers_to_transform": [1],
        "layers_pattern": "layer",
        "modules_to_save": ["token_type_embeddings"],
        "bias": "vera_only",
    },
    # PEFT draws the matrices anew where it reads it.
    "vera_key": {"peft_type": "VERA", "r": 6, "projection_prng_key": 5, "save_projection": False, "target_modules": DENSE},
    # The schedule of the four steps that interop.py takes.
    "adalora": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "total_step": 4, "tfinal": 1, "target_modules": DENSE},
    "adalora_masked": {
        "peft_type": "ADALORA",
        "init_r": 3,
        "target_r": 1,
        "tinit": 1,
        "tfinal": 1,
        "deltaT": 2,
        "beta1": 0.7,
        "beta2": 0.9,
        "orth_reg_weight": 0.2,
        "total_step": 4,
        "lora_alpha": 6,
        "target_modules": "all-linear",
        "exclude_modules": ["pooler.dense"],
        "modules_to_save": ["pooler"],
        "bias": "lora_only",
    },
    # Of the pooler's input, which has one row for each sequence, PEFT's EVA makes nothing.
    "eva": {"target_modules": DENSE, "exclude_modules": ["pooler.dense"], "init_lora_weights": "eva"},
    "prefix_tuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5},
    "prefix_projection": {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": 3,
        "prefix_projection": True,
        "encoder_hidden_size": 7,
    },
    "prompt_tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "prompt_tuning_init": "SAMPLE_VOCAB"},
    "prompt_tuning_saved": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "modules_to_save": ["pooler"]},
    "p_tuning": {"peft_type": "P_TUNING", "num_virtual_tokens": 5, "encoder_hidden_size": 7},
}

# Each from a seed of its own, so that one more changes nothing of the others.
LATER = {
    "loha": {"peft_type": "LOHA", "r": 3, "alpha": 6, "target_modules": DENSE},
    "loha_options": {
        "peft_type": "LOHA",
        "r": 2,
        "target_modules": ["query", "dense"],
        "exclude_modules": ["intermediate.dense"],
        "layers_to_transform": [1],
        "layers_pattern": "layer",
        "rank_pattern": {"attention.output.dense": 1, "query": 4},
        "alpha_pattern": {"query": 3},
        "init_weights": False,
        "modules_to_save": ["token_type_embeddings"],
    },
    "lokr": {"peft_type": "LOKR", "r": 2, "alpha": 6, "target_modules": DENSE},
    "lokr_options": {
        "peft_type": "LOKR",
        "r": 1,
        "decompose_both": True,
        "decompose_factor": 4,
        "target_modules": ["query", "dense"],
        "exclude_modules": ["intermediate.dense"],
        "layers_to_transform": [1],
        "layers_pattern": "layer",
        "rank_pattern": {"query": 4},
        "alpha_pattern": {"query": 3},
        "init_weights": False,
        "modules_to_save": ["token_type_embeddings"],
    },
    "lokr_lycoris": {"peft_type": "LOKR", "r": 2, "decompose_factor": 5, "init_weights": "lycoris", "target_modules": "all-linear"},
    "oft": {"peft_type": "OFT", "oft_block_size": 8, "target_modules": DENSE},
    "oft_options": {
        "peft_type": "OFT",
        # What divides 32 and 64, and is nearest to 5.
        "oft_block_size": 5,
        "use_cayley_neumann": False,
        "target_modules": ["query", "dense"],
        "exclude_modules": ["intermediate.dense"],
        "layers_to_transform": [1],
        "layers_pattern": "layer",
        "init_weights": False,
        "modules_to_save": ["token_type_embeddings"],
        "bias": "oft_only",
    },
    "oft_shared": {
        "peft_type": "OFT",
        "r": 4,
        "oft_block_size": 0,
        "block_share": True,
        "num_cayley_neumann_terms": 3,
        "target_modules": "all-linear",
    },
    # A bound that binds, and of which f32 holds all digits over 4 blocks: PEFT takes their root in f32.
    "coft": {
        "peft_type": "OFT",
        "r": 4,
        "oft_block_size": 0,
        "coft": True,
        "eps": 0.5,
        "num_cayley_neumann_terms": 7,
        "target_modules": DENSE,
    },
}

CASES = FIRST | LATER

# What only files hold: its virtual tokens are read here, and not trained.
READ_ONLY = {
    "p_tuning_lstm": {
        "peft_type": "P_TUNING",
        "num_virtual_tokens": 4,
        "encoder_hidden_size": 6,
        "encoder_reparameterization_type": "LSTM",
    },
}

CONFIGS = {
    "IA3": IA3Config,
    "LN_TUNING": LNTuningConfig,
    "VERA": VeraConfig,
    "LOHA": LoHaConfig,
    "LOKR": LoKrConfig,
    "OFT": OFTConfig,
    "ADALORA": AdaLoraConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "P_TUNING": PromptEncoderConfig,
}


def peft_config(options):
    """The configuration of a case: of LoRA, unless it says otherwise."""
    # PEFT adds to the lists that it is given.
    others = copy.deepcopy(options)
    kind = others.pop("peft_type", None)
    if kind:
        return CONFIGS[kind](task_type="SEQ_CLS", **others)
    return LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=12, lora_dropout=0.0, **others)


def base_model():
    return BertForSequenceClassification.from_pretrained("tiny-bert", attn_implementation="eager")


def mask(model):
    """Masks singular values of AdaLoRA at random, and all of one branch, as the last step of its schedule does."""
    pattern = {}
    with torch.no_grad():
        for name, parameter in model.base_model.model.named_parameters():
            if "lora_E" in name:
                left = torch.rand(parameter.shape) < (0.0 if "layer.1.attention.self.key" in name else 0.6)
                parameter.mul_(left)
                pattern[name] = left.view(-1).tolist()
    model.peft_config["default"].rank_pattern = pattern


class ExactPCA(IncrementalPCA):
    """PEFT's, without its random sketch of a decomposition."""

    def __init__(self, **options):
        super().__init__(**(options | {"lowrank": False}))


def start_from_data(model, batch):
    """EVA's start from the first two examples and from the others in turn, as lists of batches."""
    peft.tuners.lora.eva.IncrementalPCA = ExactPCA
    parts = [{key: values[rows] for key, values in batch.items()} for rows in (slice(0, 2), slice(2, None))]
    initialize_lora_eva_weights(model, parts, show_progress_bar=False)


def made_by_a_network(options):
    """Whether the file holds what a network made, and not what was trained."""
    return options.get("peft_type") == "P_TUNING" or options.get("prefix_projection", False)


def cut(sequences, options):
    """Sequences that virtual tokens leave a position for each token."""
    length = 40 - options.get("num_virtual_tokens", 0)
    return [{key: values[:length] for key, values in sequence.items()} for sequence in sequences]


def make(case, options, sequences, labels, tensors):
    batch = padded(cut(sequences, options))
    base = base_model()
    config = peft_config(options)
    model = get_peft_model(base, config).eval()
    if options.get("init_lora_weights") == "eva":
        start_from_data(model, batch)
        tensors |= {f"{case}.start.{our_name(n)}": p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if options.get("use_dora") or options.get("init_lora_weights") in ("pissa", "olora"):
        for name, parameter in trained.items():
            if "lora_" in name and "layer.1.intermediate" in name:
                tensors[f"{case}.start.{our_name(name)}"] = parameter.detach().clone().contiguous()
    with torch.no_grad():
        for name, parameter in trained.items():
            kept = 0.0 if "lora_A" in name or "lora_B" in name else 1.0
            parameter.mul_(kept).add_(0.1 * torch.randn(parameter.shape))
    if case == "adalora_masked":
        mask(model)
    if made_by_a_network(options):
        tensors.update({f"{case}.value.{our_name(name)}": p.detach().clone().contiguous() for name, p in trained.items()})
    folder = HERE / "adapters" / case
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    # Sets in PEFT, whose order would be another each time.
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    sets = {name: sorted(value) for name, value in fields.items() if name.endswith("_modules") and isinstance(value, list)}
    path.write_text(json.dumps(fields | sets, indent=2, sort_keys=True))
    if case == "adalora_masked":
        # What is masked is no part of the files, and of the model that they make.
        model = PeftModel.from_pretrained(base_model(), folder, is_trainable=True).eval()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel() > 0}
    trainable, total = model.get_nb_trainable_parameters()
    result = {"trainable": trainable, "all": total, "line": line(model), "names": sorted(map(our_name, trained))}

    model.double()
    logits = model(**batch).logits
    gradients(model, logits, labels, f"{case}.gradient", tensors)
    return result | {"logits": logits.tolist()}


def main():
    os.chdir(HERE)
    torch.set_num_threads(1)
    oracle = json.loads(Path("oracle.json").read_text())
    labels, tensors, cases = torch.tensor(oracle["labels"]), {}, {}
    chosen = sys.argv[1:]
    if chosen:
        cases = json.loads(Path("adapters.json").read_text())["cases"]
        stored = load_file("adapters.safetensors")
        tensors = {name: tensor for name, tensor in stored.items() if name.split(".")[0] not in chosen}
    else:
        shutil.rmtree("adapters", ignore_errors=True)
        torch.manual_seed(20240301)
        for case, options in (FIRST | READ_ONLY).items():
            cases[case] = make(case, options, oracle["sequences"], labels, tensors)
    for case in chosen or LATER:
        torch.manual_seed(zlib.crc32(case.encode()))
        cases[case] = make(case, LATER[case], oracle["sequences"], labels, tensors)
    made_with = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "safetensors": safetensors.__version__,
    }
    Path("adapters.json").write_text(json.dumps({"made_with": made_with, "cases": cases}, indent=1) + "\n")
    save_file(tensors, "adapters.safetensors")


if __name__ == "__main__":
    main()
