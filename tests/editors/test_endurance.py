"""Every editor over 500 updates: finite, compiled once, no memory lost."""

import gc
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.editors import METHODS
from jaxedit.trajectory.run import Chunk, chunk_function, stack
from tests.cases import Case
from tests.editors.rows import make_row

UPDATES, CHUNK = 500, 20


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_five_hundred_updates(gpt2: Case, name: str) -> None:
    row = make_row(name, gpt2)
    run = chunk_function(row.editor)
    again = itertools.cycle(row.batches)
    edited, state = jax.tree.map(lambda x: x.copy(), (row.params.edited, row.state))
    live: list[int] = []
    for _ in range(UPDATES // CHUNK):
        chunk = Chunk(stack([next(again) for _ in range(CHUNK)]), None)
        edited, state, steps = run(edited, row.params.frozen, state, chunk)
        assert np.asarray(steps.applied).all()
        del chunk, steps
        live.append(live_bytes())
    assert run._cache_size() == 1, "compiled more than once"
    assert len(set(live[1:])) == 1, "memory grows with the edits"
    moved = [float(jnp.linalg.norm(edited[path] - row.params.edited[path])) for path in row.paths]
    assert np.isfinite(moved).all()
    assert min(moved) > 0
