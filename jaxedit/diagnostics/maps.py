"""Vectors before and after on one plane: the picture of AlphaEdit (arXiv 2410.02355, section 4.3) in numbers.

There 1,000 prompts' hidden states are drawn by t-SNE, which is random and keeps no distances. Here the plane
is that of the two directions of most variance before, so the same vectors always give the same map.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxedit.diagnostics.numbers import in_float64, norms, ratio
from jaxedit.diagnostics.subspaces import principal, radius

BINS = 32
REGION = 0.95  # of the vectors before are in their own region


class PlaneMap(NamedTuple):
    """N vectors before and M after on the plane."""

    before: Float[Array, "N 2"]
    after: Float[Array, "M 2"]
    overlap: Float[Array, "2"]  # D1, D2: shared area of the two marginal densities on each axis, 1 if equal
    hausdorff: Float[
        Array, ""
    ]  # H: largest distance to the nearest point of the other set, over the radius before
    inside: Float[Array, ""]  # P: share after that lies in the ellipse which holds `REGION` of those before


@in_float64
def plane_map(before: Float[Array, "N d"], after: Float[Array, "M d"], key: Array) -> PlaneMap:
    """Both sets on the principal plane of the first, and how much they cover each other."""
    basis, mean = principal(before, 2, key).right, jnp.mean(before, axis=0)
    old, new = (before - mean) @ basis, (after - mean) @ basis
    overlap = jnp.stack([density_overlap(old[:, i], new[:, i]) for i in range(2)])
    return PlaneMap(
        old,
        new,
        overlap,
        ratio(hausdorff(old, new), radius(old)),
        jnp.mean(_inside(old, new), dtype=jnp.float64),
    )


@in_float64
def density_overlap(one: Float[Array, "N"], other: Float[Array, "M"], bins: int = BINS) -> Float[Array, ""]:
    """Shared area of two histograms over their common range, in [0, 1]."""
    low = jnp.minimum(jnp.min(one), jnp.min(other))
    width = jnp.maximum(jnp.max(one), jnp.max(other)) - low

    def histogram(x: Float[Array, "n"]) -> Float[Array, "bins"]:
        place = jnp.clip(jnp.floor(ratio(x - low, width) * bins), 0, bins - 1)
        return jnp.mean(place[:, None] == jnp.arange(bins), axis=0, dtype=jnp.float64)

    return jnp.sum(jnp.minimum(histogram(one), histogram(other)))


@in_float64
def hausdorff(one: Float[Array, "N d"], other: Float[Array, "M d"]) -> Float[Array, ""]:
    """The largest distance of a point of either set to the nearest of the other."""
    distance = norms(one[:, None] - other[None, :])
    return jnp.maximum(jnp.max(jnp.min(distance, axis=1)), jnp.max(jnp.min(distance, axis=0)))


def _inside(old: Float[Array, "N 2"], new: Float[Array, "M 2"]) -> Bool[Array, "M"]:
    """By Mahalanobis distance; the axes are principal, so there is no covariance."""
    variance = jnp.mean(jnp.square(old), axis=0)
    variance = jnp.maximum(variance, 1e-20 * jnp.sum(variance))  # without any, rounding decides nothing
    limit = jnp.quantile(jnp.sum(ratio(jnp.square(old), variance), axis=1), REGION)
    return jnp.sum(ratio(jnp.square(new), variance), axis=1) <= limit
