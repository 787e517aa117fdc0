"""The way of a matrix through a sequence of updates: its length, its direction, and why the norm grows.

||W + D||^2 = ||W||^2 + 2 <W, D> + ||D||^2. Updates in random directions have <W, D> = 0, and the norm grows
like a square root; updates along what is there already make it grow faster.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.lowrank import inner, update_norm, update_products
from jaxedit.diagnostics.numbers import in_float64, ratio, root
from jaxedit.types import LowRank


class Path(NamedTuple):
    """E updates D_1 .. D_E of one matrix; entry t is after update t. S_t is W_t - W_0."""

    norm: Float[Array, "E"]  # ||W_t||_F
    growth: Float[Array, "E"]  # ||W_t|| / ||W_0||
    step: Float[Array, "E"]  # ||D_t||
    relative_step: Float[Array, "E"]  # ||D_t|| / ||W_{t-1}||
    distance: Float[Array, "E"]  # ||S_t||
    relative_distance: Float[Array, "E"]  # ||S_t|| / ||W_0||
    length: Float[Array, "E"]  # sum of steps
    efficiency: Float[Array, "E"]  # distance / length: 1 straight on, about 1 / sqrt(t) for a random walk
    alignment: Float[Array, "E"]  # cosine of W_{t-1} and D_t
    first_alignment: Float[Array, "E"]  # cosine of W_0 and D_t
    persistence: Float[Array, "E"]  # cosine of S_{t-1} and D_t
    cross: Float[Array, "E"]  # 2 <W_{t-1}, D_t>, which with step^2 makes the growth of ||W||^2


class Products(NamedTuple):
    """All that a path is made of."""

    first: Float[Array, ""]  # ||W_0||^2
    onto_first: Float[Array, "E"]  # <W_0, D_t>
    onto_change: Float[Array, "E"]  # <S_{t-1}, D_t>
    step: Float[Array, "E"]  # ||D_t||


class Walked(NamedTuple):
    """A path up to here, to be continued with further updates."""

    change: Float[Array, "in out"]  # S_t, float64
    length: Float[Array, ""]
    distance: Float[Array, ""]  # squared
    first: Float[Array, ""]  # <W_0, S_t>


@in_float64
def path_of_factors(first: Float[Array, "in out"], updates: LowRank) -> Path:
    """The path of stacked low-rank updates (leading axis E) from W_0, with no matrix but W_0 itself.

    By the Gram matrix of all updates: the cheaper route up to E r of about in out / (in + out).
    """
    grams = update_products(updates, updates)
    products = Products(
        first=jnp.sum(jnp.square(first)),
        onto_first=jax.vmap(lambda delta: inner(first, delta))(updates),
        onto_change=jnp.sum(jnp.tril(grams, -1), axis=1),
        step=root(jnp.diagonal(grams)),
    )
    return _path(products, *(jnp.zeros(()) for _ in range(3)))


@in_float64
def begin(first: Float[Array, "in out"]) -> Walked:
    """Before the first update."""
    return Walked(jnp.zeros_like(first), *(jnp.zeros(()) for _ in range(3)))


@in_float64
def walk(
    first: Float[Array, "in out"], walked: Walked, updates: LowRank | Float[Array, "E in out"]
) -> tuple[Walked, Path]:
    """The path of E further updates, factors or dense, keeping their running sum; any number of times."""

    def body(change: Array, delta: Any) -> tuple[Array, tuple[Array, Array, Array]]:
        products = inner(first, delta), inner(change, delta), update_norm(delta)
        added = delta.left @ delta.right if isinstance(delta, LowRank) else delta
        return change + added, products

    change, products = jax.lax.scan(body, walked.change, updates)
    found = Products(jnp.sum(jnp.square(first)), *products)
    path = _path(found, walked.length, walked.distance, walked.first)
    after = Walked(
        change=change,
        length=path.length[-1],
        distance=jnp.square(path.distance[-1]),
        first=walked.first + jnp.sum(found.onto_first),
    )
    return after, path


def _path(products: Products, length: Array, distance: Array, onto: Array) -> Path:
    """With the sums so far: of steps, of S S, of W_0 S."""
    squared = jnp.square(products.step)
    distance_after = distance + jnp.cumsum(squared + 2 * products.onto_change)
    cross = 2 * (products.onto_first + products.onto_change)
    start = products.first + 2 * onto + distance
    norm_after = start + jnp.cumsum(squared + cross)
    norm_before, distance_before = (
        root(jnp.concatenate([now[None], after[:-1]]))
        for now, after in ((start, norm_after), (distance, distance_after))
    )
    norm, moved = root(norm_after), root(distance_after)
    lengths = length + jnp.cumsum(products.step)
    beginning = root(products.first)
    return Path(
        norm=norm,
        growth=ratio(norm, beginning),
        step=products.step,
        relative_step=ratio(products.step, norm_before),
        distance=moved,
        relative_distance=ratio(moved, beginning),
        length=lengths,
        efficiency=ratio(moved, lengths),
        alignment=ratio(cross / 2, norm_before * products.step),
        first_alignment=ratio(products.onto_first, beginning * products.step),
        persistence=ratio(products.onto_change, distance_before * products.step),
        cross=cross,
    )


@in_float64
def alignment_share(path: Path) -> Float[Array, "E"]:
    """How much of the growth of ||W||^2 so far is due to <W, D>, in [-1, 1].

    0 for a random walk, near 1 where updates lie along the matrix, negative where they work against it:
    sum cross / (|sum cross| + sum step^2).
    """
    cross = jnp.cumsum(path.cross)
    return ratio(cross, jnp.abs(cross) + jnp.cumsum(jnp.square(path.step)))
