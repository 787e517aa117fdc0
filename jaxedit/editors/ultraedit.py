"""UltraEdit (Gu et al. 2025, arXiv 2505.14679) and StableEdit (Ma et al. 2026, arXiv 2605.11836).

No optimisation and no training: with keys and gradients normalised by all that was seen so far (lifelong
normalisation), a token asks for the value change `d = -rate ||k~||^2 v~`; ridge regression on the keys writes them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.editors.features import (
    FeatureConfig,
    Features,
    Pairs,
    by_shape,
    compact,
    token_features,
    written,
)
from jaxedit.editors.hypernet import fold_pairs
from jaxedit.editors.normalise import Running, empty, fold_scatter, standardise, whiten
from jaxedit.editors.regression import smoother
from jaxedit.models.model import Model
from jaxedit.types import Editor, LowRank, Params, Requests


@dataclass(frozen=True)
class LifelongConfig(FeatureConfig):
    """Settings of UltraEdit; `whitened` makes it StableEdit."""

    learning_rate: float = 1e-6
    ridge: float = 1.0
    whitened: bool = False  # gradients by their full covariance, not component by component


class Lifelong(NamedTuple):
    """Moments of all pairs so far, by shape: matrices of one shape share them."""

    running: dict[str, Running]
    scatter: dict[str, Float[Array, "d_out d_out"]]  # of gradients, float64; StableEdit only


def stable_config(layers: tuple[int, ...]) -> LifelongConfig:
    """StableEdit: whitened gradients and a stronger ridge."""
    return LifelongConfig(layers, ridge=10.0, whitened=True)


def ultra_edit(model: Model, config: LifelongConfig) -> Editor:
    """The editor of `config`, its moments empty. They count a batch before it is edited.

    Its `observe` over facts that are not edited is StableEdit's warm-up: statistics only, the model stays as it is.
    Raises ConfigError for a layer or matrix that the model does not have.
    """
    paths = model.parameter_paths(config.layers, config.targets)

    def init(params: Params) -> Lifelong:
        return start(model, config)

    def seen(params: Params, requests: Requests) -> Features:
        return token_features(model, params, requests, paths, config.tokens)

    def observe(params: Params, state: Lifelong, requests: Requests) -> Lifelong:
        return counted(state, seen(params, requests).pairs)

    def update(params: Params, state: Lifelong, requests: Requests):
        features = seen(params, requests)
        state = counted(state, features.pairs)
        deltas = {path: lifelong_shift(state, features.pairs[path], config) for path in paths}
        return written(params, state, features, deltas)

    return Editor(init, update, observe=observe)


def start(model: Model, config: LifelongConfig) -> Lifelong:
    """No moments yet."""
    running, scatter = {}, {}
    for shape, paths in by_shape(model, model.parameter_paths(config.layers, config.targets)).items():
        d_in, d_out = model.shapes[paths[0]]
        running[shape] = empty(d_in + d_out)
        if config.whitened:
            with jax.enable_x64(True):
                scatter[shape] = jnp.zeros((d_out, d_out), jnp.float64)
    return Lifelong(running, scatter)


def counted(state: Lifelong, pairs: dict[str, Pairs]) -> Lifelong:
    """The moments with the pairs of a batch."""
    running, scatter = state.running, dict(state.scatter)
    for path in sorted(pairs):
        one = pairs[path]
        if one.shape in scatter:
            before = gradients_of(running[one.shape], one)
            scatter[one.shape] = fold_scatter(scatter[one.shape], before, one.gradient, one.real)
        running = fold_pairs(running, {path: one})
    return Lifelong(running, scatter)


def gradients_of(running: Running, pairs: Pairs) -> Running:
    """The moments of the gradients alone."""
    keys = pairs.key.shape[-1]
    return Running(running.total, running.mean[keys:], running.squares[keys:])


def lifelong_shift(state: Lifelong, pairs: Pairs, config: LifelongConfig) -> LowRank | Float[Array, "in out"]:
    """The change of one matrix [in, out]."""
    running, keys = state.running[pairs.shape], pairs.key.shape[-1]
    normal = standardise(running, pairs.joined)
    key, gradient = normal[:, :keys], normal[:, keys:]
    if pairs.shape in state.scatter:
        of_gradients = gradients_of(running, pairs)
        gradient = jax.lax.cond(
            running.total > gradient.shape[-1] + 1,  # below, the covariance has no inverse
            lambda: whiten(state.scatter[pairs.shape], of_gradients, pairs.gradient),
            lambda: gradient,
        )
    wanted = -config.learning_rate * jnp.square(key).sum(axis=-1, keepdims=True) * gradient
    wanted = jnp.where(pairs.real[:, None], wanted, 0)
    return compact(LowRank(smoother(pairs.key, jnp.log(config.ridge)), wanted))
