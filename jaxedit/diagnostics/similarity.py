"""Two sets of vectors side by side: as representations (CKA, Procrustes), as distributions (Frechet)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.numbers import in_float64, norms, ratio, root
from jaxedit.diagnostics.subspaces import centred


class Procrustes(NamedTuple):
    """What of the change of N vectors a common rotation accounts for; lengths are over that of the first.

    Of changes that are different for every vector some rotation accounts for too, for about (d - 1) / 2N of them
    in d dimensions: without many more vectors than dimensions only beside a null model.
    """

    moved: Float[Array, ""]  # ||Y - X||_F / ||X||_F, both centred
    residual: Float[Array, ""]  # min over orthogonal Q of ||Y - X Q||_F / ||X||_F
    rotation: Float[Array, ""]  # 1 - residual^2 / moved^2: 1 for a pure rotation, which CKA cannot see


@in_float64
def linear_cka(before: Float[Array, "N d"], after: Float[Array, "N e"]) -> Float[Array, ""]:
    """Linear centred kernel alignment of paired vectors (Kornblith et al. 2019, arXiv 1905.00414), in [0, 1].

    Equation 5 there on centred vectors. Blind to rotations and to a common scale. 0 where either set has no
    variance.
    """
    x, y = centred(before), centred(after)
    return ratio(_gram_inner(x, y), root(_gram_inner(x, x)) * root(_gram_inner(y, y)))


def _gram_inner(x: Float[Array, "N d"], y: Float[Array, "N e"]) -> Float[Array, ""]:
    """<X X^T, Y Y^T>_F, by the smaller of both products."""
    if x.shape[0] < max(x.shape[1], y.shape[1]):
        return jnp.sum((x @ x.T) * (y @ y.T))
    return jnp.sum(jnp.square(x.T @ y))


@in_float64
def procrustes(before: Float[Array, "N d"], after: Float[Array, "N d"]) -> Procrustes:
    """The orthogonal Procrustes residual (Schonemann 1966) of centred paired vectors, and what it is without Q."""
    x, y = centred(before), centred(after)
    length = jnp.sum(jnp.square(x))
    best = root(length + jnp.sum(jnp.square(y)) - 2 * nuclear_of_product(x.T, y.T))
    moved = root(jnp.sum(jnp.square(y - x)))
    best = jnp.minimum(best, moved)  # the identity is orthogonal too: what is above it is rounding
    rotation = jnp.where(moved == 0, 0.0, 1 - jnp.square(ratio(best, moved)))
    return Procrustes(ratio(moved, root(length)), ratio(best, root(length)), rotation)


@in_float64
def mean_shift(before: Float[Array, "N d"], after: Float[Array, "M d"]) -> Float[Array, ""]:
    """Distance of the means."""
    return root(jnp.sum(jnp.square(jnp.mean(after, axis=0) - jnp.mean(before, axis=0))))


@in_float64
def norm_difference(before: Float[Array, "N d"], after: Float[Array, "M d"]) -> Float[Array, ""]:
    """Difference of the mean norms over their mean, in [0, 2], whichever is larger."""
    one, other = (jnp.mean(norms(vectors)) for vectors in (before, after))
    return ratio(2 * jnp.abs(other - one), one + other)


@in_float64
def frechet(before: Float[Array, "N d"], after: Float[Array, "M d"]) -> Float[Array, ""]:
    """Squared Frechet distance of the Gaussians with these means and (population) covariances.

    Dowson and Landau 1982: ||m - n||^2 + tr(C + D - 2 (C D)^(1/2)). The last trace is the nuclear norm of
    C^(1/2) D^(1/2), which is that of X Y^T over sqrt(N M): no root of a matrix is taken.
    """
    x, y = centred(before), centred(after)
    n, m = len(x), len(y)
    spread = jnp.sum(jnp.square(x)) / n + jnp.sum(jnp.square(y)) / m
    cross = nuclear_of_product(x, y) / (n * m) ** 0.5
    return jnp.square(mean_shift(before, after)) + jnp.maximum(spread - 2 * cross, 0.0)


@in_float64
def nuclear_of_product(a: Float[Array, "n r"], b: Float[Array, "m r"]) -> Float[Array, ""]:
    """Sum of the singular values of `a @ b.T`, by a matrix of at most the smaller sizes."""
    inner_a = a if a.shape[0] <= a.shape[1] else jnp.linalg.qr(a, mode="r")
    inner_b = b if b.shape[0] <= b.shape[1] else jnp.linalg.qr(b, mode="r")
    return jnp.sum(jnp.linalg.svd(inner_a @ inner_b.T, compute_uv=False))
