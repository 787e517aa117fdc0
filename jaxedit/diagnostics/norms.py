"""The size of a matrix, and how far it is from what it was: one pass over the numbers, cheap at every step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.diagnostics.numbers import in_float64, norms, ratio


class Spread(NamedTuple):
    """Euclidean norms of the rows, or of the columns, of a matrix."""

    mean: Float[Array, ""]
    std: Float[Array, ""]
    largest: Float[Array, ""]


class Size(NamedTuple):
    """Norms of a matrix stored `[in, out]`."""

    frobenius: Float[Array, ""]
    l1: Float[Array, ""]  # sum of absolute values
    largest: Float[Array, ""]  # absolute value
    rows: Spread  # one row an input
    columns: Spread  # one column an output


class Drift(NamedTuple):
    """A matrix beside what it was before the first update."""

    distance: Float[Array, ""]  # ||W - W_0||_F
    relative: Float[Array, ""]  # the same over ||W_0||_F
    normalised: Float[Array, ""]  # the same over the number of elements, as older papers have it
    growth: Float[Array, ""]  # ||W||_F / ||W_0||_F
    cosine: Float[Array, ""]  # <W, W_0> / (||W|| ||W_0||)


@in_float64
def size(matrix: Float[Array, "in out"]) -> Size:
    """Norms of a matrix, all finite for finite numbers."""
    absolute = jnp.abs(matrix)
    return Size(
        frobenius=norms(matrix.ravel()),
        l1=jnp.sum(absolute),
        largest=jnp.max(absolute),
        rows=_spread(norms(matrix)),
        columns=_spread(norms(matrix.T)),
    )


def _spread(values: Float[Array, "n"]) -> Spread:
    return Spread(jnp.mean(values), jnp.std(values), jnp.max(values))


@in_float64
def drift(matrix: Float[Array, "in out"], first: Float[Array, "in out"]) -> Drift:
    """How far a matrix has come from `first`. Quotients by a zero matrix are infinite; 0 / 0 is 0."""
    distance, before, after = (norms(x.ravel()) for x in (matrix - first, first, matrix))
    return Drift(
        distance=distance,
        relative=ratio(distance, before),
        normalised=distance / matrix.size,
        growth=ratio(after, before),
        cosine=ratio(jnp.sum(matrix * first), before * after),
    )
