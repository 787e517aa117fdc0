"""PRUNE (Ma et al. 2025, arXiv 2405.16821): the total change of a sequence, restrained once at its end."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.transforms.spectrum import rebuilt, singular, singular_values
from jaxedit.editors.transforms.transform import Transform, on_matrices
from jaxedit.linalg import double


def prune(base: float = math.e) -> Transform:
    """Restrains `W - W_0` by `restrained` when the sequence ends; updates pass untouched.

    The restraint is a function of the total change, so it belongs to `finalize`: a sequence may be restrained for
    scoring at any step and goes on unrestrained. `base` is the paper's alpha: e and 1.2 in its release. The
    state is a copy of W_0.
    """

    def init(path: str, weight: Array) -> Float[Array, "in out"]:
        return jnp.copy(weight)

    def finalize(weight: Array, start: Array) -> Float[Array, "in out"]:
        return restrained(weight, start, base)

    return on_matrices(Transform(init, lambda delta, start, site: (delta, start), finalize))


def restrained(
    weight: Float[Array, "in out"], start: Float[Array, "in out"], base: float = math.e
) -> Float[Array, "in out"]:
    """`W_0` plus the total change, its singular values above `sigma_max(W_0)` brought down.

    Such a value s becomes `log(s) - log(sigma_max) + sigma_max`, logarithms to `base`; where
    sigma_max is below 1 / ln(base) that is a raise for s just above it, as published. The change is counted
    from W_0 and so added once. Without a value that exceeds, the weight comes back to the bit.
    """
    with jax.enable_x64(True):
        parts, limit = singular(double(weight) - double(start)), singular_values(start)[0]
        exceeds = parts.values > limit
        ratio = jnp.where(exceeds, parts.values / limit, 1.0)
        values = jnp.where(exceeds, limit + jnp.log(ratio) / math.log(base), parts.values)
        changed = double(start) + rebuilt(parts, values)
        return jnp.where(exceeds.any(), changed.astype(jnp.float32), weight)
