"""Second moments of keys over a corpus."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from . import layout


@torch.no_grad()
def second_moments(model: PreTrainedModel, blocks: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """C0 = mean of k k^T over all tokens, per layer, float64; `blocks` are unpadded ids [n, length]."""
    sums: dict[int, Tensor] = {}
    handles = []
    for layer in layers:

        def add(_module: torch.nn.Module, inputs: tuple[Tensor], _output: Tensor, layer: int = layer) -> None:
            keys = inputs[0][0].double()  # [length, d_k]
            sums[layer] = sums.get(layer, 0) + keys.T @ keys

        handles.append(layout.down(model, layer).register_forward_hook(add))
    try:
        for row in blocks:
            model(input_ids=row[None].to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: total / blocks.numel() for layer, total in sums.items()}
