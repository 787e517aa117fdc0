"""What gradient editors minimise: the negative log-likelihood of facts' targets, or of running text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxedit.editors.optimiser import Objective, OptimiserConfig, Trained
from jaxedit.lookup import whole_rows
from jaxedit.models.decoder import Decoder, causal_mask, positions
from jaxedit.types import Requests, TextBatch

Bind = Callable[[Trained], Decoder]
"""The decoder with what is trained in its place."""

Scored = Literal["target_new", "prompt_last"]


@dataclass(frozen=True, kw_only=True)
class FactConfig(OptimiserConfig):
    """Descent on the target tokens' mean NLL after the bare prompt."""

    objective: Scored = "target_new"
    """Each target token after the ones before it; "prompt_last" scores all of them at the prompt's last
    token, as some published implementations of FT do."""


def target_nll(bind: Bind, start: Trained, requests: Requests, first: int, scored: Scored) -> Objective:
    """Mean NLL of every fact's target. Layers below `first` do not depend on what is trained: run once.

    With `first` 0 nothing is kept, so embeddings may be trained too.
    """
    tokens, valid, predict_at = whole_rows(requests)
    if scored == "prompt_last":
        predict_at = jnp.broadcast_to(predict_at[:, :1], predict_at.shape)
    at, mask = positions(valid), causal_mask(valid)
    decoder = bind(start)
    above = range(first, decoder.config.n_layers)
    below, _, _ = decoder.run(decoder.embed(tokens, at), range(first), position=at, mask=mask)
    counted = requests.target_mask / jnp.maximum(requests.target_mask.sum(axis=-1, keepdims=True), 1)

    def loss(weights: Trained) -> Float[Array, "B"]:
        decoder = bind(weights)
        h = below if first else decoder.embed(tokens, at)
        h, _, _ = decoder.run(h, above, position=at, mask=mask)
        h = jnp.take_along_axis(h, predict_at[..., None], axis=1)
        return jnp.sum(_nll(decoder.logits(h), requests.target) * counted, axis=-1)

    return Objective(loss, requests.weight / jnp.maximum(requests.weight.sum(), 1.0))


def text_nll(bind: Bind, batch: TextBatch) -> Objective:
    """Mean NLL of every row's tokens after its first; every token of the batch counts the same."""
    before, target = batch.tokens[:, :-1], batch.tokens[:, 1:]
    counted = (batch.valid[:, :-1] & batch.valid[:, 1:]).astype(jnp.float32)
    tokens = counted.sum(axis=-1)

    def loss(weights: Trained) -> Float[Array, "N"]:
        nll = _nll(bind(weights)(before, batch.valid[:, :-1]), target)
        return jnp.sum(nll * counted, axis=-1) / jnp.maximum(tokens, 1.0)

    return Objective(loss, tokens / jnp.maximum(tokens.sum(), 1.0))


def _nll(logits: Float[Array, "*N vocab"], target: Int[Array, "*N"]) -> Float[Array, "*N"]:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
