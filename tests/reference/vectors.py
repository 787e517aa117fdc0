"""Vectors inside a model, by forward hooks, one prompt after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import layout

FINAL_NORM = {"gpt2": "transformer.ln_f", "llama": "model.norm"}


@torch.no_grad()
def vectors(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[Tensor]]:
    """By name, one tensor [tokens, d] a layer; "final" is the output of the final norm alone."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("key", "mlp", "attention", "residual", "final")}

    def keep(name: str):
        def hook(_module, inputs, output):
            value = inputs[0] if name == "key" else output[0] if isinstance(output, tuple) else output
            found[name].append(value[0].clone() if value.dim() == 3 else value.clone())

        return hook

    modules = [("final", model.get_submodule(FINAL_NORM[model.config.model_type]))]
    for layer in range(model.config.num_hidden_layers):
        modules += [("key", layout.down(model, layer)), ("mlp", layout.mlp(model, layer))]
        modules += [("attention", layout.attention(model, layer)), ("residual", layout.block(model, layer))]
    handles = [module.register_forward_hook(keep(name)) for name, module in modules]
    try:
        model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found
