"""What gradient editors minimise: the negative log-likelihood of facts' targets, or of running text."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxedit.editors.optimiser import Descent, Objective, OptimiserConfig, Trained, descend
from jaxedit.lookup import whole_rows
from jaxedit.models.decoder import Decoder, causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.models.packing import in_smallest_room
from jaxedit.models.rows import run_rows
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
    shares: tuple[float, ...] = (0.36,)
    """Of the tokens that a batch has room for: sizes that the descent is compiled for beside the whole. Prompts of
    `world` and CounterFact fill 0.23 to 0.33 in batches of ten, 0.18 to 0.34 of nine facts in ten by themselves."""


def learn_facts(
    model: Model,
    bind: Bind,
    start: Trained,
    state: optax.OptState,
    transform: optax.GradientTransformation,
    requests: Requests,
    first: int,
    config: FactConfig,
    project: Callable[[Trained], Trained] = lambda weights: weights,
) -> Descent:
    """`descend` on `target_nll` of a batch, with the smallest room that holds the tokens of its facts.

    Where facts are divided among devices, or a batch is cut into pieces, rows stay padded.
    """

    def run(places: int | None) -> Descent:
        objective = target_nll(bind, start, requests, first, config.objective, model.placement.pieces, places)
        return descend(objective, start, state, transform, config, project)

    if model.placement.parts * model.placement.pieces > 1:
        return run(None)
    real = real_tokens(requests)
    return in_smallest_room(run, real.sum(), real.size, config.shares)


def real_tokens(requests: Requests) -> Bool[Array, "B M"]:
    """Tokens of `whole_rows` that are no padding, of facts that are none."""
    _, valid, _ = whole_rows(requests)
    return valid & (requests.weight > 0)[:, None]


def target_nll(
    bind: Bind,
    start: Trained,
    requests: Requests,
    first: int,
    scored: Scored,
    pieces: int = 1,
    places: int | None = None,
) -> Objective:
    """Mean NLL of every fact's target. Layers below `first` do not depend on what is trained: run once.

    With `first` 0 nothing is kept, so embeddings may be trained too. The facts are read in `pieces`; or, with
    `places` for their real tokens, without padding.
    """
    tokens, valid, predict_at = whole_rows(requests)
    if scored == "prompt_last":
        predict_at = jnp.broadcast_to(predict_at[:, :1], predict_at.shape)
    at, mask = positions(valid), causal_mask(valid)
    real = real_tokens(requests)
    decoder = bind(start)
    above = range(first, decoder.config.n_layers)
    run = functools.partial(run_rows, places=places)
    below = run(decoder, decoder.embed(tokens, at), range(first), position=at, mask=mask, real=real)
    counted = requests.target_mask / jnp.maximum(requests.target_mask.sum(axis=-1, keepdims=True), 1)

    def loss(weights: Trained, rows: tuple[Array, ...]) -> Float[Array, "B"]:
        decoder, (tokens, at, mask, real, below, predict_at, target, counted) = bind(weights), rows
        h = below if first else decoder.embed(tokens, at)
        h = run(decoder, h, above, position=at, mask=mask, real=real)
        h = jnp.take_along_axis(h, predict_at[..., None], axis=1)
        return jnp.sum(_nll(decoder.logits(h), target) * counted, axis=-1)

    rows = (tokens, at, mask, real, below, predict_at, requests.target, counted)
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
