"""Which law a norm grows by: least-squares fits with uncertainty, compared by information and by foresight."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxedit.diagnostics.laws import LAWS, Law
from jaxedit.diagnostics.numbers import in_float64, ratio
from jaxedit.errors import ConfigError, unknown_name

ITERATIONS = 60  # of Levenberg and Marquardt
ITERATIONS_AGAIN = 12  # from the solution for almost the same values
SEEN = 2 / 3  # of the steps are fitted to foresee the rest
LEAST = 8  # steps
NEAR = 1.25  # times the least foresight error is as good
ROUNDING = 1e-9  # of the largest value: residuals below it are those of float32 norms, and compare nothing
TINY_SLOPE = 1e-12  # keeps a parameter that changes nothing from making the equations singular


class Fit(NamedTuple):
    """One law fitted to T values, in their own units."""

    params: Float[Array, "p"]
    error: Float[Array, "p"]  # standard errors, as if residuals were independent
    curve: Float[Array, "T"]
    rmse: Float[Array, ""]
    r2: Float[Array, ""]  # 1 - squared residuals / variance
    aicc: Float[Array, ""]  # n log(RSS / n) + 2 q + 2 q (q + 1) / (n - q - 1), q = p + 1 with the noise
    bic: Float[Array, ""]  # n log(RSS / n) + q log n
    foresight: Float[Array, ""]  # RMSE over the last third of a fit to the steps before


class Comparison(NamedTuple):
    """Laws on the same values, and which wins."""

    fits: dict[str, Fit]
    weight: dict[str, Float[Array, ""]]  # Akaike weights: shares of belief, if one of these is the law
    chosen: dict[str, Bool[Array, ""]]  # the law of the least BIC
    foresees: dict[str, Bool[Array, ""]]  # whether its foresight error is within `NEAR` of the least


class Bootstrap(NamedTuple):
    """Spread of a fit over R redrawings of its residuals in blocks."""

    error: Float[Array, "p"]
    low: Float[Array, "p"]  # bounds of the central interval
    high: Float[Array, "p"]
    curve_low: Float[Array, "T"]  # the same of the fitted curve
    curve_high: Float[Array, "T"]


class _Scaled(NamedTuple):
    """Values in units of the largest, steps in units of the last."""

    t: Float[Array, "T"]
    y: Float[Array, "T"]
    scale: Float[Array, ""]
    last: Float[Array, ""]


@in_float64
def fit(law: str, t: Float[Array, "T"], y: Float[Array, "T"]) -> Fit:
    """Least squares of one of `LAWS` to values y at ascending steps t >= 0, by Levenberg and Marquardt.

    The first steps of a sequence vary less than later ones, and every residual follows the one before it, so
    `error` is too small for real norms: take `bootstrap`. A compiled function rounds float64 arguments to
    float32 unless it is called within `jax.enable_x64(True)`. Raises ConfigError for an unknown law, or for
    fewer than 8 steps.
    """
    rule, scaled = _checked(law, t, y), _scaled(t, y)
    count = len(t)
    seen = scaled.t <= scaled.t[math.ceil(SEEN * count) - 1]
    weights = jnp.stack([jnp.ones_like(seen), seen]).astype(scaled.t.dtype)
    params, early = jax.vmap(lambda weight: _solve(rule, scaled.t, scaled.y, weight))(weights)
    curve, q = rule.curve(scaled.t, params), len(params) + 1
    rss = jnp.sum(jnp.square(scaled.y - curve))
    score = count * jnp.log(jnp.maximum(rss / count, ROUNDING**2))
    ahead = scaled.y - rule.curve(scaled.t, early)
    variance = jnp.sum(jnp.square(scaled.y - jnp.mean(scaled.y)))
    natural = _units(rule, params, scaled)
    return Fit(
        params=natural(params),
        error=_standard_error(rule, scaled, params, rss / (count - len(params)), natural),
        curve=curve * scaled.scale,
        rmse=jnp.sqrt(rss / count) * scaled.scale,
        r2=1 - ratio(rss, variance),
        aicc=score + 2 * q + 2 * q * (q + 1) / (count - q - 1),
        bic=score + q * math.log(count),
        foresight=jnp.sqrt(ratio(jnp.sum(jnp.square(ahead) * ~seen), jnp.sum(~seen) * 1.0)) * scaled.scale,
    )


@in_float64
def compare(t: Float[Array, "T"], y: Float[Array, "T"], laws: tuple[str, ...] = tuple(LAWS)) -> Comparison:
    """Every law on the same values."""
    fits = {law: fit(law, t, y) for law in laws}
    aicc = jnp.stack([found.aicc for found in fits.values()])
    bic = jnp.stack([found.bic for found in fits.values()])
    ahead = jnp.stack([found.foresight for found in fits.values()])
    least = jnp.maximum(jnp.min(ahead), ROUNDING * jnp.max(jnp.abs(jnp.asarray(y))))
    chosen = jnp.arange(len(laws)) == jnp.argmin(bic)
    marks = jax.nn.softmax(-aicc / 2), chosen, ahead <= NEAR * least
    return Comparison(fits, *(dict(zip(fits, mark, strict=True)) for mark in marks))


def winner(found: Comparison) -> str | None:
    """The law that fits best and foresees too; None where the evidence is divided."""
    return next((law for law in found.fits if found.chosen[law] and found.foresees[law]), None)


@in_float64
def bootstrap(
    law: str,
    t: Float[Array, "T"],
    y: Float[Array, "T"],
    key: Array,
    repeats: int = 200,
    block: int | None = None,
    level: float = 0.95,
) -> Bootstrap:
    """Uncertainty of a fit whose residuals hang together, by the circular block bootstrap (Politis and Romano 1992).

    Residuals are redrawn in blocks of consecutive steps (by default twice the square root of their number)
    and added to the fitted curve, and the law is fitted again. Where each of 100 residuals keeps 0.7 of the one
    before, 95% intervals hold in four cases of five.
    """
    rule, scaled = _checked(law, t, y), _scaled(t, y)
    everywhere, count = jnp.ones_like(scaled.t), len(t)
    size = min(count, block or round(2 * count**0.5))
    params = _solve(rule, scaled.t, scaled.y, everywhere)
    curve = rule.curve(scaled.t, params)
    residual = (scaled.y - curve) * (count / (count - len(params))) ** 0.5

    def again(key: Array) -> tuple[Float[Array, "p"], Float[Array, "T"]]:
        starts = jax.random.randint(key, (-(-count // size), 1), 0, count, jnp.int32)
        index = ((starts + jnp.arange(size)) % count).ravel()[:count]
        drawn = _solve(rule, scaled.t, curve + residual[index], everywhere, params)
        return _units(rule, drawn, scaled)(drawn), rule.curve(scaled.t, drawn) * scaled.scale

    samples, curves = jax.vmap(again)(jax.random.split(key, repeats))
    ends = jnp.array([(1 - level) / 2, (1 + level) / 2])
    low, high = jnp.quantile(samples, ends, axis=0)
    return Bootstrap(jnp.std(samples, axis=0, ddof=1), low, high, *jnp.quantile(curves, ends, axis=0))


def _checked(law: str, t: Array, y: Array) -> Law:
    if law not in LAWS:
        raise ConfigError(unknown_name("growth law", law, LAWS))
    if len(t) != len(y) or len(t) < LEAST:
        raise ConfigError(f"{len(t)} steps and {len(y)} values: a law is fitted to at least {LEAST} of both")
    return LAWS[law]


def _scaled(t: Array, y: Array) -> _Scaled:
    t, y = jnp.asarray(t, jnp.float64), jnp.asarray(y, jnp.float64)
    scale, last = jnp.max(jnp.abs(y)), jnp.max(t)
    scale, last = jnp.where(scale > 0, scale, 1.0), jnp.where(last > 0, last, 1.0)
    return _Scaled(t / last, y / scale, scale, last)


def _units(law: Law, params: Array, scaled: _Scaled):
    """The map of scaled parameters to those of the values' own units, at a given exponent."""
    factor = [scaled.scale**i * scaled.last**j for i, j in law.units]
    if law.exponent is not None:
        factor[law.exponent - 1] = factor[law.exponent - 1] * scaled.last ** -params[law.exponent]

    def natural(values: Float[Array, "p"]) -> Float[Array, "p"]:
        return values * jnp.stack([jnp.asarray(x) for x in factor])

    return natural


def _standard_error(law: Law, scaled: _Scaled, params: Array, variance: Array, natural) -> Float[Array, "p"]:
    """Of the natural parameters, by the Jacobian at the solution; with an exponent, its error carried along."""
    jacobian = jax.jacfwd(law.curve, argnums=1)(scaled.t, params)
    covariance = variance * jnp.linalg.pinv(jacobian.T @ jacobian)
    turn = jax.jacfwd(lambda p: _units(law, p, scaled)(p))(params)
    return jnp.sqrt(jnp.maximum(jnp.diagonal(turn @ covariance @ turn.T), 0.0))


def _solve(
    law: Law,
    t: Float[Array, "T"],
    y: Float[Array, "T"],
    weight: Float[Array, "T"],
    start: Float[Array, "p"] | None = None,
) -> Float[Array, "p"]:
    """Weighted least squares: the best of the law's starts, or from a `start` that is near."""
    starts = law.starts(t, y, weight) if start is None else start[None]
    iterations = ITERATIONS if start is None else ITERATIONS_AGAIN

    def residual(params: Float[Array, "p"]) -> Float[Array, "T"]:
        return weight * (y - law.curve(t, params))

    def loss(params: Float[Array, "p"]) -> Float[Array, ""]:
        return jnp.sum(jnp.square(residual(params)))

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        params, now, damping = state
        jacobian, error = jax.jacfwd(residual)(params), residual(params)
        gram = jacobian.T @ jacobian
        damped = gram + damping * jnp.diag(jnp.diagonal(gram) + TINY_SLOPE)
        tried = _within(law, params - jnp.linalg.solve(damped, jacobian.T @ error))
        then = loss(tried)
        better = then < now
        damping = jnp.clip(jnp.where(better, damping / 4, damping * 4), 1e-12, 1e12)
        return jnp.where(better, tried, params), jnp.where(better, then, now), damping

    def descend(params: Float[Array, "p"]) -> tuple[Float[Array, "p"], Float[Array, ""]]:
        state = params, loss(params), jnp.asarray(1e-3)
        params, now, _ = jax.lax.fori_loop(0, iterations, step, state)
        return params, now

    found, losses = jax.vmap(descend)(starts)
    best = found[jnp.argmin(losses)]
    return jnp.stack([jnp.abs(p) if i in law.signless else p for i, p in enumerate(best)])


def _within(law: Law, params: Float[Array, "p"]) -> Float[Array, "p"]:
    for i, least, most in law.bounds:
        params = params.at[i].set(jnp.clip(params[i], least, most))
    return params
