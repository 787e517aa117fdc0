"""Laws by which a norm may grow with the number of updates t."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Curve = Callable[[Float[Array, "T"], Float[Array, "p"]], Float[Array, "T"]]
TINY = 1e-24  # under a root, so that its slope at nothing is finite


class Law(NamedTuple):
    """`y = curve(t, p)`. `starts` gives first guesses of p [S, p] for a least-squares fit of t, y."""

    names: tuple[str, ...]  # of the parameters
    curve: Curve
    starts: Callable[[Array, Array, Array], Float[Array, "S p"]]  # (t, y, weight)
    # Parameters of y against t from those of y / scale against t / last: the factors are scale^i last^j.
    units: tuple[tuple[float, float], ...]
    bounds: tuple[tuple[int, float, float], ...] = ()  # (parameter, least, most)
    signless: tuple[int, ...] = ()  # parameters whose sign changes nothing
    exponent: int | None = None  # the parameter whose value is one more power of `last` in the one before it


def _line(
    t: Float[Array, "T"], y: Float[Array, "T"], weight: Float[Array, "T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Intercept and slope by weighted least squares; slope 0 where all t are equal."""
    total = jnp.sum(weight)
    t_mean, y_mean = jnp.sum(weight * t) / total, jnp.sum(weight * y) / total
    spread = jnp.sum(weight * jnp.square(t - t_mean))
    slope = jnp.sum(weight * (t - t_mean) * (y - y_mean)) / jnp.where(spread > 0, spread, 1.0)
    return y_mean - slope * t_mean, slope


def _constant(t: Array, y: Array, weight: Array) -> Float[Array, "1 1"]:
    return (jnp.sum(weight * y) / jnp.sum(weight))[None, None]


def _linear(t: Array, y: Array, weight: Array) -> Float[Array, "1 2"]:
    return jnp.stack(_line(t, y, weight))[None]


def _sqrt(t: Array, y: Array, weight: Array) -> Float[Array, "1 2"]:
    start, slope = _line(t, jnp.square(y), weight)
    return jnp.stack([jnp.sqrt(jnp.maximum(start, 0.0)), slope])[None]


def _power(t: Array, y: Array, weight: Array) -> Float[Array, "3 3"]:
    def with_exponent(c: float) -> Float[Array, "3"]:
        return jnp.stack([*_line(_raised(t, jnp.asarray(c)), y, weight), jnp.asarray(c)])

    return jnp.stack([with_exponent(c) for c in (0.5, 1.0, 2.0)])


def _exponential(t: Array, y: Array, weight: Array) -> Float[Array, "2 2"]:
    start, slope = _line(t, jnp.log(jnp.maximum(y, 1e-6)), weight)
    flat = jnp.stack([jnp.sum(weight * y) / jnp.sum(weight), jnp.zeros(())])
    return jnp.stack([jnp.stack([jnp.exp(start), slope]), flat])


def _raised(t: Float[Array, "T"], c: Float[Array, ""]) -> Float[Array, "T"]:
    """t^c with 0^c = 0, and a slope in c that is finite there."""
    positive = t > 0
    return jnp.where(positive, jnp.exp(c * jnp.log(jnp.where(positive, t, 1.0))), 0.0)


LAWS: dict[str, Law] = {
    "constant": Law(("a",), lambda t, p: p[0] + 0 * t, _constant, ((1, 0),)),
    "linear": Law(("a", "b"), lambda t, p: p[0] + p[1] * t, _linear, ((1, 0), (1, -1))),
    # ||W||^2 grows by the same amount with every update: the law of updates in random directions.
    "sqrt": Law(
        ("a", "b"),
        lambda t, p: jnp.sqrt(jnp.maximum(jnp.square(p[0]) + p[1] * t, TINY)),
        _sqrt,
        ((1, 0), (2, -1)),
        signless=(0,),
    ),
    "power": Law(
        ("a", "b", "c"),
        lambda t, p: p[0] + p[1] * _raised(t, p[2]),
        _power,
        ((1, 0), (1, 0), (0, 0)),
        exponent=2,
        bounds=((2, 0.05, 8.0),),
    ),
    "exponential": Law(
        ("a", "b"),
        lambda t, p: p[0] * jnp.exp(jnp.clip(p[1] * t, -50.0, 50.0)),
        _exponential,
        ((1, 0), (0, -1)),
    ),
}
