"""Gradient descent by its formulas: AdamW, the losses of facts and of text, adapters beside their matrices."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import layout
from .facts import Fact, pad, prompt_row, target_ids, with_target

Adapters = dict[str, tuple[Tensor, Tensor]]  # name of a projection -> A [r, in], B [out, r]

LLAMA = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


class AdamW:
    """Adam with decoupled decay of everything but vectors, gradients first clipped by their joint norm.

    Moments and step count live as long as the object.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: Callable[[int], float],
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        self.parameters, self.lr, self.weight_decay, self.clip = list(parameters), lr, weight_decay, clip
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.count = 0

    def step(self, loss: Tensor) -> None:
        """One update against the gradient of `loss`."""
        gradients = torch.autograd.grad(loss, self.parameters)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        shrink = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        rate = self.lr(self.count)
        self.count += 1
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
                g = g * shrink
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g * g)
                adam = (m / (1 - 0.9**self.count)) / ((v / (1 - 0.999**self.count)).sqrt() + 1e-8)
                decay = self.weight_decay * p if p.dim() > 1 else 0.0
                p.sub_(rate * (adam + decay))

    def minimise(self, loss: Callable[[], Tensor], steps: int) -> list[float]:
        """`steps` updates; the losses before each."""
        losses = []
        for _ in range(steps):
            value = loss()
            losses.append(value.item())
            self.step(value)
        return losses


def warmed_cosine(lr: float, warmup: int, length: int) -> Callable[[int], float]:
    """Linear from 0 to lr in `warmup` steps, then half a cosine down to 0 at `length`."""

    def at(step: int) -> float:
        if step < warmup:
            return lr * step / warmup
        return lr * (1 + math.cos(math.pi * min((step - warmup) / (length - warmup), 1.0))) / 2

    return at


def fact_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    prompt_last: bool = False,
) -> Callable[[], Tensor]:
    """Mean over facts of mean_t -log p(target_t | prompt, target_<t).

    With `prompt_last` it is -log p(target_t | prompt) for all t: the targets are not even read.
    """
    targets = [target_ids(tokenizer, fact.target) for fact in facts]
    prompts = [prompt_row(tokenizer, fact) for fact in facts]
    rows = [with_target(row, target) for row, target in zip(prompts, targets, strict=True)]
    batch = pad(prompts if prompt_last else rows)

    def loss() -> Tensor:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        log_p = torch.log_softmax(logits, dim=-1)
        of_facts = []
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            end = len(prompt.ids) - 1
            at = [end + (0 if prompt_last else step) for step in range(len(target))]
            of_facts.append(-log_p[row, at, target].mean())
        return torch.stack(of_facts).mean()

    return loss


def text_loss(model: PreTrainedModel, rows: Tensor) -> Callable[[], Tensor]:
    """Mean -log p of all tokens of rows [N, L] but the first of each."""

    def loss() -> Tensor:
        log_p = torch.log_softmax(model(input_ids=rows, use_cache=False).logits[:, :-1], dim=-1)
        return -log_p.gather(-1, rows[:, 1:, None]).mean()

    return loss


def projection(model: PreTrainedModel, layer: int, name: str) -> nn.Module:
    """The module of a projection; of architectures other than Llama's only the down-projection."""
    if layout.layout_of(model).down == "down_proj":
        return layout.block(model, layer).get_submodule(LLAMA[name])
    assert name == "mlp.down"
    return layout.down(model, layer)


@contextmanager
def adapted(modules: Mapping[str, nn.Module], adapters: Adapters, scale: float) -> Iterator[None]:
    """Each module's output gains scale * B A x; its own matrix stays as it is."""
    handles = []
    for name, module in modules.items():
        A, B = adapters[name]

        def hook(_module: nn.Module, inputs: tuple, output: Tensor, A: Tensor = A, B: Tensor = B) -> Tensor:
            return output + scale * (inputs[0] @ A.T) @ B.T

        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
