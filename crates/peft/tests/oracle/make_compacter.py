"""Makes what the tests of Compacter compare against, as make_bottleneck.py does for other bottleneck adapters: what AdapterHub's
`adapters` computes with it on the stored checkpoints of the architectures that it knows.

Writes compacter.json and compacter.safetensors beside this script, of the same form. Run it in this folder, in the environment of
make_bottleneck.py:
  pip install --require-hashes --requirement ../../../../interop/oracles-adapterhub.txt && python make_compacter.py
"""

import json

import torch
from adapters import CompacterConfig, CompacterPlusPlusConfig, ParBnConfig
from safetensors.torch import save_file

from make_bottleneck import HERE, bert_base, case, versions


def parallel(**options):
    """He et al. 2021's place. AdapterHub has no configuration of that name, and none of its other starts for such layers."""
    plain = {"phm_layer": True, "reduction_factor": 32, "non_linearity": "gelu", "scaling": 1.0, "init_weights": "bert"}
    return ParBnConfig(**(plain | options))


CONFIGS = {"houlsby": CompacterConfig, "pfeiffer": CompacterPlusPlusConfig, "parallel": parallel}


def main():
    torch.manual_seed(20240501)
    cases, tensors = {}, {}
    tiny, tiny_oracle = HERE / "tiny-bert", json.loads((HERE / "oracle.json").read_text())
    own = {"shared_phm_rule": False}
    for name, style, options in [
        ("houlsby", "houlsby", {}),
        ("pfeiffer", "pfeiffer", {}),
        ("parallel", "parallel", {"scaling": 1.5}),
        ("dim_and_rank", "houlsby", {"phm_dim": 2, "phm_rank": 3, "scaling": 0.5, "non_linearity": "swish"}),
        ("own_rule", "pfeiffer", own),
        ("factorized_rule", "houlsby", {"factorized_phm_rule": True}),
        ("own_factorized_rule", "pfeiffer", own | {"factorized_phm_rule": True, "phm_bias": False}),
        ("shared_weights", "houlsby", {"shared_W_phm": True}),
        ("shared_weights_of_own_rules", "pfeiffer", own | {"shared_W_phm": True, "phm_rank": 2}),
        ("whole_weights", "houlsby", {"factorized_phm_W": False}),
    ]:
        cases[name] = case(name, tiny, tiny_oracle, style, {"reduction_factor": 4} | options, tensors, CONFIGS)
    for folder in sorted(path.parent for path in (HERE / "encoders").glob("*/oracle.json")):
        if folder.name in ("mpnet", "modernbert"):
            # AdapterHub does not know them.
            continue
        oracle = json.loads((folder / "oracle.json").read_text())
        for style in CONFIGS:
            name = f"{folder.name}_{style}"
            cases[name] = case(name, folder, oracle, style, {"reduction_factor": 4}, tensors, CONFIGS)
    counts = {style: bert_base(config()) for style, config in CONFIGS.items()}
    oracle = {"made_with": versions(), "bert_base": counts, "cases": cases}
    (HERE / "compacter.json").write_text(json.dumps(oracle) + "\n")
    save_file(tensors, HERE / "compacter.safetensors")


if __name__ == "__main__":
    main()
