"""What training would compute again in every step and no edit changes: the layers below the first edited one."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from jaxedit.editors.hypernet import HyperConfig
from jaxedit.evaluation.edits import branch_mask, fullest, real_tokens
from jaxedit.lookup import whole_rows
from jaxedit.models.decoder import causal_mask, positions
from jaxedit.models.model import Model
from jaxedit.models.packing import Size
from jaxedit.models.rows import run_rows
from jaxedit.training.lessons import Hidden, Lessons, take
from jaxedit.types import Params

BATCH = 16  # facts at a time


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
    room = Size(fullest(np.asarray(real_tokens(filled.probes)), batches), fullest(np.asarray(valid), batches))
    run = partial(jax.jit(hidden_of, static_argnums=(0, 1, 2)), model, layer, room, params)
    parts = []
    for rows in batches:
        parts.append(jax.device_get(run(take(filled, np.arange(rows.start, rows.stop)))))
        report("reading the lessons", min(rows.stop, count), count)
    hidden = jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)
    return lessons._replace(hidden=hidden)


def hidden_of(model: Model, layer: int, room: Size, params: Params, lessons: Lessons) -> Hidden:
    """The input of `layer`, with room for so many real tokens of all probes, and of all requests."""
    decoder, below = model.bind(params), range(layer)
    rows, valid, _ = whole_rows(lessons.requests)
    at = positions(valid)
    requests = run_rows(
        decoder,
        decoder.embed(rows, at),
        below,
        position=at,
        mask=causal_mask(valid),
        real=valid,
        places=room.reads,
    )
    shape = lessons.probes.tokens.shape
    tokens, at, branch = (x.reshape(-1, shape[-1]) for x in lessons.probes[:3])
    probes = run_rows(
        decoder,
        decoder.embed(tokens, at),
        below,
        position=at,
        mask=branch_mask(branch),
        real=real_tokens(lessons.probes).reshape(tokens.shape),
        places=room.tokens,
    )
    return Hidden(requests, probes.reshape(*shape, -1))
