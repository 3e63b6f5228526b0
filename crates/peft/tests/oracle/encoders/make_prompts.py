"""Makes what prompt learning on each encoder that make_encoders.py made is compared with.

Writes, beside this script:
  prompts.json          versions, and for each case and method the logits
  prompts.safetensors   the values that were set (CASE.METHOD.value.NAME) and the gradients of the prompt encoder
                        (CASE.METHOD.gradient.NAME), under the names that this crate uses

PEFT computes all but prefix tuning on DistilBERT, MPNet, DeBERTa and ModernBERT, which have no past_key_values. There the reference
follows from Li and Liang 2021, section 4.2, in transformers' own code: as many tokens are put before each sequence, whatever
they are, in each layer their keys and values are replaced by the prefix, and the head does not see them.

As in make_encoders.py, everything is computed in f64 from f32 weights, without dropout. Run it in this folder:
  pip install --require-hashes --requirement ../../../../../interop/oracles.txt && python make_prompts.py
"""

import inspect
import json
from pathlib import Path

import peft
import torch
import transformers
from make_encoders import CASES, load, padded
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from peft_side import gradients, our_name
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
TOKENS = 5
METHODS = {
    "prefix_tuning": (PrefixTuningConfig, {}),
    "prompt_tuning": (PromptTuningConfig, {}),
    "p_tuning": (PromptEncoderConfig, {"encoder_hidden_size": 7}),
}


def with_peft(model, method):
    config, options = METHODS[method]
    # PEFT finds the sizes of some models only, and takes the hidden size for ELECTRA's narrower embeddings.
    sizes = model.config
    width = model.get_input_embeddings().weight.shape[1]
    return get_peft_model(
        model,
        config(
            task_type="SEQ_CLS",
            num_virtual_tokens=TOKENS,
            token_dim=sizes.hidden_size if method == "prefix_tuning" else width,
            num_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            **options,
        ),
    ).double()


class Prefixed(torch.nn.Module):
    """Prefix tuning of a model that has no place for keys and values from outside."""

    def __init__(self, model):
        super().__init__()
        self.model = model.requires_grad_(False)
        sizes = model.config
        columns = 2 * sizes.num_hidden_layers * sizes.hidden_size
        self.prompt_encoder = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(TOKENS, columns)}).double()

    def projections(self):
        """For each layer the modules that give keys and values, and which of their columns these are."""
        ends = {".k_lin": 0, ".attn.k": 0, ".key_proj": 0, ".v_lin": 1, ".attn.v": 1, ".value_proj": 1}
        found = {0: [], 1: []}
        for name, module in self.model.named_modules():
            for end, kind in ends.items():
                if name.endswith(end):
                    found[kind].append((module, 0))
            if name.endswith("Wqkv"):
                found[0].append((module, self.model.config.hidden_size))
                found[1].append((module, 2 * self.model.config.hidden_size))
        return zip(found[0], found[1], strict=True)

    def forward(self, input_ids, attention_mask, **kwargs):
        count, hidden = len(input_ids), self.model.config.hidden_size
        shape = (count, TOKENS + input_ids.shape[1])
        before = lambda values, fill: torch.cat((torch.full((count, TOKENS), fill), values), dim=1)
        words = self.model.get_input_embeddings()(before(input_ids, 0))
        if "token_type_ids" in kwargs:
            kwargs["token_type_ids"] = before(kwargs["token_type_ids"], 0)

        def put(vectors, first):
            def hook(module, inputs, output):
                # DeBERTa projects its table of positions by the same module.
                if output.shape[:2] != shape:
                    return output
                columns = slice(first, first + hidden)
                own = output[:, TOKENS:, columns]
                keys = torch.cat((vectors.expand(count, -1, -1), own), dim=1)
                return torch.cat((output[..., :first], keys, output[..., first + hidden :]), dim=-1)

            return hook

        def leave_out(module, inputs, output):
            output.last_hidden_state = output.last_hidden_state[:, TOKENS:]
            return output

        handles = [self.model.base_model.register_forward_hook(leave_out)]
        vectors = self.prompt_encoder["embedding"].weight.split(hidden, dim=1)
        for layer, pair in enumerate(self.projections()):
            for kind, (module, first) in enumerate(pair):
                handles.append(module.register_forward_hook(put(vectors[2 * layer + kind], first)))
        output = self.model(inputs_embeds=words, attention_mask=before(attention_mask, 1), **kwargs)
        for handle in handles:
            handle.remove()
        return output


def make(name, case, method, tensors):
    folder = HERE / name
    oracle = json.loads((folder / "oracle.json").read_text())
    longest = max(len(sequence["input_ids"]) for sequence in oracle["sequences"]) - TOKENS
    sequences = [{key: values[:longest] for key, values in s.items()} for s in oracle["sequences"]]
    batch = padded(sequences, getattr(case["config"], "type_vocab_size", 0))

    model = load(case, folder)
    takes_keys = "past_key_values" in inspect.signature(model.base_model.forward).parameters
    model = Prefixed(model) if method == "prefix_tuning" and not takes_keys else with_peft(model, method)
    model.eval()
    for parameter_name, parameter in model.named_parameters():
        if "prompt_encoder" not in parameter_name:
            parameter.requires_grad_(False)
            continue
        with torch.no_grad():
            parameter.copy_((0.5 * torch.randn(parameter.shape)).float())
        tensors[f"{name}.{method}.value.{our_name(parameter_name)}"] = parameter.detach().float().clone()
    logits = model(**batch).logits
    gradients(model, logits, torch.tensor(oracle["labels"]), f"{name}.{method}.gradient", tensors)
    return logits.tolist()


def main():
    torch.manual_seed(20240302)
    tensors = {}
    logits = {name: {method: make(name, case, method, tensors) for method in METHODS} for name, case in CASES.items()}
    made_with = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    oracle = {"made_with": made_with, "num_virtual_tokens": TOKENS, "logits": logits}
    (HERE / "prompts.json").write_text(json.dumps(oracle) + "\n")
    save_file(tensors, HERE / "prompts.safetensors")


if __name__ == "__main__":
    main()
