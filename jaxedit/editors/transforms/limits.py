"""Bounds on the size of updates, and of what they make of a matrix."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.transforms.spectrum import (
    rebuilt,
    singular,
    singular_values,
    step_to,
    target,
    update_norm,
)
from jaxedit.editors.transforms.transform import Transform, on_matrices, stateless
from jaxedit.linalg import dense, double
from jaxedit.types import Delta, LowRank, Site


def times(delta: Delta, factor: float | Float[Array, ""]) -> Delta:
    """The update times a number."""
    return LowRank(delta.left, delta.right * factor) if isinstance(delta, LowRank) else delta * factor


def scale(factor: float) -> Transform:
    """`Delta' = factor Delta`."""
    return stateless(lambda delta, site: times(delta, factor))


def clip_norm(bound: float) -> Transform:
    """Shrinks an update to ||Delta||_F <= bound; smaller ones pass untouched."""

    def change(delta: Delta, site: Site) -> Delta:
        norm = update_norm(delta)
        return times(delta, jnp.where(norm > bound, bound / norm, 1.0))

    return stateless(change)


def spectral_cap(factor: float = 1.0) -> Transform:
    """No singular value of `W + Delta` above `factor` times the largest of W_0.

    The nearest such matrix is written. An update that exceeds nowhere passes untouched, else it is dense.
    """

    def init(path: str, weight: Array) -> Float[Array, ""]:
        with jax.enable_x64(True):
            return factor * singular_values(weight)[0]

    def apply(delta: Delta, limit: Array, site: Site) -> tuple[Delta, Array]:
        parts = singular(target(site.weight, delta))
        with jax.enable_x64(True):
            capped = rebuilt(parts, jnp.minimum(parts.values, double(limit)))
            exceeds = parts.values[0] > limit
            return jnp.where(exceeds, step_to(capped, site.weight), dense(delta)), limit

    return on_matrices(Transform(init, apply))
