"""Keys and values of a layer at the lookup token, under every context, and their means."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import layout
from .facts import Fact, pad, prompt_row

Mean = Literal["plain", "half"]


class Features(NamedTuple):
    """At the lookup token of each context: the down-projection's input and the outputs of MLP and block."""

    key: Tensor  # [C, d_k]
    mlp: Tensor  # [C, d_model]
    block: Tensor  # [C, d_model]


@torch.no_grad()
def lookup_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[str],
    layer: int,
) -> Features:
    """One forward pass of all contexts, padded, with the present weights."""
    batch = pad([prompt_row(tokenizer, fact, context) for context in contexts], model.device)
    seen: dict[str, Tensor] = {}

    def keep_key(_module: torch.nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        seen["key"] = inputs[0]

    def keep_mlp(_module: torch.nn.Module, _inputs: tuple, output: Tensor) -> None:
        seen["mlp"] = output

    def keep_block(_module: torch.nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        seen["block"] = output[0] if isinstance(output, tuple) else output

    handles = [
        layout.down(model, layer).register_forward_hook(keep_key),
        layout.mlp(model, layer).register_forward_hook(keep_mlp),
        layout.block(model, layer).register_forward_hook(keep_block),
    ]
    try:
        model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    rows = torch.arange(len(batch.lookup), device=batch.lookup.device)
    by_row = (seen[name].reshape(*batch.ids.shape, -1) for name in Features._fields)  # OPT gives rows as one
    return Features(*(features[rows, batch.lookup] for features in by_row))


def bare(features: Tensor, contexts: Sequence[str]) -> Tensor:
    """The row of the bare prompt, [d]."""
    return features[list(contexts).index("")]


def mean_over_contexts(features: Tensor, contexts: Sequence[str], mean: Mean) -> Tensor:
    """[C, d] -> [d]: "plain" = mean of all; "half" = 1/2 bare + 1/2 mean of the prefixed (bare if none)."""
    if mean == "plain":
        return features.mean(dim=0)
    prefixed = [row for row, context in zip(features, contexts, strict=True) if context]
    if not prefixed:
        return bare(features, contexts)
    return bare(features, contexts) / 2 + torch.stack(prefixed).mean(dim=0) / 2
