"""Trades adapters with Python's peft in both directions, and fails on any difference.

For each option of each method in ../crates/peft/tests/oracle/make_adapters.py, on BERTs and a RoBERTa, and for LoRA on the tiny
checkpoint of every other architecture in ../crates/peft/tests/oracle/encoders:
  there   peft-glue trains an adapter and saves it; PeftModel.from_pretrained loads it, with no missing or unexpected key, prints
          the same line of parameters and gives the same logits
  back    peft trains an adapter and saves it; peft-glue loads it and gives the same logits
  on      training goes on from that adapter on both sides, with the same loss at every step; of prompt learning, whose files peft
          does not train, and may not hold what is trained, from a start that peft drew
  merged  peft-glue merges that adapter into a checkpoint; transformers loads it and gives the same logits (not of prompt learning)
  as LoRA peft-glue converts that adapter to LoRA, at the ranks that keep all of it; PeftModel.from_pretrained loads it and gives the
          same logits (not of LN tuning, which has no branches)

Then two LoRAs of peft's are combined by peft-glue and by peft, and both give the same logits; and without --model and --case adapters are
traded with three earlier releases of peft (releases.py).

Run it by `make interop`, or in the repository's root: python interop/interop.py [--model FOLDER ...] [--case NAME ...]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
ORACLE = ROOT / "crates/peft/tests/oracle"
ENCODERS = ORACLE / "encoders"
sys.path.insert(0, str(ORACLE))
import releases  # noqa: E402
from make_adapters import CASES, peft_config  # noqa: E402
from peft_side import line, our_name  # noqa: E402

STEPS, SEQUENCES, LABELS = 4, 6, 3
# To make an adapter that differs from its start, and to go on from it.
MAKING, GOING_ON = 5e-3, 1e-3
# Of the largest logit, or of 1 if that is larger: both sides add in f32, in different orders.
LOGITS = 1e-5
# Of a loss after the first: AdamW divides by the root of small second moments, which carries a rounding on to the next step.
LATER_LOSSES = 1e-4


def make_batches(path, config, longest):
    """Random ids, each sequence of its own length, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda low, high, shape: torch.randint(low, high, shape, generator=generator)
    has_types = getattr(config, "type_vocab_size", 0) > 1
    batches = []
    for _ in range(STEPS):
        lengths = draw(1, longest, (SEQUENCES,)).tolist()
        positions = torch.arange(max(lengths))
        mask = torch.stack([(positions < length).long() for length in lengths])
        types = torch.stack([(positions >= length // 2).long() for length in lengths]) * mask * int(has_types)
        # None of the special tokens, which may have positions of their own.
        ids = torch.where(mask.bool(), draw(4, config.vocab_size, mask.shape), config.pad_token_id)
        labels = draw(0, LABELS, (SEQUENCES,))
        batches.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels})
    arrays = {f"s{step}.{key}": values.numpy() for step, batch in enumerate(batches) for key, values in batch.items()}
    numpy.savez(path, steps=numpy.array(STEPS), **arrays)
    if not has_types:
        batches = [{key: values for key, values in batch.items() if key != "token_type_ids"} for batch in batches]
    return batches


def base_model(model):
    """The checkpoint with a head of three labels, without dropout."""
    config = AutoConfig.from_pretrained(model, num_labels=LABELS)
    for name, value in vars(config).items():
        if name.endswith(("dropout", "dropout_prob")) and value is not None:
            setattr(config, name, 0.0)
    return AutoModelForSequenceClassification.from_pretrained(model, config=config, attn_implementation="eager")


def lora_on(model):
    """LoRA on the architecture's default layers. PEFT trains all of the head only if it is told to."""
    targets = json.loads((model / "oracle.json").read_text())["lora"]["targets"]
    head = [name for name in ("pre_classifier", "pooler", "head") if hasattr(base_model(model), name)]
    return {"target_modules": targets, **({"modules_to_save": head} if head else {})}


# RoBERTa's classifier has no pooler to name.
ON_ROBERTA = {case: options for case, options in CASES.items() if "pooler" not in str(options)}


def is_prompt(options):
    return "num_virtual_tokens" in options


def save_start(model, base, path):
    """The values of what peft trains that the checkpoint does not hold, as peft-glue starts from them."""
    with safe_open(base / "model.safetensors", "pt") as checkpoint:
        held = list(checkpoint.keys())
    # A checkpoint of an encoder alone has its names without the encoder's own before them.
    is_held = lambda name: any(name == key or name.endswith(f".{key}") for key in held)
    trained = {our_name(name): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    save_file({name: value.contiguous() for name, value in trained.items() if not is_held(name)}, path)


def logits(model, batches):
    with torch.no_grad():
        return [model.eval()(**batch).logits.numpy() for batch in batches]


def train(model, batches, learning_rate):
    """AdamW without decay at a rate that falls to 0 over the batches; the loss of each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (STEPS - step) / STEPS)
    # AdaLoRA's budget, unless it was spent before.
    allocate = getattr(model.base_model, "update_and_allocate", None)
    if allocate and model.peft_config["default"].rank_pattern:
        allocate = None
    losses = []
    for step, batch in enumerate(batches):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        if allocate:
            allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def flags(options):
    """peft-glue's arguments for a case."""
    lower = lambda value: str(value).lower()
    names = {"init_lora_weights": lower, "save_projection": lower, "init_weights": lower, "use_cayley_neumann": lower}
    method = options.get("peft_type", "LORA").lower()
    result = ["--method", method] + (["--r", "3", "--lora-alpha", "12"] if method == "lora" else [])
    for option, value in options.items():
        if option == "peft_type":
            continue
        flag = "--delta-t" if option == "deltaT" else f"--{option.replace('_', '-')}"
        if option == "target_modules" and isinstance(value, str) and value != "all-linear":
            result += ["--target-pattern", value]
        elif option == "exclude_modules" and isinstance(value, str):
            result += ["--exclude-pattern", value]
        elif value is True and option not in names:
            result.append(flag)
        elif isinstance(value, dict):
            result += [flag, ",".join(f"{name}={number}" for name, number in value.items())]
        elif isinstance(value, list):
            result += [flag, ",".join(map(str, value))]
        else:
            result += [flag, names.get(option, str)(value)]
    return result


class PeftGlue:
    """The program under test, on one base model and its batches."""

    def __init__(self, binary, model, batches):
        self.binary, self.batches = binary, batches
        self.model = ["--task", "mnli", "--model", str(model), "--dropout", "0"]

    def call(self, command, *arguments):
        call = [self.binary, command, *self.model, *map(str, arguments)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, call))}: {done.stderr.strip()}")
        return done.stdout

    def replay(self, *arguments, learning_rate=GOING_ON):
        training = ["--lr", learning_rate, "--warmup", 0, "--weight-decay", 0, "--max-grad-norm", 0]
        return json.loads(self.call("replay", "--batches", self.batches, *training, *arguments))

    def logits(self, adapter):
        found = self.replay("--adapter", adapter, "--forward-only")
        if "warnings" in found:
            raise RuntimeError("\n".join(found["warnings"]))
        return [numpy.array(step) for step in found["logits"]]

    def adapter(self, *arguments):
        call = [self.binary, "adapter", *map(str, arguments)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, call))}: {done.stderr.strip()}")

    def line(self, *arguments):
        return self.call("parameters", *arguments).splitlines()[-1]


def distance(ours, theirs):
    """The largest difference, as a share of the largest logit or of 1."""
    largest = max(1.0, max(numpy.abs(step).max() for step in theirs))
    return max(numpy.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) / largest


def check(peft_glue, model, options, batches, folder):
    """What differs, and how far apart both sides are."""
    problems = []
    there, back = folder / "there", folder / "back"
    folder.mkdir()

    peft_glue.replay(*flags(options), "--save-adapter", there, learning_rate=MAKING)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base_model(model), there, is_trainable=not is_prompt(options))
    problems += [str(w.message) for w in caught if "Found missing" in str(w.message) or "Unexpected" in str(w.message)]
    if options.get("peft_type") == "ADALORA":
        # Its branches have the rank of what is left by now; PEFT would look for what is left in them once more.
        loaded.peft_config["default"].rank_pattern = None
    result = set_peft_model_state_dict(loaded, load_peft_weights(there, device="cpu"))
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    # peft loads virtual tokens apart from the other keys, and fails where they are missing.
    apart = ("prompt_encoder.default.embedding.weight", "prompt_embeddings") if is_prompt(options) else ()
    problems += [f"missing {key}" for key in result.missing_keys if key in trained and key not in apart]
    problems += [f"unexpected {key}" for key in result.unexpected_keys if key not in apart]
    # peft trains nothing of a prompt that it loaded.
    ours = peft_glue.line(*(flags(options) if is_prompt(options) else ("--adapter", there)))
    theirs = line(get_peft_model(base_model(model), peft_config(options)) if is_prompt(options) else loaded)
    if ours != theirs:
        problems.append(f"{ours!r}, not {theirs!r}")
    to_peft = distance(peft_glue.logits(there), logits(loaded, batches))

    torch.manual_seed(3)
    trained_there = get_peft_model(base_model(model), peft_config(options))
    train(trained_there, batches, MAKING)
    trained_there.save_pretrained(back)
    from_peft = distance(peft_glue.logits(back), logits(trained_there, batches))

    merged_logits = as_lora = 0.0
    if not is_prompt(options):
        merged = folder / "merged"
        peft_glue.adapter("merge", back, "--model", model, "--output", merged)
        merged = AutoModelForSequenceClassification.from_pretrained(merged, attn_implementation="eager")
        merged_logits = distance(logits(merged, batches), logits(trained_there, batches))
    if options.get("peft_type", "LORA") in ("LORA", "IA3", "VERA", "ADALORA"):
        peft_glue.adapter("convert", back, "--model", model, "--rank", "1.0", "--output", folder / "lora")
        converted = PeftModel.from_pretrained(base_model(model), folder / "lora")
        as_lora = distance(logits(converted, batches), logits(trained_there, batches))

    if is_prompt(options):
        start = folder / "start.safetensors"
        going_on = get_peft_model(base_model(model), peft_config(options))
        save_start(going_on, model, start)
        ours = peft_glue.replay(*flags(options), "--start", start)["losses"]
    else:
        going_on = PeftModel.from_pretrained(base_model(model), back, is_trainable=True)
        ours = peft_glue.replay("--adapter", back)["losses"]
    theirs = train(going_on, batches, GOING_ON)
    first, *later = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    distances = (to_peft, from_peft, merged_logits, as_lora, first, max(later))
    names = ("logits to peft", "logits from peft", "merged logits", "logits as LoRA", "the first loss", "later losses")
    limits = (LOGITS, LOGITS, LOGITS, LOGITS, LOGITS, LATER_LOSSES)
    for what, value, limit in zip(names, distances, limits, strict=True):
        if not value <= limit:
            problems.append(f"{what}: {value:.1e} is more than {limit:.0e}")
    return problems, distances


def check_combination(peft_glue, model, batches, folder):
    """How far the logits of two adapters that peft-glue combined are from those of peft's combination. Their head is the base model's:
    peft combines none that have one of their own."""
    base = base_model(model)
    head = {f"base_model.model.classifier.{name}": tensor.detach().clone() for name, tensor in base.classifier.named_parameters()}
    there = get_peft_model(base, LoraConfig(r=3, target_modules=["query", "value"], init_lora_weights=False), adapter_name="first")
    there.add_adapter("second", LoraConfig(r=2, lora_alpha=3, target_modules=["key", "value"], init_lora_weights=False))
    there.save_pretrained(folder)
    for name in ("first", "second"):
        path = folder / name / "adapter_model.safetensors"
        save_file(load_file(path) | head, path, metadata={"format": "pt"})
    there.base_model.add_weighted_adapter(["first", "second"], [0.7, -0.4], "both", combination_type="ties_svd", density=0.5)
    there.set_adapter("both")
    names = [f"{folder / name}={weight}" for name, weight in (("first", 0.7), ("second", -0.4))]
    peft_glue.adapter("combine", *names, "--combination-type", "ties_svd", "--density", 0.5, "--output", folder / "both")
    return distance(peft_glue.logits(folder / "both"), logits(there, batches))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target/debug/peft-glue", type=Path)
    parser.add_argument("--model", action="append", type=Path, help="a folder of a BERT, or one of the tiny encoders; may be repeated")
    parser.add_argument("--case", action="append", choices=["lora", *CASES], help="one option only; may be repeated")
    arguments = parser.parse_args()
    real = ROOT / "models/all-MiniLM-L6-v2"
    encoders = sorted(folder for folder in ENCODERS.iterdir() if folder.is_dir())
    models = arguments.model or [ORACLE / "tiny-bert", *encoders, *([real] if real.exists() else [])]
    models = [model.resolve() for model in models]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # PEFT says so of every layer norm that it tunes.
    warnings.filterwarnings("ignore", message="Unsupported layer type")
    # And of VeRA's key, of AdaLoRA's empty branches and masks, which it takes for LoRA's ranks, and of EVA's start.
    for message in ("Specified to not", "Adapter 'default': .* invalid shape", "The following rank_pattern keys", ".* eva "):
        warnings.filterwarnings("ignore", message=message)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    failed = 0
    print(f"{'':37} {'logits':>39} {'losses':>19}")
    columns = ("to peft", "from peft", "merged", "as LoRA", "first", "later")
    print(f"{'base model':18} {'option':18} {' '.join(f'{column:>9}' for column in columns)}")
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            cases = CASES
            if model.parent == ENCODERS:
                cases = {"lora": lora_on(model)} | (ON_ROBERTA if model.name == "roberta" else {})
            for case in [case for case in cases if case in (arguments.case or cases)]:
                batches_path = Path(folder) / f"{case}.npz"
                longest = 40 - cases[case].get("num_virtual_tokens", 0)
                batches = make_batches(batches_path, base_model(model).config, longest)
                peft_glue = PeftGlue(arguments.binary, model, batches_path)
                problems, distances = check(peft_glue, model, cases[case], batches, Path(folder) / case)
                numbers = " ".join(f"{value:9.1e}" for value in distances)
                print(f"{model.name:18} {case:18} {numbers}  {'ok' if not problems else 'FAILED'}", flush=True)
                for problem in problems:
                    print(f"  {problem}")
                failed += bool(problems)
            if model.name == "tiny-bert" and not arguments.case:
                apart = check_combination(peft_glue, model, batches, Path(folder) / "combined")
                print(f"{model.name:18} {'combined':18} {apart:9.1e}  {'ok' if apart <= LOGITS else 'FAILED'}", flush=True)
                failed += not apart <= LOGITS
    if not arguments.model and not arguments.case:
        failed += releases.trade(releases.RELEASES, arguments.binary)
    print(f"{failed} failed" if failed else "every adapter travels both ways")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
