"""Gradient descent for editors: AdamW with clipping and schedules, as one compiled loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxedit.batching import all_of
from jaxedit.errors import ConfigError

Trained = Any
"""A pytree of what is trained: matrices by path, or adapters."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and how far it goes in one update."""

    carried: ClassVar[bool] = False  # whether moments and schedule live on from one update to the next
    learning_rate: float = 5e-4
    steps: int = 25  # of every update
    stop_loss: float = 1e-2  # a batch whose mean loss is below is left as it is; 0 never stops
    schedule: Literal["constant", "linear", "cosine_decay"] = "constant"  # optax's; the last two end at 0
    schedule_steps: int | None = None  # warm-up included; None: `steps`, where the optimiser is not carried
    warmup_steps: int = 0  # from 0 up to the learning rate, linearly
    weight_decay: float = 0.0  # decoupled: matrices shrink by learning_rate * weight_decay a step
    clip_norm: float | None = None  # bound on the gradient's norm over all that is trained


class Objective(NamedTuple):
    """What a batch asks for: the loss of every row, and the rows' shares (sum 1, or 0 for padding alone)."""

    loss: Callable[[Trained], Float[Array, "B"]]
    share: Float[Array, "B"]


class Descent(NamedTuple):
    """Where a descent stands."""

    weights: Trained
    optimiser: optax.OptState
    losses: Float[Array, "steps B"]  # NaN where a step was not taken
    step: Int[Array, ""]
    done: Bool[Array, ""]

    @property
    def metrics(self) -> dict[str, Array]:
        """The figures that every gradient editor gives."""
        return {"loss": self.losses, "steps": self.step}


def rate(config: OptimiserConfig) -> optax.Schedule:
    """The learning rate by optimiser step.

    Raises ConfigError for a schedule without a length, or one that warm-up fills.
    """
    length = config.schedule_steps or (None if config.carried else config.steps)
    if length is None and config.schedule != "constant":
        raise ConfigError(
            f"schedule is {config.schedule!r} and runs over the whole sequence: "
            f"give its length in optimiser steps as schedule_steps"
        )
    if length is not None and config.warmup_steps >= length:
        raise ConfigError(f"warmup_steps is {config.warmup_steps}; it must be below the schedule's {length}")
    left = 0 if length is None else length - config.warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, left),
        "cosine_decay": lambda: optax.cosine_decay_schedule(config.learning_rate, left),
    }[config.schedule]()
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def optimiser(config: OptimiserConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW. Biases and norm scales do not decay. Errors as `rate`."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adamw = optax.adamw(rate(config), weight_decay=config.weight_decay, mask=_matrices)
    return optax.chain(clip, adamw)


def _matrices(weights: Trained) -> PyTree[bool]:
    return jax.tree.map(lambda w: w.ndim > 1, weights)


def descend(
    objective: Objective,
    start: Trained,
    state: optax.OptState,
    transform: optax.GradientTransformation,
    config: OptimiserConfig,
    project: Callable[[Trained], Trained] = lambda weights: weights,
) -> Descent:
    """At most `steps` steps from `start`, each followed by `project`. A batch of padding alone takes none.

    A step is: loss; stop if its mean is below `stop_loss`; gradient; AdamW; projection. `transform` is
    `optimiser(config)` and `state` its state.
    """
    loss, share = objective

    def step(p: Descent) -> Descent:
        losses, pull_back = jax.vjp(loss, p.weights)
        done = p.done
        if config.stop_loss:
            done = jnp.sum(losses * share) < config.stop_loss
            gradient = jax.lax.cond(
                all_of(done), lambda: jax.tree.map(jnp.zeros_like, p.weights), lambda: pull_back(share)[0]
            )
        else:
            gradient = pull_back(share)[0]
        # Chosen by element, in place: a branch of the loop would hold weights and moments twice.
        weights, state = jax.tree.map(
            lambda new, old: jnp.where(done, old, new), advance(gradient, p), (p.weights, p.optimiser)
        )
        return Descent(weights, state, p.losses.at[p.step].set(losses), p.step + 1, done)

    def advance(gradient: Trained, p: Descent) -> tuple[Trained, optax.OptState]:
        change, state = transform.update(gradient, p.optimiser, p.weights)
        return project(optax.apply_updates(p.weights, change)), state

    begin = Descent(
        weights=start,
        optimiser=state,
        losses=jnp.full((config.steps, *share.shape), jnp.nan),
        step=jnp.zeros((), jnp.int32),
        done=share.sum() == 0,
    )
    return jax.lax.while_loop(lambda p: (p.step < config.steps) & ~p.done, step, begin)
