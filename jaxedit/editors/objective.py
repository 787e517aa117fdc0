"""What gradient editors minimise: the negative log-likelihood of facts' targets, or of running text."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxedit.editors.optimiser import Objective, OptimiserConfig, Trained
from jaxedit.lookup import whole_rows
from jaxedit.models.decoder import Decoder, causal_mask, positions
from jaxedit.types import Requests, TextBatch

Bind = Callable[[Trained], Decoder]
"""The decoder with what is trained in its place."""

T = TypeVar("T")
Scored = Literal["target_new", "prompt_last"]


@dataclass(frozen=True, kw_only=True)
class FactConfig(OptimiserConfig):
    """Descent on the target tokens' mean NLL after the bare prompt."""

    objective: Scored = "target_new"
    """Each target token after the ones before it; "prompt_last" scores all of them at the prompt's last
    token, as some published implementations of FT do."""


def target_nll(
    bind: Bind, start: Trained, requests: Requests, first: int, scored: Scored, pieces: int = 1
) -> Objective:
    """Mean NLL of every fact's target. Layers below `first` do not depend on what is trained: run once.

    With `first` 0 nothing is kept, so embeddings may be trained too. The facts are read in `pieces`.
    """
    tokens, valid, predict_at = whole_rows(requests)
    if scored == "prompt_last":
        predict_at = jnp.broadcast_to(predict_at[:, :1], predict_at.shape)
    at, mask = positions(valid), causal_mask(valid)
    decoder = bind(start)
    above = range(first, decoder.config.n_layers)
    below, _, _ = decoder.run(decoder.embed(tokens, at), range(first), position=at, mask=mask)
    counted = requests.target_mask / jnp.maximum(requests.target_mask.sum(axis=-1, keepdims=True), 1)

    def loss(weights: Trained, rows: tuple[Array, ...]) -> Float[Array, "B"]:
        decoder, (tokens, at, mask, below, predict_at, target, counted) = bind(weights), rows
        h = below if first else decoder.embed(tokens, at)
        h, _, _ = decoder.run(h, above, position=at, mask=mask)
        h = jnp.take_along_axis(h, predict_at[..., None], axis=1)
        return jnp.sum(_nll(decoder.logits(h), target) * counted, axis=-1)

    rows = (tokens, at, mask, below, predict_at, requests.target, counted)
    return Objective(
        _in_pieces(loss, rows, pieces), requests.weight / jnp.maximum(requests.weight.sum(), 1.0)
    )


def text_nll(bind: Bind, batch: TextBatch, pieces: int = 1) -> Objective:
    """Mean NLL of every row's tokens after its first; every token of the batch counts the same.

    The rows are read in `pieces`.
    """
    counted = _counted(batch).sum(axis=-1)

    def loss(weights: Trained, batch: TextBatch) -> Float[Array, "N"]:
        counted = _counted(batch)
        nll = _nll(bind(weights)(batch.tokens[:, :-1], batch.valid[:, :-1]), batch.tokens[:, 1:])
        return jnp.sum(nll * counted, axis=-1) / jnp.maximum(counted.sum(axis=-1), 1.0)

    return Objective(_in_pieces(loss, batch, pieces), counted / jnp.maximum(counted.sum(), 1.0))


def _counted(batch: TextBatch) -> Float[Array, "N L-1"]:
    return (batch.valid[:, :-1] & batch.valid[:, 1:]).astype(jnp.float32)


def _in_pieces(
    loss: Callable[[Trained, T], Float[Array, "B"]], rows: T, pieces: int
) -> Callable[[Trained], Float[Array, "B"]]:
    """The loss of all rows; its gradient holds the activations of one piece, which it computes again.

    Every `pieces`th row makes a piece, so that each has rows of every device.
    """
    if pieces == 1:
        return lambda weights: loss(weights, rows)

    def turned(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(-1, pieces, *x.shape[1:]), 0, 1)

    def each(weights: Trained) -> Float[Array, "B"]:
        once = jax.checkpoint(functools.partial(loss, weights))
        return jax.lax.map(once, jax.tree.map(turned, rows)).T.reshape(-1)

    return each


def _nll(logits: Float[Array, "*N vocab"], target: Int[Array, "*N"]) -> Float[Array, "*N"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, target)
