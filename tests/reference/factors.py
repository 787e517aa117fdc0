"""Token by token, the input of a linear layer and the edit loss's gradient at its output; float64, plain loops."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import layout
from .facts import Fact, prompt_row, target_ids

NAMES = {
    "gpt2": {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"},
    "llama": {"mlp.up": "mlp.up_proj", "mlp.gate": "mlp.gate_proj", "mlp.down": "mlp.down_proj"},
}

Matrix = tuple[int, str]  # layer and name, as in NAMES


class Token(NamedTuple):
    """One token at one layer."""

    u: Tensor  # [d_in]
    v: Tensor  # [d_out]


def module(model: PreTrainedModel, matrix: Matrix) -> nn.Module:
    """The linear layer."""
    layer, name = matrix
    return layout.block(model, layer).get_submodule(NAMES[model.config.model_type][name])


@torch.no_grad()
def add(model: PreTrainedModel, matrix: Matrix, delta: Tensor) -> None:
    """W <- W + delta, delta [d_in, d_out]."""
    stored = module(model, matrix).get_parameter("weight")
    stored.add_(delta if layout.layout_of(model).in_out else delta.T)


def loss_of(model: PreTrainedModel, ids: list[int], target: list[int]) -> Tensor:
    """mean_t -log p(target_t) at the last len(target) positions."""
    log_p = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(dim=-1)
    end = len(ids) - len(target)
    return torch.stack([-log_p[end + step, token] for step, token in enumerate(target)]).mean()


def factors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    matrices: Sequence[Matrix],
    which: str,
) -> dict[Matrix, list[Token]]:
    """Of every fact by itself: "all" its tokens, or those that predict the "answer"; without tokens whose v is 0."""
    found: dict[Matrix, list[Token]] = {matrix: [] for matrix in matrices}
    for fact in facts:
        target = target_ids(tokenizer, fact.target)
        ids = prompt_row(tokenizer, fact).ids + target[:-1]
        seen: dict[Matrix, tuple[Tensor, Tensor]] = {}

        def keep(matrix: Matrix, inputs: tuple, output: Tensor, seen: dict = seen) -> None:
            seen[matrix] = (inputs[0], output)

        handles = [
            module(model, matrix).register_forward_hook(
                lambda _, inputs, output, matrix=matrix: keep(matrix, inputs, output)
            )
            for matrix in matrices
        ]
        loss = loss_of(model, ids, target)
        for handle in handles:
            handle.remove()
        slopes = torch.autograd.grad(loss, [seen[matrix][1] for matrix in matrices])
        first = 0 if which == "all" else len(ids) - len(target)
        for matrix, slope in zip(matrices, slopes, strict=True):
            for place in range(first, len(ids)):
                if slope[0, place].any():
                    found[matrix].append(Token(seen[matrix][0][0, place].detach(), slope[0, place]))
    return found
