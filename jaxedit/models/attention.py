"""Attention over earlier tokens (memory) and new ones, in arrays whose heads come before their tokens.

So every product is a batch of plain matrix products, and what lies in memory is read as it lies.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a row without any visible key stays finite


class Memory(NamedTuple):
    """Keys and values of attention over K tokens that were run before, and where these tokens stand."""

    key: Float[Array, "N H K D"]
    value: Float[Array, "N H K D"]
    position: Int[Array, "N K"]

    def by_tokens(self, function: Callable[..., Array], *others: "Memory") -> "Memory":
        """`function(leaf, ..., axis)` of every leaf, here and in the others, and of its axis of tokens."""
        leaves = zip(self, *others, (2, 2, 1), strict=True)
        return Memory(*(function(*each) for each in leaves))


def extended(memory: Memory, new: Memory, slot: Int[Array, ""] | None) -> Memory:
    """The memory with new tokens behind it, or in place of its tokens from `slot` on."""

    def joined(old: Array, new: Array, axis: int) -> Array:
        if slot is None:
            return jnp.concatenate([old, new], axis)
        return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)

    return memory.by_tokens(joined, new)


def attend(
    query: Float[Array, "N H T D"],
    parts: Sequence[Memory],
    mask: Bool[Array, "N T K"],
    scale: float,
    cap: float | None,
) -> Float[Array, "N T H*D"]:
    """Attention over the K tokens of all parts one after the other, with scores kept within +-cap.

    Parts are multiplied each by itself: joined, those that nothing differentiates would be copied and get gradients.
    """
    n, heads, t, d = query.shape
    shared = parts[0].key.shape[1]  # each by heads // shared queries
    grouped = query.reshape(n, shared, -1, d)
    scores = jnp.concatenate([product(grouped, jnp.swapaxes(part.key, 2, 3)) for part in parts], axis=-1)
    scores = scores.astype(jnp.float32).reshape(n, shared, -1, t, mask.shape[-1]) * scale
    scores = scores if cap is None else capped(scores, cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    weights = weights.astype(parts[0].value.dtype).reshape(n, shared, -1, mask.shape[-1])
    ends = list(itertools.accumulate(part.value.shape[2] for part in parts))
    shares = jnp.split(weights, ends[:-1], axis=-1)
    out = functools.reduce(
        jnp.add, (product(share, part.value) for share, part in zip(shares, parts, strict=True))
    )
    return jnp.swapaxes(out.reshape(n, heads, t, d), 1, 2).reshape(n, t, -1)


def product(left: Float[Array, "N H A B"], right: Float[Array, "N H B C"]) -> Float[Array, "N H A C"]:
    """Of every head's matrices."""
    return jnp.matmul(left, right, precision="highest")


def capped(x: Float[Array, "*N"], cap: float) -> Float[Array, "*N"]:
    """x where it is small, never beyond +-cap."""
    return cap * jnp.tanh(x / cap)
