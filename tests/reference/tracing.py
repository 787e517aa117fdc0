"""Causal tracing with forward hooks: every restored run on its own, all tokens through all layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import layout


class Traced(NamedTuple):
    """Probabilities of the target after one prompt; means over the noise samples."""

    clean: float
    corrupted: float
    restored: Tensor  # [tokens from the subject's first on, layers]


@torch.no_grad()
def causal_trace(
    model: PreTrainedModel, ids: Sequence[int], first: int, target: int, noise: Tensor, site: str, window: int
) -> Traced:
    """noise [K, n, d_model] is added to the embeddings of the n tokens from index `first` on.

    Restored: one token, at the outputs of the layers l - window // 2 up to, not including, that plus `window`.
    """
    layers, length = model.config.num_hidden_layers, len(ids)
    tokens = torch.tensor([list(ids)])
    modules = [_module(model, layer, site) for layer in range(layers)]
    clean: list[Tensor] = []
    with _hooked([(module, lambda out: clean.append(out.clone()) or out) for module in modules]):
        p_clean = _probability(model, tokens, target)

    def corrupted(sample: Tensor, put_back: dict[int, int]) -> float:
        """put_back: layer -> token."""

        def corrupt(out: Tensor) -> Tensor:
            out = out.clone()
            out[0, first : first + len(sample)] += sample
            return out

        def restore(layer: int, token: int) -> Callable[[Tensor], Tensor]:
            def change(out: Tensor) -> Tensor:
                out = out.clone()
                out[0, token] = clean[layer][0, token]
                return out

            return change

        hooks = [(modules[layer], restore(layer, token)) for layer, token in put_back.items()]
        with _hooked([(model.get_input_embeddings(), corrupt), *hooks]):
            return _probability(model, tokens, target)

    def mean(put_back: dict[int, int]) -> float:
        return sum(corrupted(sample, put_back) for sample in noise) / len(noise)

    restored = torch.zeros(length - first, layers, dtype=torch.float64)
    for token in range(first, length):
        for layer in range(layers):
            start = layer - window // 2
            chosen = {at: token for at in range(start, start + window) if 0 <= at < layers}
            restored[token - first, layer] = mean(chosen)
    return Traced(p_clean, mean({}), restored)


def _module(model: PreTrainedModel, layer: int, site: str) -> nn.Module:
    if site == "residual":
        return layout.block(model, layer)
    if site == "mlp":
        return layout.mlp(model, layer)
    return layout.attention(model, layer)


def _probability(model: PreTrainedModel, tokens: Tensor, target: int) -> float:
    logits = model(input_ids=tokens, use_cache=False).logits[0, -1]
    return float(logits.double().softmax(dim=-1)[target])


@contextmanager
def _hooked(changes: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """Each module's output (the first, where there are several) is replaced by what its function makes of it."""

    def hook(change: Callable[[Tensor], Tensor]):
        def replaced(_module: nn.Module, _inputs: tuple, output: Tensor | tuple):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return replaced

    handles = [module.register_forward_hook(hook(change)) for module, change in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
