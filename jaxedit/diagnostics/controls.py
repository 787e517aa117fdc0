"""What a change is compared with before it is called one: other prompts, and random updates of the same size."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.lowrank import update_norm
from jaxedit.diagnostics.numbers import gaussian, in_float64, ratio
from jaxedit.diagnostics.spectra import singular_values, triplets_of_factors
from jaxedit.diagnostics.stacked import batched
from jaxedit.errors import ConfigError
from jaxedit.types import Delta, LowRank

Match = Literal["norm", "spectrum"]


class SplitHalf(NamedTuple):
    """A measure of two sets of vectors, R times; leaves have a leading axis of R random halvings a, b."""

    floor: Any  # of the vectors before: half a against half b, sampling alone
    shift: Any  # half a before against half b after: sampling and change


@in_float64
def split_half(
    measure: Callable[[Array, Array], Any],
    before: Float[Array, "N d"],
    after: Float[Array, "N d"],
    key: Array,
    repeats: int = 20,
) -> SplitHalf:
    """The sampling floor of `measure(x, y)`, and the measure of the change at the same number of prompts.

    For measures of sets (angles, overlaps, means, Frechet distance), not of pairs. Raises ConfigError for
    fewer than four prompts.
    """
    half = len(before) // 2
    if half < 2:
        raise ConfigError(f"{len(before)} prompts cannot be halved: give at least four")

    def one(key: Array) -> SplitHalf:
        order = jax.random.permutation(key, len(before))
        a, b = order[:half], order[half : 2 * half]
        return SplitHalf(measure(before[a], before[b]), measure(before[a], after[b]))

    return batched(one, jax.random.split(key, repeats))


@in_float64
def beyond_floor(floor: Float[Array, "R"], shift: Float[Array, "R"], level: float = 0.95) -> Array:
    """Whether the median shift is above that quantile of the floor: below it no shift may be claimed.

    For measures that grow with the change; hand over the negative of an overlap.
    """
    return jnp.median(shift) > jnp.quantile(floor, level)


def random_update(key: Array, delta: Delta, match: Match = "norm") -> Delta:
    """The null model: a random update of the same shape (and rank, for factors) that stands for no fact.

    "norm" draws Gaussian entries, or factors, and scales them to the same Frobenius norm. "spectrum" keeps
    all singular values and draws the singular vectors uniformly (Haar); the one of a scale or bias is its norm.
    float32; a zero update stays zero.
    """
    if match not in ("norm", "spectrum"):
        raise ConfigError(f"match is {match!r}; it must be 'norm' or 'spectrum'")
    matrix = isinstance(delta, LowRank) or delta.ndim == 2
    drawn = _same_spectrum(key, delta) if match == "spectrum" and matrix else _same_norm(key, delta)
    return jax.tree.map(lambda x: x.astype(jnp.float32), drawn)


def random_updates(key: Array, deltas: Delta, match: Match = "norm") -> Delta:
    """`random_update` of each of E stacked updates, independent of each other."""
    count = jax.tree.leaves(deltas)[0].shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    return batched(lambda given: random_update(given[0], given[1], match), (keys, deltas))


@in_float64
def _same_norm(key: Array, delta: Delta) -> Delta:
    one, other = jax.random.split(key)
    if isinstance(delta, LowRank):
        drawn = LowRank(gaussian(one, delta.left.shape), gaussian(other, delta.right.shape))
        return delta._replace(
            left=drawn.left, right=drawn.right * ratio(update_norm(delta), update_norm(drawn))
        )
    noise = gaussian(one, delta.shape)
    return noise * ratio(update_norm(delta), update_norm(noise))


@in_float64
def _same_spectrum(key: Array, delta: Delta) -> Delta:
    values = triplets_of_factors(delta).values if isinstance(delta, LowRank) else singular_values(delta)
    rows, columns = (delta.left.shape[0], delta.right.shape[1]) if isinstance(delta, LowRank) else delta.shape
    one, other = jax.random.split(key)
    left = haar(one, rows, len(values)) * jnp.sqrt(values)
    right = haar(other, columns, len(values)) * jnp.sqrt(values)
    return delta._replace(left=left, right=right.T) if isinstance(delta, LowRank) else left @ right.T


@in_float64
def haar(key: Array, d: int, k: int) -> Float[Array, "d k"]:
    """Orthonormal columns that span a uniformly random subspace of R^d (Mezzadri 2007, arXiv math-ph/0609050)."""
    basis, triangle = jnp.linalg.qr(gaussian(key, (d, k)))
    return basis * jnp.sign(jnp.diagonal(triangle))
