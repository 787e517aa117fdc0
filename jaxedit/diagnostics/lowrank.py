"""Inner products of changes that are kept as factors, without the matrices that they stand for."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.numbers import in_float64, ratio, root
from jaxedit.types import Delta, LowRank


class Captured(NamedTuple):
    """Shares of ||Delta||_F^2 within k-dimensional subspaces of its inputs, of its outputs, and of both."""

    inputs: Float[Array, ""]
    outputs: Float[Array, ""]
    both: Float[Array, ""]


@in_float64
def inner(one: Delta, other: Delta) -> Float[Array, ""]:
    """<A, B>_F, each a dense matrix or factors."""
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return jnp.sum((one.left.T @ other.left) * (one.right @ other.right.T))
    if isinstance(one, LowRank):
        return inner(other, one)
    if isinstance(other, LowRank):
        return jnp.sum((one @ other.right.T) * other.left)
    return jnp.sum(one * other)


@in_float64
def update_norm(delta: Delta) -> Float[Array, ""]:
    """||Delta||_F."""
    return root(inner(delta, delta))


@in_float64
def alignment(matrix: Float[Array, "in out"], delta: Delta) -> Float[Array, ""]:
    """<W, Delta> / (||W|| ||Delta||), in [-1, 1]; 0 where either is zero."""
    return ratio(inner(matrix, delta), root(jnp.sum(jnp.square(matrix))) * update_norm(delta))


@in_float64
def captured(delta: Delta, inputs: Float[Array, "in k"], outputs: Float[Array, "out k"]) -> Captured:
    """How much of an update acts within the span of orthonormal columns, such as W_0's singular vectors."""
    left = _from_left(inputs, delta)
    right: Delta = (
        delta._replace(right=delta.right @ outputs) if isinstance(delta, LowRank) else delta @ outputs
    )
    both, whole = _from_left(inputs, right), inner(delta, delta)
    shares = (ratio(jnp.maximum(inner(part, part), 0.0), whole) for part in (left, right, both))
    return Captured(*(jnp.minimum(share, 1.0) for share in shares))


def _from_left(basis: Float[Array, "in k"], delta: Delta) -> Delta:
    if isinstance(delta, LowRank):
        return delta._replace(left=basis.T @ delta.left)
    return basis.T @ delta


@in_float64
def update_products(one: LowRank, other: LowRank) -> Float[Array, "E F"]:
    """<Delta_i, Delta_j>_F of stacked updates [E, in, r], [E, r, out] and [F, ...]: a Gram matrix for equal ones.

    O(E F r^2 (in + out)) where the sums of dense matrices take O(E r in out).
    """
    left = jnp.einsum("eir,fis->erfs", one.left, other.left)
    right = jnp.einsum("ero,fso->erfs", one.right, other.right)
    return jnp.sum(left * right, axis=(1, 3))
