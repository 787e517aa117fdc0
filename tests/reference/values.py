"""Value optimisation: the vector that, placed at the lookup token, makes the model say the target."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import layout
from .facts import Fact, kl_row, pad, prompt_row, target_ids, with_target

Site = Literal["mlp", "block", "attention+mlp"]


class Terms(NamedTuple):
    """loss = nll + kl + decay, the weights kl and wd already in them.

    `right[context][t]` says whether target t is the arg-max there.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    decay: Tensor
    right: list[list[bool]]


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of one value optimisation."""

    lr: float = 0.5
    steps: int = 20
    weight_decay: float = 0.5
    clamp: float = 4.0
    kl: float = 0.0625
    stop_loss: float = 0.05
    patience: int | None = None
    quirks: bool = False


@dataclass(frozen=True)
class Value:
    """What an optimisation found; `first_gradient` is dL/ddelta at delta = 0, None if none was taken.

    Of the two vectors of "attention+mlp" the rows are attention and MLP.
    """

    delta: Tensor  # [d_model]
    h0: Tensor  # [d_model], the unedited value on the bare prompt
    losses: list[float]  # one a forward pass, so one more than updates
    first_gradient: Tensor | None
    updates: int

    @property
    def z(self) -> Tensor:
        """h0 + delta."""
        return self.h0 + self.delta


@contextmanager
def added(site: nn.Module, lookup: Tensor, delta: Tensor) -> Iterator[list[Tensor]]:
    """Add delta to the output of `site` at every row's lookup token; yields a list of the outputs before."""
    rows = torch.arange(len(lookup), device=lookup.device)
    before: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        given = output[0] if isinstance(output, tuple) else output
        hidden = given.reshape(len(rows), -1, given.shape[-1])  # OPT's MLP gives all rows as one
        before.append(hidden[rows, lookup].detach())
        changed = hidden.index_put((rows, lookup), hidden[rows, lookup] + delta).reshape(given.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = site.register_forward_hook(hook)
    try:
        yield before
    finally:
        handle.remove()


class Objective:
    """The loss as a function of delta [d_model], or of [2, d_model] for "attention+mlp".

    L = mean_i mean_t -log p(target_t | context_i(prompt), target_<t)
        + kl * KL(p_delta || p_0) + wd * sum over sites of ||delta|| / ||h0||^2
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fact: Fact,
        contexts: Sequence[str],
        layer: int,
        site: Site,
        weight_decay: float,
        kl: float,
    ) -> None:
        self.model, self.weight_decay, self.kl = model, weight_decay, kl
        places = {"attention": layout.attention, "mlp": layout.mlp, "block": layout.block}
        self.sites = [places[name](model, layer) for name in site.split("+")]
        self.target = target_ids(tokenizer, fact.target)
        prompts = [prompt_row(tokenizer, fact, context) for context in contexts]
        self.ends = [len(row.ids) - 1 for row in prompts]  # position that predicts the first target token
        rows = [with_target(row, self.target) for row in prompts] + [kl_row(tokenizer, fact.subject)]
        self.batch = pad(rows, model.device)

        zero = torch.zeros(len(self.sites), model.config.hidden_size, dtype=model.dtype, device=model.device)
        with torch.no_grad():
            log_p, before = self.forward(zero if len(self.sites) > 1 else zero[0])
        h0 = before[:, list(contexts).index("")]
        self.h0 = h0 if len(self.sites) > 1 else h0[0]
        self.log_p0 = self.kl_log_probabilities(log_p)

    def forward(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of every position of every row; by site the lookup tokens' values before delta."""
        vectors = delta.reshape(len(self.sites), -1)
        with ExitStack() as hooks:
            before = [
                hooks.enter_context(added(site, self.batch.lookup, vector))
                for site, vector in zip(self.sites, vectors, strict=True)
            ]
            logits = self.model(
                input_ids=self.batch.ids, attention_mask=self.batch.mask, use_cache=False
            ).logits
        return torch.log_softmax(logits, dim=-1), torch.stack([values[0] for values in before])

    def kl_log_probabilities(self, log_p: Tensor) -> Tensor:
        """Those of the last row at the subject's last token."""
        return log_p[-1, self.batch.lookup[-1]]

    def __call__(self, delta: Tensor) -> Terms:
        """The loss and its three terms."""
        log_p, _ = self.forward(delta)
        of_contexts, right = [], []
        for row, end in enumerate(self.ends):
            of_tokens = [-log_p[row, end + step, token] for step, token in enumerate(self.target)]
            of_contexts.append(torch.stack(of_tokens).mean())
            right.append(
                [int(log_p[row, end + step].argmax()) == token for step, token in enumerate(self.target)]
            )
        nll = torch.stack(of_contexts).mean()
        log_pd = self.kl_log_probabilities(log_p)
        kl = self.kl * (log_pd.exp() * (log_pd - self.log_p0)).sum()
        decay = self.weight_decay * (delta.norm(dim=-1) / self.h0.norm(dim=-1) ** 2).sum()
        return Terms(nll + kl + decay, nll, kl, decay, right)


def optimise_value(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[str],
    layer: int,
    site: Site = "mlp",
    lr: float = 0.5,
    steps: int = 20,
    weight_decay: float = 0.5,
    clamp: float = 4.0,
    kl: float = 0.0625,
    stop_loss: float = 0.05,
    patience: int | None = None,
    quirks: bool = False,
) -> Value:
    """argmin L(delta) by Adam from delta = 0, projected on ||delta|| <= clamp * ||h0|| after each update.

    A step: forward, loss; stop if loss < stop_loss; stop if it was the last step; backward, Adam, project.
    With `patience`, also stop at the step at which, for the `patience`-th time, the target is the arg-max at
    all its tokens in every context; `quirks`: five of its tokens in the prefixed contexts, whatever their number.
    `contexts` must hold "" (the bare prompt).
    """
    with layout.frozen(model):
        objective = Objective(model, tokenizer, fact, contexts, layer, site, weight_decay, kl)
        bound = clamp * objective.h0.norm(dim=-1, keepdim=True)
        delta = torch.zeros_like(objective.h0, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=lr)
        losses: list[float] = []
        first_gradient: Tensor | None = None
        updates = hits = 0
        for step in range(steps):
            terms = objective(delta)
            loss, right = terms.loss, terms.right
            losses.append(loss.item())
            if quirks:
                prefixed = [r for r, context in zip(right, contexts, strict=True) if context]
                hits += sum(map(sum, prefixed)) == 5
            else:
                hits += all(map(all, right))
            if losses[-1] < stop_loss or hits == patience or step == steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            if step == 0 and delta.grad is not None:
                first_gradient = delta.grad.clone()
            adam.step()
            updates += 1
            with torch.no_grad():
                norm = delta.norm(dim=-1, keepdim=True)
                delta.mul_(torch.where(norm > bound, bound / norm, 1.0))
    return Value(delta.detach(), objective.h0, losses, first_gradient, updates)
