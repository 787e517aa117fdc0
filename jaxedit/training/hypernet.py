"""Training of MEND's and MALMEN's networks, and RLEdit's over sequences: the loop, its early stop, its resume."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxedit.configs import require_at_least
from jaxedit.digests import fingerprint
from jaxedit.editors.hypernet import HyperConfig, Hypernet, fresh
from jaxedit.errors import ConfigError
from jaxedit.models.model import Model
from jaxedit.training.checkpoints import Checkpoints
from jaxedit.training.hidden import with_hidden
from jaxedit.training.lessons import Lessons, grouped, take
from jaxedit.training.steps import TrainConfig, begin, held_out_loss, looked, order, train_step


class Trained(NamedTuple):
    """The network with the lowest loss on the held-out facts, and both curves as far as they go."""

    hypernet: Hypernet
    losses: Float[np.ndarray, "steps"]
    held_out: Float[np.ndarray, "looks"]  # the first is that of the untrained network


def train_hypernetwork(
    model: Model,
    flat: dict[str, Array],
    lessons: Lessons,
    held_out: Lessons,
    config: HyperConfig,
    training: TrainConfig,
    key: Array,
    folder: str | Path | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Trained:
    """Trains the network of `config` on `lessons` for the model with parameters `flat`, which stay as they are.

    Every step edits `accumulate` times `edits` facts and follows the gradient of `edit_weight * NLL +
    locality_weight * KL` after the edit. Facts come in an order drawn from `key`, anew for every pass. With a
    `folder` training of the same model goes on from the last look in it, to the same bits as if it had not stopped.

    Raises ConfigError for settings that cannot work, RunError where the folder belongs to another training.
    """
    check(training, lessons)
    params = model.split(flat, model.parameter_paths(config.layers, config.targets))
    advance = functools.partial(jax.jit(train_step, static_argnums=(0, 1, 2)), model, config, training)
    look = functools.partial(jax.jit(held_out_loss, static_argnums=(0, 1, 2)), model, config, training)
    judged = jax.jit(looked)
    start_key, order_key = jax.random.split(key)
    progress = begin(jax.jit(fresh, static_argnums=(0, 1))(model, config, start_key), training)
    store = None
    if folder is not None:
        of_model = {"model": dataclasses.asdict(model.config) | {"weights": fingerprint(flat)}}
        store = Checkpoints(folder, of_model | _identity(lessons, held_out, config, training, key))
    if training.keep_hidden and min(config.layers) > 0:
        lessons, held_out = (with_hidden(model, params, config, one, report) for one in (lessons, held_out))
    groups, facts = grouped(held_out, training.edits), len(lessons.requests.weight)
    if store is not None and store.latest:
        progress = store.restore(progress)
    else:
        progress = judged(progress, look(params, progress.hypernet, groups))
    while (step := int(progress.step)) < training.steps and int(progress.stale) < training.patience:
        progress = advance(params, progress, take(lessons, order(order_key, step, facts, training)))
        if (step + 1) % training.every == 0 or step + 1 == training.steps:
            progress = judged(progress, look(params, progress.hypernet, groups))
            if store is not None:
                store.save(step + 1, progress)
            report("training the network", step + 1, training.steps)
    curve = np.asarray(progress.held_out)
    return Trained(progress.best, np.asarray(progress.losses)[: int(progress.step)], curve[~np.isnan(curve)])


def check(training: TrainConfig, lessons: Lessons) -> None:
    """Raises ConfigError for numbers that cannot work, naming setting and range."""
    require_at_least(training, "training: ", edits=1, accumulate=1, steps=1, every=1, patience=1)
    if training.look_back is not None:
        require_at_least(training, "training: ", look_back=1)
        if not training.sequence:
            raise ConfigError("training: look_back has no effect without sequence: give that too")
    for name in ("decay", "size_weight", "edit_weight", "locality_weight"):
        if not getattr(training, name) >= 0:
            raise ConfigError(f"training: {name} is {getattr(training, name)}; it must not be negative")
    for name in ("learning_rate", "rate_learning_rate", "clip"):
        if not getattr(training, name) > 0:
            raise ConfigError(f"training: {name} is {getattr(training, name)}; it must be above 0")
    if training.edits > (facts := len(lessons.requests.weight)):
        raise ConfigError(
            f"training: edits is {training.edits}, there are {facts} facts: give more, or lower it"
        )


def _identity(
    lessons: Lessons, held_out: Lessons, config: HyperConfig, training: TrainConfig, key: Array
) -> dict[str, object]:
    """Everything but the model that the bits depend on."""
    facts = hashlib.sha256()
    for leaf in jax.tree.leaves((lessons, held_out)):
        facts.update(np.ascontiguousarray(leaf).tobytes())
    return {
        "editor": dataclasses.asdict(config),
        "training": dataclasses.asdict(training),
        "key": jax.random.key_data(key).tolist(),
        "facts": facts.hexdigest(),
    }
