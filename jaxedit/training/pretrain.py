"""Training of a decoder from random weights on rows of text: compiled steps, the same bits twice, resumable."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxedit.configs import require_at_least
from jaxedit.editors.objective import text_nll
from jaxedit.editors.optimiser import Objective, OptimiserConfig, optimiser
from jaxedit.errors import ConfigError
from jaxedit.models.model import Model
from jaxedit.training.checkpoints import Checkpoints
from jaxedit.types import TextBatch


@dataclass(frozen=True)
class PretrainPlan:
    """AdamW with linear warm-up and cosine decay to nothing."""

    steps: int = 2000
    rows: int = 32
    """Rows of a step."""
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    """Bound on the gradient's norm."""
    every: int = 200
    """Steps of one compiled call; each call ends in a checkpoint."""


class Pretraining(NamedTuple):
    """All that training goes on from."""

    step: Int[Array, ""]
    params: dict[str, Array]
    optimiser: optax.OptState
    losses: Float[Array, "steps"]  # NaN where not reached


class Pretrained(NamedTuple):
    """What came of it."""

    params: dict[str, Array]
    losses: Float[np.ndarray, "steps"]  # mean NLL of a step's tokens


def pretrain(
    model: Model,
    rows: TextBatch,
    plan: PretrainPlan,
    key: Array,
    folder: str | Path | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Pretrained:
    """Random weights drawn from `key`, trained to predict every valid token of `rows` after its row's first.

    Rows come in an order drawn from `key`, anew for every pass. With a `folder` training goes on from the last
    call's end in it, to the same bits as if it had not stopped.

    Raises ConfigError for settings that cannot work, RunError where the folder belongs to another training.
    """
    check(plan, rows)
    start_key, order_key = jax.random.split(key)
    store = None if folder is None else Checkpoints(folder, _identity(model, rows, plan, key))
    progress = begin(model, plan, start_key)
    if store is not None and store.latest:
        progress = store.restore(progress)
    advance = jax.jit(functools.partial(steps_together, model, plan))
    chosen = _order(order_key, len(rows.tokens), plan.rows)
    numbers = [next(chosen) for _ in range(plan.steps)]
    for start in range(int(progress.step), plan.steps, plan.every):
        progress = advance(progress, take(rows, numbers[start : start + plan.every]))
        if store is not None:
            store.save(int(progress.step), progress)
        report("training the model", int(progress.step), plan.steps)
    return Pretrained(progress.params, np.asarray(progress.losses))


def begin(model: Model, plan: PretrainPlan, key: Array) -> Pretraining:
    """Random weights, nothing trained."""
    params = model.init(key)
    state = optimiser(_optimiser(plan)).init(params)
    return Pretraining(jnp.zeros((), jnp.int32), params, state, jnp.full(plan.steps, jnp.nan))


def steps_together(
    model: Model, plan: PretrainPlan, progress: Pretraining, batches: TextBatch
) -> Pretraining:
    """One step on each of E batches, in one scan."""
    transform = optimiser(_optimiser(plan))

    def step(now: Pretraining, batch: TextBatch) -> tuple[Pretraining, None]:
        objective = text_nll(model.bind, batch)
        loss, slope = jax.value_and_grad(functools.partial(_mean, objective))(now.params)
        change, state = transform.update(slope, now.optimiser, now.params)
        params = optax.apply_updates(now.params, change)
        return Pretraining(now.step + 1, params, state, now.losses.at[now.step].set(loss)), None

    return jax.lax.scan(step, progress, batches)[0]


def _mean(objective: Objective, params: dict[str, Array]) -> Float[Array, ""]:
    return jnp.sum(objective.loss(params) * objective.share)


def take(rows: TextBatch, numbers: list[Int[np.ndarray, "rows"]]) -> TextBatch:
    """Batches [steps, rows, length] of the rows with these numbers."""
    index = np.stack(numbers)
    return TextBatch(*(jnp.asarray(np.asarray(x)[index]) for x in rows))


def pack_rows(
    sentences: list[list[int]], length: int
) -> tuple[Int[np.ndarray, "n length"], Bool[np.ndarray, "n length"]]:
    """Tokens and mask of rows that begin with a sentence and hold as many, in their order, as fit whole.

    Raises ConfigError for a sentence that is longer than a row.
    """
    lines: list[list[int]] = [[]]
    for sentence in sentences:
        if len(sentence) > length:
            raise ConfigError(f"a sentence has {len(sentence)} tokens: rows of {length} are too short")
        if len(lines[-1]) + len(sentence) > length:
            lines.append([])
        lines[-1] = lines[-1] + sentence
    tokens, valid = np.zeros((len(lines), length), np.int32), np.zeros((len(lines), length), bool)
    for i, line in enumerate(lines):
        tokens[i, : len(line)], valid[i, : len(line)] = line, True
    return tokens, valid


def check(plan: PretrainPlan, rows: TextBatch) -> None:
    """Raises ConfigError for numbers that cannot work, naming setting and range."""
    require_at_least(plan, "training: ", steps=1, rows=1, warmup_steps=0, every=1)
    for name in ("learning_rate", "clip_norm"):
        if not getattr(plan, name) > 0:
            raise ConfigError(f"training: {name} is {getattr(plan, name)}; it must be above 0")
    if not plan.weight_decay >= 0:
        raise ConfigError(f"training: weight_decay is {plan.weight_decay}; it must not be negative")
    if plan.warmup_steps >= plan.steps:
        raise ConfigError(
            f"training: warmup_steps is {plan.warmup_steps}; it must be below steps {plan.steps}"
        )
    if plan.rows > len(rows.tokens):
        raise ConfigError(
            f"training: rows is {plan.rows}, the text has {len(rows.tokens)}: give more, or lower it"
        )


def _optimiser(plan: PretrainPlan) -> OptimiserConfig:
    return OptimiserConfig(
        learning_rate=plan.learning_rate,
        schedule="cosine_decay",
        schedule_steps=plan.steps,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        clip_norm=plan.clip_norm,
    )


def _order(key: Array, count: int, size: int) -> Iterator[Int[np.ndarray, "size"]]:
    """Numbers of the rows of every step: the next ones of an endless row of permutations."""
    ahead, passes = np.zeros(0, np.int32), 0
    while True:
        while len(ahead) < size:
            drawn = jax.random.permutation(jax.random.fold_in(key, passes), count)
            ahead, passes = np.concatenate([ahead, np.asarray(drawn)]), passes + 1
        yield ahead[:size]
        ahead = ahead[size:]


def _identity(model: Model, rows: TextBatch, plan: PretrainPlan, key: Array) -> dict[str, object]:
    """Everything that the bits depend on."""
    text = hashlib.sha256()
    for leaf in rows:
        text.update(np.ascontiguousarray(leaf).tobytes())
    return {
        "model": dataclasses.asdict(model.config),
        "training": dataclasses.asdict(plan),
        "key": jax.random.key_data(key).tolist(),
        "text": text.hexdigest(),
    }
