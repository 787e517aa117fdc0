"""Singular values, subspaces and norms in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxedit.linalg import dense, double, frobenius
from jaxedit.types import Delta, LowRank


class Singular(NamedTuple):
    """`matrix = left @ diag(values) @ right`, thin, values descending, float64."""

    left: Float[Array, "in m"]
    values: Float[Array, "m"]
    right: Float[Array, "m out"]


def singular(matrix: Float[Array, "in out"]) -> Singular:
    """The thin singular value decomposition."""
    with jax.enable_x64(True):
        return Singular(*jnp.linalg.svd(double(matrix), full_matrices=False))


def singular_values(matrix: Float[Array, "in out"]) -> Float[Array, "m"]:
    """Singular values alone, descending, float64."""
    with jax.enable_x64(True):
        return jnp.linalg.svd(double(matrix), compute_uv=False)


def rebuilt(parts: Singular, values: Float[Array, "m"]) -> Float[Array, "in out"]:
    """The matrix with other singular values, float64."""
    with jax.enable_x64(True):
        return jnp.matmul(parts.left * values, parts.right, precision="highest")


def leading(energy: Float[Array, "m"], share: float) -> Bool[Array, "m"]:
    """The fewest of the descending energies whose sum reaches `share` of the total."""
    with jax.enable_x64(True):
        before = jnp.cumsum(energy) - energy
        return before < share * energy.sum()


def target(weight: Float[Array, "in out"], delta: Delta) -> Float[Array, "in out"]:
    """W + Delta in float64."""
    with jax.enable_x64(True):
        return double(weight) + double(dense(delta))


def step_to(goal: Float[Array, "in out"], weight: Float[Array, "in out"]) -> Float[Array, "in out"]:
    """The float32 update that takes the weight to a float64 goal."""
    with jax.enable_x64(True):
        return (goal - double(weight)).astype(jnp.float32)


def update_norm(delta: Delta) -> Float[Array, ""]:
    """||Delta||_F, float32; of factors by their Gram matrices, so that the product is never made."""
    if not isinstance(delta, LowRank):
        return frobenius(delta)
    with jax.enable_x64(True):
        left, right = double(delta.left), double(delta.right)
        grams = jnp.matmul(left.T, left, precision="highest"), jnp.matmul(right, right.T, precision="highest")
        return jnp.sqrt(jnp.maximum(jnp.sum(grams[0] * grams[1]), 0.0)).astype(jnp.float32)
