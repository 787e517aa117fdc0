"""Singular values and what is read off them: exactly, on demand; `leading` has the largest ones sooner."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.numbers import in_float64, norms, ratio
from jaxedit.types import LowRank


class Triplets(NamedTuple):
    """Singular vectors as columns, values descending."""

    left: Float[Array, "in k"]
    values: Float[Array, "k"]
    right: Float[Array, "out k"]


class Spectrum(NamedTuple):
    """What singular values s_1 >= s_2 >= ... say of a matrix."""

    spectral: Float[Array, ""]  # s_1
    nuclear: Float[Array, ""]  # sum of all
    condition: Float[Array, ""]  # s_1 / s_last; infinite for a zero matrix, as numpy has it
    stable_rank: Float[Array, ""]  # ||s||^2 / s_1^2
    effective_rank: Float[Array, ""]  # exp of the entropy of s / sum s (Roy and Vetterli 2007)
    energy_ratio: Float[Array, ""]  # s_1 / ||s||


@in_float64
def singular_values(matrix: Float[Array, "in out"]) -> Float[Array, "m"]:
    """All singular values, descending."""
    return jnp.linalg.svd(matrix, compute_uv=False)


@in_float64
def triplets(matrix: Float[Array, "in out"]) -> Triplets:
    """The thin singular value decomposition. Vectors of equal values, and of zeros, are arbitrary."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return Triplets(left, values, right.T)


@in_float64
def triplets_of_factors(delta: LowRank) -> Triplets:
    """The same of `left @ right`, whose rank is at most r, without that product."""
    left, inner_left = jnp.linalg.qr(delta.left)
    right, inner_right = jnp.linalg.qr(delta.right.T)
    inner = triplets(inner_left @ inner_right.T)
    return Triplets(left @ inner.left, inner.values, right @ inner.right)


@in_float64
def spectrum(values: Float[Array, "m"]) -> Spectrum:
    """Measures of descending singular values; ranks of a zero matrix are 0."""
    first, total, energy = values[0], jnp.sum(values), norms(values)
    share = ratio(values, total)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return Spectrum(
        spectral=first,
        nuclear=total,
        condition=jnp.where(first == 0, jnp.inf, ratio(first, values[-1])),
        stable_rank=jnp.square(ratio(energy, first)),
        effective_rank=jnp.where(first == 0, 0.0, jnp.exp(entropy)),
        energy_ratio=ratio(first, energy),
    )
