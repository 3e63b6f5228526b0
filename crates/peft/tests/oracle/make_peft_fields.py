"""Adds to peft_fields.json, beside this script, which fields PEFT's configurations have, with their defaults:
{VERSION: {PEFT_TYPE: {FIELD: DEFAULT}}}. Run it once for each release, as make_releases.py.
"""

import json
from pathlib import Path

import peft

TYPES = ["ADALORA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "VERA"]
FILE = Path(__file__).resolve().parent / "peft_fields.json"
# What has to be said, or the class takes no default.
NEEDED = {"ADALORA": {"total_step": 10}, "PROMPT_TUNING": {"num_virtual_tokens": 3}}


def fields(kind):
    for options in (NEEDED.get(kind, {}), {}):
        try:
            found = peft.get_peft_config({"peft_type": kind, **options}).to_dict()
            break
        except TypeError:
            continue
    plain = lambda value: value if value is None or isinstance(value, (bool, int, float, str, dict, list)) else str(value)
    return {name: plain(value) for name, value in sorted(found.items())}


versions = json.loads(FILE.read_text()) if FILE.exists() else {}
known = [str(getattr(kind, "value", kind)) for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING] if hasattr(peft, "PEFT_TYPE_TO_CONFIG_MAPPING") else []
known = known or [str(getattr(kind, "value", kind)) for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING]
versions[peft.__version__] = {kind: fields(kind) for kind in TYPES if kind in known}
FILE.write_text(json.dumps(dict(sorted(versions.items())), separators=(",", ":"), sort_keys=True) + "\n")
