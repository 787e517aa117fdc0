"""Every editor over 500 updates: finite, compiled once, no memory lost."""

import gc
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.data import Fact
from jaxedit.editors import METHODS
from jaxedit.trajectory.run import Chunk, chunk_function
from tests.cases import Case
from tests.editors.rows import make_row

UPDATES, CHUNK = 500, 20
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni")
NAMES = [
    Fact(id=name, subject=name, prompt=f"The town of {name} is", target_new=target, target_true="town")
    for name, target in zip(
        map("".join, itertools.product(SYLLABLES, repeat=3)), itertools.cycle(("Rome", "Italy", "jazz"))
    )
][:UPDATES]


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def take(chunks: Any, number: int) -> Any:
    return jax.tree.map(lambda x: x[number], chunks)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_five_hundred_updates(gpt2: Case, name: str) -> None:
    row = make_row(name, gpt2)
    run = chunk_function(row.editor)
    requests = gpt2.encode(NAMES, ("", "Because of it"))
    if row.method.request == "text":
        texts = itertools.islice(itertools.cycle(row.batches), UPDATES)
        requests = jax.tree.map(lambda *x: jnp.concatenate(x)[:UPDATES], *texts)
    chunks = jax.tree.map(lambda x: x.reshape(-1, CHUNK, 1, *x.shape[1:]), requests)
    edited, state = jax.tree.map(lambda x: x.copy(), (row.params.edited, row.state))
    live: list[int] = []
    for number in range(UPDATES // CHUNK):
        chunk = Chunk(take(chunks, number), None)
        edited, state, steps = run(edited, row.params.frozen, state, chunk)
        assert np.asarray(steps.applied).all()
        del chunk, steps
        live.append(live_bytes())
    assert run._cache_size() == 1, "compiled more than once"
    assert len(set(live[1:])) == 1, "memory grows with the edits"
    moved = [float(jnp.linalg.norm(edited[path] - row.params.edited[path])) for path in row.paths]
    assert np.isfinite(moved).all()
    assert min(moved) > 0
