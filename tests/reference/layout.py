"""Where the parts of an edit lie in a Hugging Face decoder, and how its down-projections are written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Layout(NamedTuple):
    """Module paths of one architecture; `in_out`: weights are stored [in, out] (Conv1D), not [out, in].

    `down` lies in `mlp`; "" where they are one: OPT has no module for its MLP.
    """

    blocks: str
    mlp: str
    down: str
    in_out: bool
    attention: str = "self_attn"


LLAMA = Layout("model.layers", "mlp", "down_proj", in_out=False)
LAYOUTS = {
    "gpt2": Layout("transformer.h", "mlp", "c_proj", in_out=True, attention="attn"),
    "gptj": Layout("transformer.h", "mlp", "fc_out", in_out=False, attention="attn"),
    "gpt_neox": Layout("gpt_neox.layers", "mlp", "dense_4h_to_h", in_out=False, attention="attention"),
    "opt": Layout("model.decoder.layers", "fc2", "", in_out=False),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "olmo2"),
        LLAMA,
    ),
}


def layout_of(model: PreTrainedModel) -> Layout:
    """The row of the table for this model; KeyError for an architecture that is not in it."""
    return LAYOUTS[model.config.model_type]


def block(model: PreTrainedModel, layer: int) -> nn.Module:
    """The whole decoder block."""
    return model.get_submodule(f"{layout_of(model).blocks}.{layer}")


def mlp(model: PreTrainedModel, layer: int) -> nn.Module:
    """The MLP of one block."""
    return block(model, layer).get_submodule(layout_of(model).mlp)


def attention(model: PreTrainedModel, layer: int) -> nn.Module:
    """The attention of one block, output projection included."""
    return block(model, layer).get_submodule(layout_of(model).attention)


def down(model: PreTrainedModel, layer: int) -> nn.Module:
    """The MLP's down-projection: its input is the key, its output (bias included) the value."""
    return mlp(model, layer).get_submodule(layout_of(model).down)


def stored(model: PreTrainedModel, layer: int) -> nn.Parameter:
    """The down-projection's weight itself, as the model stores it."""
    return down(model, layer).get_parameter("weight")


def weight(model: PreTrainedModel, layer: int) -> Tensor:
    """W [d_v, d_k] of the down-projection in float64 (a copy), so that a value is W k + b."""
    copied = stored(model, layer).detach().to(torch.float64, copy=True)
    return copied.T if layout_of(model).in_out else copied


def bias(model: PreTrainedModel, layer: int) -> Tensor:
    """b [d_v] in float64; zeros where the projection has none."""
    projection = down(model, layer)
    if projection.bias is None:
        return torch.zeros_like(weight(model, layer)[:, 0])
    return projection.get_parameter("bias").detach().double()


@torch.no_grad()
def add_to_weight(model: PreTrainedModel, layer: int, delta: Tensor) -> None:
    """W <- W + delta, delta [d_v, d_k]; summed in float64, stored in the model's dtype."""
    changed = weight(model, layer) + delta.double()
    stored(model, layer).copy_(changed.T if layout_of(model).in_out else changed)


@contextmanager
def restored(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """Put the down-projections of these layers back, bit by bit, at the end of the `with` block."""
    before = {layer: stored(model, layer).detach().clone() for layer in layers}
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weights in before.items():
                stored(model, layer).copy_(weights)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter asks for a gradient inside; afterwards each does what it did before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, asked in before:
            parameter.requires_grad_(asked)
