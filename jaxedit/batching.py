"""Questions that vmapped computations answer as one.

A branch, or the end of a loop, that each row of a `vmap` decides for itself is computed both ways and chosen from,
with everything it reads copied for every row. What is decided by these stays a branch. It must be right for a
row to go on with the others: what it does then is not used.
"""

import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Int


@custom_vmap
def all_of(x: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Whether all are true, in all rows of every enclosing `vmap`."""
    return jnp.all(x)


@custom_vmap
def largest(x: Int[Array, "..."]) -> Int[Array, ""]:
    """The greatest, of all rows of every enclosing `vmap`."""
    return jnp.max(x)


@all_of.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return all_of(x), False


@largest.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return largest(x), False
