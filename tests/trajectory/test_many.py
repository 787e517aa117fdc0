"""Many sequences at once are the same sequences one after the other."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.data import encode_probes
from jaxedit.editors.locate import locate_and_edit
from jaxedit.editors.memit import memit_config
from jaxedit.evaluation.edits import probe_scores
from jaxedit.parallel import LocalDevices
from jaxedit.trajectory.run import Chunk, chunk_function, many_function, stack
from tests.cases import FACTS, Case, relative

LAYERS = (0, 1)
ORDERS = ((0, 1, 2), (2, 0, 1), (3, 4, 0))


@pytest.mark.parametrize("spread", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["vmap", "pmap"])
def test_three_sequences_at_once_are_each_of_them_alone(gpt2: Case, spread: bool) -> None:
    config = memit_config(LAYERS, 0.5, memory=True)
    values = replace(config.values, learning_rate=0.1, steps=3, weight_decay=0.01)
    editor = locate_and_edit(gpt2.model, gpt2.moments, replace(config, values=values))
    params = gpt2.params(LAYERS)
    state, observe = editor.init(params), partial(probe_scores, gpt2.model)
    requests, probes = gpt2.encode(FACTS), encode_probes(FACTS, gpt2.checkpoint.tokenizer, max_length=64)

    def chunk(order: tuple[int, ...]) -> Chunk:
        rows = [np.array([i]) for i in order]
        active = jnp.ones(len(order), bool)
        batches = ([jax.tree.map(lambda x: x[row], given) for row in rows] for given in (requests, probes))  # noqa: B023
        return Chunk(*map(stack, batches), active)

    copies = stack([(params.edited, state)] * len(ORDERS))
    devices = LocalDevices((jax.devices()[0],)) if spread else None
    apply = many_function(editor, observe, **({"devices": devices} if devices else {}))
    edited, states, steps = apply(
        copies[0], params.frozen, copies[1], stack([chunk(order) for order in ORDERS])
    )
    np.testing.assert_array_equal(steps.applied, np.ones((3, 3), bool))

    alone = chunk_function(editor, observe)
    for i, order in enumerate(ORDERS):
        start, memory = jax.tree.map(jnp.copy, (params.edited, state))
        one, remembered, account = alone(start, params.frozen, memory, chunk(order))
        for path, matrix in one.items():
            change = matrix - params.edited[path]
            assert relative(edited[path][i] - params.edited[path], change) <= 1e-5
        np.testing.assert_allclose(
            steps.observed["rewrite_magnitude"][i],
            account.observed["rewrite_magnitude"],
            rtol=1e-3,
            atol=1e-5,
        )
        for found, expected in zip(jax.tree.leaves(states), jax.tree.leaves(remembered), strict=True):
            assert relative(found[i], expected) <= 1e-5
