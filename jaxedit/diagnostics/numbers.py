"""What all measures share: float64 throughout, and quotients that are never NaN for finite numbers."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

P = ParamSpec("P")
R = TypeVar("R")


def in_float64(measure: Callable[P, R]) -> Callable[P, R]:
    """The function on float64 copies of its arrays, products at highest precision.

    Squares of any float32 numbers are finite in float64, and a change of 1e-6 of a norm keeps ten digits.
    """

    @functools.wraps(measure)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            args, kwargs = jax.tree.map(_double, (args, kwargs))
            return measure(*args, **kwargs)

    return measured


def _double(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(leaf).astype(jnp.float64)
    return leaf


def ratio(above: Float[Array, "*N"], below: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """`above / below`; 0 for 0 / 0, infinite for other quotients by zero. Call inside float64."""
    zero = below == 0
    whole = jnp.where(above == 0, 0.0, jnp.sign(above) * jnp.inf)
    return jnp.where(zero, whole, above / jnp.where(zero, 1.0, below))


def root(squared: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """The square root of what cannot be negative but for rounding."""
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def norms(x: Float[Array, "*N d"]) -> Float[Array, "*N"]:
    """Euclidean norms over the last axis."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1))


def gaussian(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal numbers in float64, drawn in float32: compiled functions have no 64-bit random bits."""
    return jax.random.normal(key, shape, jnp.float32).astype(jnp.float64)
