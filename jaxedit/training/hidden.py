"""What training would compute again in every step and no edit changes: the layers below the first edited one."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxedit.editors.hypernet import HyperConfig
from jaxedit.evaluation.edits import branch_mask, fullest, real_tokens
from jaxedit.lookup import whole_rows
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.models.rows import run_rows
from jaxedit.training.lessons import Hidden, Lessons, take
from jaxedit.types import Params

BATCH = 16  # facts at a time


class Room(NamedTuple):
    """Real tokens of the fullest batch."""

    requests: int
    probes: int


def with_hidden(
    model: Model,
    params: Params,
    config: HyperConfig,
    lessons: Lessons,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Lessons:
    """The lessons with their hidden states at the first edited layer, on the host."""
    layer, count = min(config.layers), len(lessons.requests.weight)
    filled = take(lessons, np.minimum(np.arange(-(-count // BATCH) * BATCH), count - 1))
    batches = [slice(start, start + BATCH) for start in range(0, count, BATCH)]
    _, valid, _ = whole_rows(filled.requests)
    room = Room(*(fullest(np.asarray(real), batches) for real in (valid, real_tokens(filled.probes))))
    run = partial(jax.jit(hidden_of, static_argnums=(0, 1, 2)), model, layer, room, params)
    parts = []
    for rows in batches:
        parts.append(jax.device_get(run(take(filled, np.arange(rows.start, rows.stop)))))
        report("reading the lessons", min(rows.stop, count), count)
    hidden = jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)
    return lessons._replace(hidden=hidden)


def hidden_of(model: Model, layer: int, room: Room, params: Params, lessons: Lessons) -> Hidden:
    """The input of `layer`, with room for so many real tokens."""
    decoder = model.bind(params)

    def run(tokens: Array, at: Array, mask: Array, real: Array, places: int) -> Array:
        h = decoder.embed(tokens, at)
        return run_rows(decoder, h, range(layer), position=at, mask=mask, real=real, places=places)

    rows, valid, _ = whole_rows(lessons.requests)
    requests = run(rows, positions(valid), causal_mask(valid), valid, room.requests)
    tokens, at, branch = (x.reshape(-1, x.shape[-1]) for x in lessons.probes[:3])
    real = real_tokens(lessons.probes).reshape(tokens.shape)
    probes = run(tokens, at, branch_mask(branch), real, room.probes)
    return Hidden(requests, probes.reshape(*lessons.probes.tokens.shape, -1))
