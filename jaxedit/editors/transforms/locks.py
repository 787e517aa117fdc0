"""Norm growth made impossible: the causal test of whether it is what harms a model.

If ability still decays under these, the growth of the edited matrix's norm was not the cause.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.transforms.spectrum import rebuilt, singular, singular_values, step_to, target
from jaxedit.editors.transforms.transform import Transform, on_matrices
from jaxedit.linalg import double
from jaxedit.types import Delta, Site


def spectrum_lock() -> Transform:
    """Every singular value stays that of W_0: `W + Delta = U S Z^T` is written as `U S_0 Z^T`.

    Of all matrices with this spectrum it is the nearest. The state is the spectrum, float64.
    """

    def init(path: str, weight: Array) -> Float[Array, "m"]:
        return singular_values(weight)

    def apply(delta: Delta, spectrum: Array, site: Site) -> tuple[Delta, Array]:
        locked = rebuilt(singular(target(site.weight, delta)), spectrum)
        return step_to(locked, site.weight), spectrum

    return on_matrices(Transform(init, apply))


def norm_lock() -> Transform:
    """||W||_F stays that of W_0: `W + Delta` is rescaled, unless it is zero. The state is the norm, float64."""

    def init(path: str, weight: Array) -> Float[Array, ""]:
        with jax.enable_x64(True):
            return jnp.linalg.norm(double(weight))

    def apply(delta: Delta, norm: Array, site: Site) -> tuple[Delta, Array]:
        free = target(site.weight, delta)
        with jax.enable_x64(True):
            length = jnp.linalg.norm(free)
            factor = norm / jnp.where(length == 0, 1.0, length)  # a bias may be zero, and stay so
            return step_to(free * factor, site.weight), norm

    return Transform(init, apply)
