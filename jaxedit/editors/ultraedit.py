"""UltraEdit (Gu et al. 2025, arXiv 2505.14679) and StableEdit (Ma et al. 2026, arXiv 2605.11836).

No training: with keys and gradients normalised by all that was seen so far (lifelong normalisation), a token asks
for the value change `d = -rate ||k~||^2 v~`; ridge regression on the keys writes them. In one step in the papers; in
several, small ones that each begin with the gradient of the model as it is by then, here where `steps` says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.editors.features import (
    FeatureConfig,
    Pairs,
    by_shape,
    count_pairs,
    of_facts,
    pays,
    token_features,
    written,
)
from jaxedit.editors.hypernet import fold_pairs
from jaxedit.editors.normalise import Running, empty, fold_scatter, standardise, whiten
from jaxedit.editors.regression import smoother
from jaxedit.linalg import dense
from jaxedit.models.model import Model
from jaxedit.types import Delta, Editor, LowRank, Params, Requests

T = TypeVar("T")


@dataclass(frozen=True)
class LifelongConfig(FeatureConfig):
    """Settings of UltraEdit; `whitened` makes it StableEdit."""

    learning_rate: float = 1e-6
    ridge: float = 1.0
    whitened: bool = False  # gradients by their full covariance, not component by component
    steps: int = 1  # of every update
    stop_loss: float = 0.0  # facts whose loss is below are left as they are; 0 leaves none


class Lifelong(NamedTuple):
    """Moments of all pairs so far, by shape: matrices of one shape share them."""

    running: dict[str, Running]
    scatter: dict[str, Float[Array, "d_out d_out"]]  # of gradients, float64; StableEdit only


class Course(NamedTuple):
    """Where an update stands."""

    state: Lifelong
    change: dict[str, Delta]  # by path: factors, which are zero for steps to come, or their product
    losses: Float[Array, "steps B"]  # before each step; NaN where it was not taken
    step: Int[Array, ""]
    done: Bool[Array, ""]


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

    def observe(params: Params, state: Lifelong, requests: Requests) -> Lifelong:
        return counted(state, token_features(model, params, requests, paths, config.tokens).pairs)

    def update(params: Params, state: Lifelong, requests: Requests):
        def step(course: Course) -> Course:
            now = {path: params.edited[path] + dense(change) for path, change in course.change.items()}
            pairs, losses = token_features(
                model, Params(params.edited | now, params.frozen), requests, paths, config.tokens
            )
            with jax.enable_x64(True):
                state = jax.lax.cond(
                    course.step == 0, single(lambda: counted(course.state, pairs)), lambda: course.state
                )
            written_already = losses < config.stop_loss  # not where it is NaN, so that the update is refused
            wanting = (requests.weight > 0) & ~written_already
            change = {
                path: with_step(
                    old, course.step, lifelong_shift(state, of_facts(pairs[path], wanting), config)
                )
                for path, old in course.change.items()
            }
            losses = course.losses.at[course.step].set(losses)
            return Course(state, change, losses, course.step + 1, ~wanting.any())

        rank = config.steps * count_pairs(requests, config.tokens)
        begin = Course(
            state=state,
            change={path: no_change(model.shapes[path], rank) for path in paths},
            losses=jnp.full((config.steps, len(requests.weight)), jnp.nan),
            step=jnp.zeros((), jnp.int32),
            done=jnp.zeros((), bool),
        )
        with jax.enable_x64(True):
            end = jax.lax.while_loop(
                lambda course: (course.step < config.steps) & ~course.done, single(step), begin
            )
        return written(params, end.state, end.change, {"loss": end.losses, "steps": end.step})

    return Editor(init, update, observe=observe)


def single(work: Callable[..., T]) -> Callable[..., T]:
    """`work` as JAX traces it by default, for a loop or branch that is bound within `jax.enable_x64(True)`.

    Bound outside, a loop with float64 in its body cannot be vmapped: JAX traces the body anew, cut to float32.
    """

    def traced(*args: Any) -> T:
        with jax.enable_x64(False):
            return work(*args)

    return traced


def no_change(shape: tuple[int, ...], rank: int) -> Delta:
    """Zeros: factors of this rank, or a matrix where those do not pay."""
    if not pays(rank, shape):
        return jnp.zeros(shape)
    return LowRank(jnp.zeros((shape[0], rank)), jnp.zeros((rank, shape[1])))


def with_step(change: Delta, step: Int[Array, ""], new: LowRank) -> Delta:
    """The change with a step's, of which factors have a place of their own."""
    if not isinstance(change, LowRank):
        return change + dense(new)
    at = step * new.left.shape[1]
    return LowRank(
        jax.lax.dynamic_update_slice_in_dim(change.left, new.left, at, axis=1),
        jax.lax.dynamic_update_slice_in_dim(change.right, new.right, at, axis=0),
    )


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


def lifelong_shift(state: Lifelong, pairs: Pairs, config: LifelongConfig) -> LowRank:
    """The change of one matrix [in, out]."""
    running, keys = state.running[pairs.shape], pairs.key.shape[-1]
    normal = standardise(running, pairs.joined)
    key, gradient = normal[:, :keys], normal[:, keys:]
    if pairs.shape in state.scatter:
        of_gradients = gradients_of(running, pairs)
        with jax.enable_x64(True):
            gradient = jax.lax.cond(
                running.total > gradient.shape[-1] + 1,  # below, the covariance has no inverse
                single(lambda: whiten(state.scatter[pairs.shape], of_gradients, pairs.gradient)),
                lambda: gradient,
            )
    wanted = -config.learning_rate * jnp.square(key).sum(axis=-1, keepdims=True) * gradient
    wanted = jnp.where(pairs.real[:, None], wanted, 0)
    return LowRank(smoother(pairs.key, jnp.log(config.ridge)), wanted)
