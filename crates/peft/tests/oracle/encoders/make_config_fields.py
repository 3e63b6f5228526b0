"""Adds to config_fields.json, beside this script, which fields transformers' configuration classes have, with their defaults:
{VERSION: {MODEL_TYPE: {FIELD: DEFAULT}}}. Run it once for each version of transformers, torch is not needed:
  pip install transformers==4.57.6 && python make_config_fields.py
"""

import json
from pathlib import Path

import transformers
from transformers import AutoConfig

MODEL_TYPES = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "deberta-v2", "modernbert"]
FILE = Path(__file__).resolve().parent / "config_fields.json"


def fields(model_type):
    found = AutoConfig.for_model(model_type).to_dict()
    # What names the version itself.
    return {name: value for name, value in sorted(found.items()) if name != "transformers_version"}


versions = json.loads(FILE.read_text()) if FILE.exists() else {}
known = [model_type for model_type in MODEL_TYPES if model_type in transformers.CONFIG_MAPPING]
versions[transformers.__version__] = {model_type: fields(model_type) for model_type in known}
FILE.write_text(json.dumps(dict(sorted(versions.items())), separators=(",", ":"), sort_keys=True) + "\n")
