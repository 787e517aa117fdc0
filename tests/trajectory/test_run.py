"""The compiled driver: what it does is the updates one by one, and its account of them is true."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxedit.data import encode_probes, pad_requests
from jaxedit.editors.locate import locate_and_edit
from jaxedit.editors.memit import memit_config
from jaxedit.evaluation.edits import probe_scores
from jaxedit.trajectory.run import Chunk, Step, chunk_function, matrix_norms, stack
from jaxedit.types import Editor, Params, Probes, Requests
from tests.cases import FACTS, Case, relative, same_bits

LAYERS = (0, 1)
PATHS = tuple(f"layers.{layer}.mlp.down.kernel" for layer in LAYERS)


class Driver:
    """MEMIT with memory, one fact an update, three updates a chunk, scored right after each."""

    def __init__(self, case: Case) -> None:
        config = memit_config(LAYERS, 0.5, memory=True)
        values = replace(config.values, learning_rate=0.1, steps=4, weight_decay=0.01, shares=())
        self.case = case
        self.editor: Editor = locate_and_edit(case.model, case.moments, replace(config, values=values))
        self.params = case.params(LAYERS)
        self.state = self.editor.init(self.params)
        self.observe: Callable[[Params, Any], dict[str, Array]] = partial(probe_scores, case.model)
        self.run = chunk_function(self.editor, self.observe)
        requests, probes = case.encode(FACTS), encode_probes(FACTS, case.checkpoint.tokenizer, max_length=64)
        self.requests = [jax.tree.map(lambda x: np.asarray(x)[i : i + 1], requests) for i in range(5)]  # noqa: B023
        self.probes = [jax.tree.map(lambda x: x[i : i + 1], probes) for i in range(5)]  # noqa: B023
        self.nothing: Requests = pad_requests(jax.tree.map(lambda x: x[:0], self.requests[0]), 1)

    def chunk(self, requests: list[Requests], probes: list[Probes]) -> Chunk:
        return Chunk(stack(requests), stack(probes))

    def whole(self) -> tuple[dict[str, Array], Any, list[Step]]:
        """Five facts in two chunks, the second filled up with an update of padding."""
        edited, state = jax.tree.map(jnp.copy, (self.params.edited, self.state))
        first = self.chunk(self.requests[:3], self.probes[:3])
        second = self.chunk([*self.requests[3:], self.nothing], [*self.probes[3:], self.probes[4]])
        account = []
        for chunk in (first, second):
            edited, state, steps = self.run(edited, self.params.frozen, state, chunk)
            account += [jax.tree.map(lambda x: np.asarray(x)[i], steps) for i in range(3)]  # noqa: B023
        return edited, state, account


@pytest.fixture(scope="module")
def driver(gpt2: Case) -> Driver:
    return Driver(gpt2)


@pytest.fixture(scope="module")
def done(driver: Driver) -> tuple[dict[str, Array], Any, list[Step]]:
    return driver.whole()


def test_chunks_are_the_updates_one_by_one_with_their_scores(driver: Driver, done: Any) -> None:
    edited, state, account = done
    update, observe = jax.jit(driver.editor.update), jax.jit(driver.observe)
    params, expected = driver.params, driver.state
    for requests, probes, step in zip(driver.requests, driver.probes, account, strict=False):
        params, expected, info = update(params, expected, requests)
        assert bool(step.applied)
        for name, value in info.metrics.items():
            np.testing.assert_allclose(step.metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
        for name, value in observe(params, probes).items():
            np.testing.assert_allclose(step.observed[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
        for path in PATHS:
            norm = np.linalg.norm(np.asarray(params.edited[path], np.float64))
            assert float(step.norm[path]) == pytest.approx(norm, rel=1e-5)
    for path in PATHS:
        start = np.asarray(driver.params.edited[path], np.float64)
        assert relative(edited[path] - start, params.edited[path] - start) <= 1e-3
        assert relative(state[path].inverse, expected[path].inverse) <= 1e-3
        assert state[path].inverse.dtype == jnp.float64


def test_factors_add_up_to_the_change(driver: Driver, done: Any) -> None:
    edited, _, account = done
    for path in PATHS:
        total = np.asarray(driver.params.edited[path], np.float64)
        for step in account:
            delta = step.factors[path].left.astype(np.float64) @ step.factors[path].right
            assert float(step.delta_norm[path]) == pytest.approx(np.linalg.norm(delta), rel=1e-5)
            total = total + delta
        assert relative(edited[path], total) <= 1e-6


def test_update_of_padding_is_no_update(done: Any) -> None:
    *_, last, padding = done[2]
    for path in PATHS:
        assert float(padding.delta_norm[path]) == 0.0
        assert padding.norm[path].tobytes() == last.norm[path].tobytes()
    assert same_bits(padding.observed, last.observed)
    assert not int(padding.refused)


def test_same_run_twice_is_bit_identical_and_compiles_once(driver: Driver, done: Any) -> None:
    again = driver.whole()
    assert same_bits(again, done)
    assert driver.run._cache_size() == 1  # type: ignore[attr-defined]


def test_edited_and_state_are_taken_over_and_frozen_is_not(driver: Driver) -> None:
    edited, state = jax.tree.map(jnp.copy, (driver.params.edited, driver.state))
    chunk = driver.chunk(driver.requests[:3], driver.probes[:3])
    driver.run(edited, driver.params.frozen, state, chunk)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((edited, state)))
    assert not any(leaf.is_deleted() for leaf in driver.params.frozen.values())


def test_norms_of_mlp_matrices_and_edited_ones_are_numpys(gpt2: Case) -> None:
    mlps = [f"layers.{i}.mlp.{name}.kernel" for i in range(3) for name in ("up", "down")]
    other = "layers.1.attention.value.kernel"
    norms = matrix_norms(gpt2.checkpoint.params, {other, "layers.1.mlp.down.bias"})
    assert sorted(norms) == sorted([*mlps, other])
    for path, norm in norms.items():
        assert float(norm) == pytest.approx(np.linalg.norm(gpt2.checkpoint.params[path]), rel=1e-6)
