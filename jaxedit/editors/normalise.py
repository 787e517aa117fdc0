"""Running moments of features, and the normalisation by them: what MEND, MALMEN, UltraEdit and StableEdit share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.linalg import double

EPS = 1e-7  # added to a standard deviation, as MEND does
FLAT = 1e-6  # a standard deviation of up to this share of the mean is what float32 rounds a constant's to
FLOOR = 1e-6  # of a covariance's eigenvalues, relative to the largest: whitening divides by their roots


class Running(NamedTuple):
    """Moments of all vectors so far; folding in parts gives what one pass over everything gives."""

    total: Int[Array, ""]
    mean: Float[Array, "d"]
    squares: Float[Array, "d"]  # sum of squared deviations from the mean


def empty(width: int) -> Running:
    """No vectors yet."""
    return Running(jnp.zeros((), jnp.int32), jnp.zeros(width), jnp.zeros(width))


def fold(running: Running, x: Float[Array, "n d"], real: Bool[Array, "n"]) -> Running:
    """With the real rows of a batch (Chan, Golub and LeVeque 1979)."""
    here, centred, step, joint = _parts(running, x, real)
    share = here / jnp.maximum(running.total + here, 1)
    return Running(
        running.total + here,
        running.mean + step * share,
        running.squares + jnp.square(centred).sum(axis=0) + jnp.square(step) * joint,
    )


def _parts(running: Running, x: Array, real: Array) -> tuple[Array, Array, Array, Array]:
    """How many rows are real, these less their mean, that mean less the running one, the weight of its square."""
    here = real.sum(dtype=jnp.int32)
    mean = jnp.sum(x * real[:, None], axis=0) / jnp.maximum(here, 1)
    joint = running.total * (here / jnp.maximum(running.total + here, 1))
    return here, (x - mean) * real[:, None], mean - running.mean, joint


def standardise(running: Running, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """`(x - mean) / (std + eps)`.

    A component that never varied, but for rounding, is only centred; before there are two vectors x comes back as
    it is.
    """
    std = jnp.sqrt(running.squares / jnp.maximum(running.total - 1, 1))
    varied = std > FLAT * jnp.abs(running.mean)
    normal = (x - running.mean) / jnp.where(varied, std + EPS, 1.0)
    return jnp.where(running.total > 1, normal, x)


def fold_scatter(
    scatter: Float[Array, "d d"], running: Running, x: Float[Array, "n d"], real: Bool[Array, "n"]
) -> Float[Array, "d d"]:
    """The sum of outer products of deviations, float64, with a batch; `running` is without it."""
    with jax.enable_x64(True):
        _, centred, step, joint = _parts(running, double(x), real)
        within = jnp.matmul(centred.T, centred, precision="highest")
        return scatter + within + joint * jnp.outer(step, step)


def whiten(scatter: Float[Array, "d d"], running: Running, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """`Sigma^-1/2 (x - mean)`, Sigma the covariance of all vectors so far."""
    with jax.enable_x64(True):
        values, vectors = jnp.linalg.eigh(scatter / jnp.maximum(running.total - 1, 1))
        scale = jax.lax.rsqrt(jnp.maximum(values, FLOOR * values[-1]))
        root = jnp.matmul(vectors * scale, vectors.T, precision="highest")
        return jnp.matmul(double(x) - running.mean, root, precision="highest").astype(jnp.float32)
