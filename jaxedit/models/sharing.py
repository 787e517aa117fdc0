"""Tokens that several rows have in common from their start: a causal model computes the same at each of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxedit.models.packing import Packing, packing_of


def owners(tokens: Int[Array, "N T"], valid: Bool[Array, "N T"]) -> Int[Array, "N T"]:
    """For every valid token the first one that has the same tokens before it, itself included.

    An index into the flattened tokens; without meaning at padding, which may be on either side.
    """
    rows, width = tokens.shape
    column = jnp.argsort(~valid, axis=1, stable=True)  # of every row's k-th valid token
    there = jnp.arange(width) < valid.sum(axis=1, keepdims=True)
    aligned = jnp.where(there, jnp.take_along_axis(tokens, column, axis=1), -1)

    def longer(owner: Int[Array, "N"], token: Int[Array, "N"]) -> tuple[Array, Array]:
        """The first row that begins with the same k tokens, from the one with the same k - 1."""
        order = jnp.lexsort((token, owner))
        pair = jnp.stack([owner, token])[:, order]
        differs = (pair[:, 1:] != pair[:, :-1]).any(axis=0)
        start = jnp.where(jnp.concatenate([jnp.ones(1, bool), differs]), jnp.arange(rows), 0)
        owner = jnp.zeros_like(owner).at[order].set(order[jax.lax.cummax(start)])
        return owner, owner

    owner = jax.lax.scan(longer, jnp.zeros(rows, jnp.int32), aligned.T)[1].T
    flat = owner * width + column[owner, jnp.arange(width)]
    return jnp.take_along_axis(flat, jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0), axis=1)


def owned(owner: Int[Array, "N T"], valid: Bool[Array, "N T"]) -> Bool[Array, "N T"]:
    """Tokens that are their own first."""
    return valid & (owner == jnp.arange(owner.size).reshape(owner.shape))


def shared_packing(owner: Int[Array, "N T"], valid: Bool[Array, "N T"], places: int) -> Packing:
    """A place for each token that is its own first; the others stand where their first stands.

    `places` must hold `owned(owner, valid).sum()`. For runs that nothing differentiates: `pack` and `unpack` are
    not each other's transpose here.
    """
    packing = packing_of(owned(owner, valid), places)
    return packing._replace(place=packing.place.reshape(-1)[owner], valid=valid)
