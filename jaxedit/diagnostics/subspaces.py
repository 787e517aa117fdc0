"""Where a set of vectors lies: principal subspaces, the angles between them, and what chance would give."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxedit.diagnostics.leading import Leading, leading
from jaxedit.diagnostics.numbers import in_float64, norms, ratio, root


class Apart(NamedTuple):
    """Two subspaces of R^d, of dimensions k and j, side by side; m is the smaller of both."""

    angles: Float[Array, "m"]  # principal angles in radians, ascending
    grassmann: Float[Array, ""]  # sqrt(sum angle^2), the length of the shortest way from one to the other
    chordal: Float[Array, ""]  # sqrt(sum sin^2 angle)
    overlap: Float[Array, ""]  # ||A^T B||_F^2 / m: 1 where one holds the other, 0 where they are orthogonal
    chance: Float[Array, ""]  # the overlap to expect of independent random subspaces
    chance_std: Float[Array, ""]  # and its standard deviation


class SubspaceShift(NamedTuple):
    """The top-k principal subspace of N vectors before and after."""

    apart: Apart
    explained_before: Float[Array, ""]  # share of the old vectors' variance in the old subspace
    explained_after: Float[Array, ""]  # share of the new vectors' variance in the old subspace
    explained_own: Float[Array, ""]  # share of the new vectors' variance in the new subspace
    residual: Float[Array, ""]  # of the solver, the worse of both; see `leading`
    gap: Float[Array, ""]  # the smaller of both: without any, the angles mean nothing


@in_float64
def principal_angles(one: Float[Array, "d k"], other: Float[Array, "d j"]) -> Float[Array, "m"]:
    """Principal angles between the spans of orthonormal columns, ascending, in [0, pi/2].

    From cosines and sines together (Bjorck and Golub 1973), so that small angles are as exact as large ones.
    """
    if one.shape[1] < other.shape[1]:
        one, other = other, one
    inner = one.T @ other
    cosines = jnp.linalg.svd(inner, compute_uv=False)
    sines = jnp.linalg.svd(other - one @ inner, compute_uv=False)[: other.shape[1]]
    return jnp.arctan2(sines[::-1], cosines)


@in_float64
def apart(one: Float[Array, "d k"], other: Float[Array, "d j"]) -> Apart:
    """How far the spans of orthonormal columns are from each other, with the chance line."""
    angles = principal_angles(one, other)
    mean, std = chance_overlap(one.shape[0], one.shape[1], other.shape[1])
    return Apart(
        angles=angles,
        grassmann=norms(angles),
        chordal=norms(jnp.sin(angles)),
        overlap=jnp.mean(jnp.square(jnp.cos(angles))),
        chance=jnp.asarray(mean),
        chance_std=jnp.asarray(std),
    )


def chance_overlap(d: int, k: int, j: int) -> tuple[float, float]:
    """Mean and standard deviation of `Apart.overlap` over independent uniformly random subspaces of R^d.

    The mean is k/d for equal dimensions. The variance is that of the trace of a product of projectors, of
    which one is turned by a Haar-distributed rotation.
    """
    smaller = min(k, j)
    variance = 2 * k * j * (d - k) * (d - j) / (d**2 * (d - 1) * (d + 2)) if d > 1 else 0.0
    return k * j / d / smaller, variance**0.5 / smaller


@in_float64
def intruders(
    now: Float[Array, "d k"], before: Float[Array, "d m"], threshold: float = 0.5
) -> Int[Array, ""]:
    """How many of the unit columns `now` are like none of `before`: max |cos| below `threshold`.

    Intruder dimensions (Shuttleworth et al. 2024, arXiv 2410.21228): leading singular vectors of the changed
    matrix against all of those of the first one.
    """
    likeness = jnp.max(jnp.abs(now.T @ before), axis=1)
    return jnp.sum(likeness < threshold)


@in_float64
def centred(vectors: Float[Array, "N d"]) -> Float[Array, "N d"]:
    """The vectors less their mean."""
    return vectors - jnp.mean(vectors, axis=0)


@in_float64
def principal(vectors: Float[Array, "N d"], k: int, key: Array) -> Leading:
    """The k directions of most variance: `right` [d, k]; `values` squared over N are the variances."""
    return leading(centred(vectors), k, key)


@in_float64
def explained(vectors: Float[Array, "N d"], basis: Float[Array, "d k"]) -> Float[Array, ""]:
    """Share of the vectors' variance within the span of orthonormal columns; 0 without any variance."""
    spread = centred(vectors)
    return ratio(jnp.sum(jnp.square(spread @ basis)), jnp.sum(jnp.square(spread)))


@in_float64
def subspace_shift(
    before: Float[Array, "N d"], after: Float[Array, "M d"], k: int, key: Array
) -> SubspaceShift:
    """The principal subspaces of the same prompts' vectors in two models, or of different prompts in one."""
    first, second = principal(before, k, key), principal(after, k, key)
    return SubspaceShift(
        apart=apart(first.right, second.right),
        explained_before=explained(before, first.right),
        explained_after=explained(after, first.right),
        explained_own=explained(after, second.right),
        residual=jnp.maximum(jnp.max(first.residual), jnp.max(second.residual)),
        gap=jnp.minimum(first.gap, second.gap),
    )


@in_float64
def effective_rank(vectors: Float[Array, "N d"]) -> Float[Array, ""]:
    """exp of the entropy of the centred vectors' normalised singular values; 0 where all are equal."""
    values = jnp.linalg.svd(centred(vectors), compute_uv=False)
    share = ratio(values, jnp.sum(values))
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return jnp.where(values[0] == 0, 0.0, jnp.exp(entropy))


@in_float64
def anisotropy(vectors: Float[Array, "N d"]) -> Float[Array, ""]:
    """Mean cosine between different vectors (Ethayarajh 2019, arXiv 1909.00512); 0 for a single one."""
    lengths = norms(vectors)
    units = ratio(vectors, lengths[:, None])
    count = jnp.sum(lengths > 0)
    pairs = jnp.sum(jnp.square(jnp.sum(units, axis=0))) - count
    return ratio(pairs, (count * (count - 1)).astype(pairs.dtype))


@in_float64
def radius(vectors: Float[Array, "N d"]) -> Float[Array, ""]:
    """Root mean square distance from the mean."""
    spread = centred(vectors)
    return root(jnp.mean(jnp.sum(jnp.square(spread), axis=-1)))
