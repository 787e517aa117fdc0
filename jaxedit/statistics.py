"""Uncentred second moments of MLP keys, C0 = E[k k^T], for any number of layers in one pass over a text."""

import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxedit.errors import StatisticsError
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model

# Of rows that a symmetric sum is made of, each up to its diagonal: 9/16 of the whole product's work.
STRIPS = 8


class Moments(NamedTuple):
    """Running sums of k k^T by layer, right on and below the diagonal, and how many tokens are in them."""

    total: dict[int, Float[Array, "d_k d_k"]]
    tokens: Int[Array, ""]


def init(model: Model, layers: Iterable[int]) -> Moments:
    """Empty sums. Raises ConfigError for a layer out of range."""
    width = model.config.d_ff
    total = {layer: jnp.zeros((width, width), jnp.float32) for layer in model.edited_paths(layers)}
    return Moments(total, jnp.zeros((), jnp.int32))


def update(
    model: Model, params: dict[str, Array], moments: Moments, blocks: Int[Array, "N T"], valid: Array
) -> Moments:
    """Adds all valid tokens of N rows: one run up to the highest layer, float32 sums at highest precision."""
    decoder, position = model.bind(params), positions(valid)
    _, trace, _ = decoder.run(
        decoder.embed(blocks, position),
        range(max(moments.total) + 1),
        position=position,
        mask=causal_mask(valid),
        trace=("key",),
    )
    total = {}
    for layer, sums in moments.total.items():
        keys = jnp.where(valid[..., None], trace.key[layer], 0).astype(jnp.float32).reshape(-1, sums.shape[0])
        total[layer] = _with_products(sums, keys)
    return Moments(total, moments.tokens + valid.sum())


def _with_products(sums: Float[Array, "d d"], keys: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """Adds `keys^T keys` on and below the diagonal."""
    width = len(sums)
    edges = [width * strip // STRIPS for strip in range(STRIPS + 1)]
    for start, stop in itertools.pairwise(edges):
        strip = jnp.matmul(keys[:, start:stop].T, keys[:, :stop], precision="highest")
        sums = sums.at[start:stop, :stop].add(strip)
    return sums


def finalize(moments: Moments) -> dict[int, Float[Array, "d_k d_k"]]:
    """C0 by layer. Raises StatisticsError without tokens, or where a moment is not finite."""
    if not moments.tokens:
        raise StatisticsError("no tokens were counted, so there is no second moment: give a longer text")
    result = {
        layer: (jnp.tril(total) + jnp.tril(total, -1).T) / moments.tokens
        for layer, total in moments.total.items()
    }
    for layer, moment in result.items():
        if not bool(jnp.isfinite(moment).all()):
            raise StatisticsError(
                f"the second moment of layer {layer} is not finite: the model's activations overflow there, "
                f"or its weights hold NaN. Check the weights, or load them in float32."
            )
    return result


def second_moments(
    model: Model,
    params: dict[str, Array],
    blocks: Int[np.ndarray, "N T"],
    layers: Iterable[int],
    batch: int = 8,
) -> dict[int, Float[Array, "d_k d_k"]]:
    """C0 of the keys of `layers` over all tokens of `blocks`, in one pass."""
    step = jax.jit(functools.partial(update, model), donate_argnums=1)
    moments = init(model, layers)
    for start in range(0, len(blocks), batch):
        rows = blocks[start : start + batch]
        padded = np.zeros((batch, blocks.shape[1]), np.int32)
        padded[: len(rows)] = rows
        valid = np.zeros(padded.shape, bool)
        valid[: len(rows)] = True
        moments = step(params, moments, padded, valid)
    return finalize(moments)
